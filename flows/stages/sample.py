"""The stage `sample`: draw images from the model, and compare them with the training images."""

import json
import logging
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flows.core.checkpoint import load_model, read_description
from flows.core.device import find_device
from flows.core.files import written_last
from flows.evaluation.results import SampleMetrics
from flows.images.labels import class_numbers, classes_of, given_class
from flows.images.store import ImageSet, load_images, spread
from flows.quality.measuring import measure, num_compared, require_fitting
from flows.sampling import film
from flows.sampling.drawing import draw, sampling
from flows.sampling.pictures import grid, png

if TYPE_CHECKING:
    from flows.core.params import Quality, Sample

log = logging.getLogger(__name__)

MOST_SHOWN, MOST_PAIRS = 64, 16


def sample(
    settings: "Sample", quality: "Quality", *, model: Path, features: Path, images: Path, out: Path
) -> SampleMetrics:
    """Write `num_images` samples and their metrics into `out`: all files or none.  Return the metrics.

    samples.npy     the samples (N,C,H,W), as levels; classes in turn, by default those of the test images beside them
    samples.png     the first samples
    neighbours.csv  the nearest training image of each sample that is measured, the nearest pairs first
    neighbours.png  the nearest pairs, each sample above its training image
    denoising.png   the first samples on their way from noise, see `flows.sampling.film.strip`
    metrics.json    the quality of the samples, see `flows.evaluation.results.SampleMetrics`

    Raises CheckpointError, UserError (exit 2, 4 or 5), and OSError that names the file.
    """
    out.mkdir(parents=True, exist_ok=True)  # an unwritable folder is reported before sampling
    require_fitting(settings, quality, model=model, features=features, images=images)
    if settings.classes is not None:
        class_numbers(",".join(map(str, settings.classes)), read_description(model)["model"].get("classes"), None)
    elif given_class(model, "auto", images):
        compared = num_compared(settings.num_images, load_images(images), quality.num_images)
        classes = spread(classes_of(images, "test", model), compared).tolist()
        settings = settings.model_copy(update={"classes": classes})
    drawn = draw(model, settings)
    metrics, neighbours = measure(settings, quality, drawn, model=model, features=features, images=images)
    contents: dict[str, bytes | str] = {"metrics.json": json.dumps(metrics.model_dump(), indent=2) + "\n"}
    contents |= tables_and_pictures(drawn, neighbours, load_images(images), settings.classes)
    vdm = load_model(model, find_device(settings.device))
    contents["denoising.png"] = film.encoded(film.record(vdm, settings, sampling(vdm, settings)), ".png")
    with ExitStack() as stack:
        for name, content in contents.items():
            stack.enter_context(written_last(out / name, content))
    if metrics.withheld:
        log.warning("no distances, precision and recall: %s", metrics.withheld)
    for name, figure in metrics.figures.items():
        log.info("%s: %s; held-out images: %s", name, figure.of_samples, figure.of_held_out)
    return metrics


def tables_and_pictures(
    drawn: np.ndarray, neighbours: pd.DataFrame, image_set: ImageSet, classes: list[int] | None = None
) -> dict[str, bytes]:
    """Return the content of the files about the samples except the metrics, by name."""
    shown = drawn[:MOST_SHOWN]
    if classes:
        shown = shown[np.argsort(np.resize(classes, len(shown)), kind="stable")]
    array = BytesIO()
    np.save(array, drawn)
    nearest = neighbours[:MOST_PAIRS]
    pairs = np.concatenate([drawn[nearest["sample"]], image_set.train[nearest["train_image"]]])
    return {
        "neighbours.csv": neighbours.to_csv(index=False).encode(),
        "neighbours.png": png(grid(pairs, image_set.num_levels, len(nearest))),
        "samples.png": png(grid(shown, image_set.num_levels)),
        "samples.npy": array.getvalue(),
    }
