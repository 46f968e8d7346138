"""The stage `evaluate`: the likelihood of every image of a split, as a number with its error and as a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.evaluation.bound import measure, other_splits, write
from flows.evaluation.results import BoundMetrics
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Evaluate


def evaluate(
    settings: "Evaluate", *, model: Path, images: Path, requirements: Path, out: Path, split: Split = "test"
) -> BoundMetrics:
    """Write `metrics.json`, `per_image.csv` and `noise_levels.csv` into `out`, and return the metrics, in bits/dim.

    The metrics of the test images also state the figures of the other splits.

    Raises what `flows.evaluation.bound.measure` raises, and OSError that names the file that cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)  # an unwritable folder is reported before the evaluation
    found = measure(settings, model=model, images=images, requirements=requirements, split=split)
    metrics, result, columns = found
    if split == "test":
        metrics = metrics.model_copy(update=other_splits(settings, metrics, model=model, images=images))
    write(out, metrics, result, columns, model=model, images=images, split=split)
    return metrics
