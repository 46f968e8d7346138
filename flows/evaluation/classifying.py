"""Classify images by their likelihood given each class."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.core.checkpoint import load_model, model_sha256, read_description
from flows.core.device import find_device, find_precision
from flows.core.documents import Count, Document, Sha256
from flows.evaluation.results import Figure
from flows.images.labels import given_class
from vdm.classification import Classified, class_losses, classified

if TYPE_CHECKING:
    from flows.core.params import Evaluate

SURE = 3
"""The standard errors by which the two best classes of an image are apart if it is sure."""
MOST_DOUBLINGS = 4
"""How often an image that is not sure gets twice as many noise levels."""


class ClassifiedImage(Document):
    """An image: the log-likelihood given each class, up to a constant and at most the true one, and what follows.

    The classes are equally likely at first.  The margin between the two best classes is in nats, as the likelihoods.
    """

    image: Count
    best: Count
    name: str | None
    times: Count
    margin: Figure
    margin_standard_error: Figure
    log_likelihoods: list[Figure]
    probabilities: list[Figure]


class Classification(Document):
    """The most likely class of each image, at common noise levels and with common noise for all classes."""

    images: list[ClassifiedImage]
    seed: Count
    num_timesteps: Count | None
    model_sha256: Sha256


def classify(settings: "Evaluate", pixels: np.ndarray, *, model: Path, until_sure: bool) -> Classification:
    """Classify images (N,C,H,W) of the model at `class_times` noise levels each.

    With `until_sure`, each image whose two best classes are less than `SURE` standard errors apart is classified anew
    at twice as many, up to `MOST_DOUBLINGS` times.  Raises UserError (exit 2) for a model
    without classes, and what `load_model` raises.
    """
    given_class(model, "class")
    names, device = read_description(model).get("class_names"), find_device(settings.device)
    vdm = load_model(model, device)
    options: dict[str, Any] = settings.model_dump(include={"seed", "num_timesteps", "batch_size"})
    options["precision"] = find_precision(settings.precision, device)

    def found(share: range, times: int) -> Classified:
        return classified(class_losses(vdm, pixels, share, times_per_image=times, **options))

    result, spent = found(range(len(pixels)), settings.class_times), np.full(len(pixels), settings.class_times)
    for _ in range(MOST_DOUBLINGS if until_sure else 0):
        unsure = np.flatnonzero(result.margin < SURE * result.margin_standard_error)
        spent[unsure] *= 2
        for image in unsure.tolist():
            result = result.replaced(image, found(range(image, image + 1), int(spent[image])))
    columns = result.best, spent, result.margin, result.margin_standard_error, result.log_likelihoods
    rows = zip(*(column.tolist() for column in (*columns, result.probabilities)), strict=True)
    keys = ("best", "times", "margin", "margin_standard_error", "log_likelihoods", "probabilities")
    images = [dict(zip(keys, row, strict=True)) | {"image": number} for number, row in enumerate(rows)]
    return Classification(
        images=[ClassifiedImage(**image, name=names[image["best"]] if names else None) for image in images],
        seed=settings.seed,
        num_timesteps=settings.num_timesteps,
        model_sha256=model_sha256(model),
    )
