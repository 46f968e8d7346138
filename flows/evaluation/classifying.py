"""Classify images by their likelihood given each class."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.core.checkpoint import model_sha256, read_description
from flows.core.device import find_device, find_precision
from flows.core.documents import Count, Document, Sha256
from flows.evaluation.bound import load_fitting, losses_of_classes
from flows.evaluation.results import Figure
from flows.images.labels import given_class
from flows.images.store import read_file_names
from vdm.choices import Split
from vdm.classification import class_losses, classified

if TYPE_CHECKING:
    from flows.core.params import Evaluate

SURE, MOST_DOUBLINGS = 3, 4


class Classification(Document):
    """Lists with an entry for each image: its best class, and the log-likelihood given each class, up to a constant.

    The classes are equally likely at first.  The margin between the two best ones is in nats, as the likelihoods.
    """

    files: list[str] | None
    """The file of each image, if the set was made of files."""
    best: list[Count]
    names: list[str] | None
    times: list[Count]
    margin: list[Figure]
    margin_standard_error: list[Figure]
    log_likelihoods: list[list[Figure]]
    probabilities: list[list[Figure]]
    seed: Count
    num_timesteps: Count | None
    model_sha256: Sha256


def classify(settings: "Evaluate", images: Path, *, model: Path, split: Split, until_sure: bool) -> Classification:
    """Classify the images of a split at `class_times` noise levels each.

    With `until_sure`, each image whose two best classes are less than `SURE` standard errors apart is classified anew
    at twice as many, up to `MOST_DOUBLINGS` times.  Raises UserError (exit 2) for a model without classes, and what
    `flows.evaluation.bound.in_shares` raises.
    """
    given_class(model, "class", images)
    result = classified(losses_of_classes(settings, model, images, split))
    times = np.full(len(result.best), settings.class_times)
    if until_sure:
        vdm, pixels = load_fitting(model, images, device := find_device(settings.device), split)
        options: dict[str, Any] = settings.model_dump(include={"seed", "num_timesteps", "batch_size"})
        options["precision"] = find_precision(settings.precision, device)
        for _ in range(MOST_DOUBLINGS):
            unsure = np.flatnonzero(result.margin < SURE * result.margin_standard_error)
            times[unsure] *= 2
            for image in unsure.tolist():
                share, options["times_per_image"] = range(image, image + 1), int(times[image])
                for whole, one in zip(result, classified(class_losses(vdm, pixels, share, **options)), strict=True):
                    whole[image] = one[0]
    files = read_file_names(images, split, range(len(times)))
    columns = {"times": times, **result._asdict()}
    names, best = read_description(model).get("class_names"), result.best.tolist()
    return Classification(
        files=list(files.values()) or None,
        names=[names[number] if number < len(names) else str(number) for number in best] if names else None,
        seed=settings.seed,
        num_timesteps=settings.num_timesteps,
        model_sha256=model_sha256(model),
        **{key: columns[key].tolist() for key in columns.keys() & Classification.model_fields.keys()},
    )
