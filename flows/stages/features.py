"""The stage `features`: train the classifier whose features compare samples with real images."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.images.store import ImageSet, data_sha256, load_images, load_labels
from flows.quality.features import SYMMETRIES, Task, accuracy, fit, learned, save_features, share_error
from flows.validation.report import require_validated

if TYPE_CHECKING:
    from flows.core.params import Features

log = logging.getLogger(__name__)


def features(settings: "Features", *, images: Path, validation: Path, out: Path) -> None:
    """Write the classifier, fitted to the training images, with its accuracy on the test images.

    With the task `auto`, labels that it does not find clearly better than by a guess are replaced by symmetries.
    Raises UserError for labels that the set does not have (exit 2), if `validation` does not say that `images` are
    valid (4), or if it or `images` cannot be read (5); OSError that names the file.
    """
    require_validated(images, validation, needs_validation_images=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    image_set, device = load_images(images), find_device(settings.device)
    count = len(image_set.test)
    for task, train, test in tasks(images, image_set, settings.task):
        network = fit(image_set.train, train, settings, num_levels=image_set.num_levels, device=device)
        right = accuracy(network, image_set.test, test, settings.seed)
        guess = 1 / len(SYMMETRIES) if test is None else float(np.bincount(test).max() / count)
        log.info("features: %s found %.4f +- %.4f, by a guess %.4f", task, right, share_error(right, count), guess)
        if learned(right, guess, count):
            break
    described: dict[str, object] = {
        "task": task,
        "channels": image_set.image_shape[0],
        "num_levels": image_set.num_levels,
        "num_classes": network.head.out_features,
        "width": settings.width,
        "accuracy": right,
        "guess": guess,
        "data_sha256": data_sha256(images),
    }
    save_features(out, network, described)


def tasks(images: Path, image_set: ImageSet, task: str) -> list[tuple[Task, np.ndarray | None, np.ndarray | None]]:
    """Return the tasks to try in turn, with the classes of training and test images from 0; None for their symmetries.

    Raises UserError (exit 2) for the task `labels` without labels of two classes, and (exit 5) for labels that do
    not fit the images.
    """
    symmetries: tuple[Task, None, None] = ("symmetries", None, None)
    if task == "symmetries":
        return [symmetries]
    train, test = (load_labels(images, split) for split in ("train", "test"))
    if train is None or test is None or len(np.unique(train)) < 2:  # nothing can be learned from one class
        if task == "auto":
            return [symmetries]
        raise UserError(f"{images} has no labels of two classes; set features.task to auto or symmetries", Exit.USAGE)
    if (len(train), len(test)) != (len(image_set.train), len(image_set.test)):
        raise UserError(f"{images}: the number of labels is not that of the images", Exit.MISSING)
    _, numbers = np.unique(np.concatenate([train, test]), return_inverse=True)
    labels: tuple[Task, np.ndarray, np.ndarray] = ("labels", numbers[: len(train)], numbers[len(train) :])
    return [labels, symmetries] if task == "auto" else [labels]
