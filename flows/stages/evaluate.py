"""evaluate: the likelihood of every test image, as a number with its error and as a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.evaluation.bound import measure, write
from flows.evaluation.results import BoundMetrics

if TYPE_CHECKING:
    from flows.core.params import Evaluate


def evaluate(settings: "Evaluate", *, model: Path, images: Path, requirements: Path, out: Path) -> BoundMetrics:
    """Write `metrics.json` and `per_image.csv` into `out`, and return the metrics, in bits/dim.

    Raises what `flows.evaluation.bound.measure` raises, and OSError that names the file that cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)  # an unwritable folder is reported before the evaluation
    metrics, result = measure(settings, model=model, images=images, requirements=requirements)
    write(out, metrics, result)
    return metrics
