"""The stage `evaluate`: the likelihood of every image of a split, as a number with its error and as a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.evaluation.bound import measure, other_splits, write
from flows.evaluation.results import BoundMetrics
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Evaluate


def evaluate(
    settings: "Evaluate",
    *,
    model: Path,
    images: Path,
    requirements: Path,
    out: Path | None,
    split: Split = "test",
    num_images: int | None = None,
) -> BoundMetrics:
    """Return the metrics of a split, in bits/dim; see `flows.evaluation.bound` for `num_images` and the files in `out`.

    With `out`, the metrics of all test images also state the figures of the other splits.

    Raises what `flows.evaluation.bound.measure` raises, and OSError that names the file that cannot be written.
    """
    if out:
        out.mkdir(parents=True, exist_ok=True)  # an unwritable folder is reported before the evaluation
    paths = {"model": model, "images": images}
    metrics, result, columns = measure(settings, **paths, requirements=requirements, split=split, num_images=num_images)
    if out is None:
        return metrics
    if metrics.split == "test" and num_images is None:
        metrics = metrics.model_copy(update=other_splits(settings, metrics, **paths))
    write(out, metrics, result, columns, **paths, split=split)
    return metrics
