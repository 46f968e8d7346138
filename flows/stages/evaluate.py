"""evaluate: the likelihood of every test image, as a number with its error and as a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.core.device import find_device
from flows.evaluation.bound import measure, write
from flows.evaluation.environment import environment
from flows.evaluation.results import BoundMetrics

if TYPE_CHECKING:
    from flows.core.params import Evaluate


def evaluate(settings: "Evaluate", *, model: Path, images: Path, requirements: Path, out: Path) -> BoundMetrics:
    """Write `metrics.json` and `per_image.csv` into `out`, and return the metrics, in bits/dim.

    The metrics name the versions of libraries, the processor, and the digest of the file `requirements`.

    Raises what `flows.evaluation.bound.measure` raises, and OSError that names the file that cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)  # an unwritable folder is reported before the evaluation
    metrics, result = measure(settings, model=model, images=images)
    made_in = environment(find_device(settings.device), requirements)
    metrics = metrics.model_copy(update={"environment": made_in})
    write(out, metrics, result)
    return metrics
