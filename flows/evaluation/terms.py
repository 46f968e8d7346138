"""The one evaluation: the terms of the bound of every image, from which all figures in bits/dim are made.

A figure of a split, the figures of several numbers of steps, the comparison of two models, what the classes are worth
and the classification of images differ only in the settings, and in what each image is given.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from flows.core.device import compile_long_work, find_device, find_precision
from flows.core.model import TrainedModel
from flows.evaluation.results import BOTH
from flows.images.image_set import Chosen
from flows.process.streams import bar
from vdm.classification import class_losses
from vdm.evaluation import BoundSettings, Evaluation, image_terms, terms_of_set
from vdm.grids import Grid

if TYPE_CHECKING:
    from flows.core.params import Evaluate

log = logging.getLogger(__name__)

Condition = Literal["class", "each class"] | None
"""What an image is given: its own class, each class in turn, or nothing."""
Advance = Callable[[range], Iterable[int]]
"""What wraps the numbers of batches: it shows them, or may raise before the next one."""


def terms(
    model: TrainedModel,
    images: Chosen,
    settings: "Evaluate",
    given: Sequence[Condition],
    parts: Sequence[range] | None = None,
    *,
    alone: bool = False,
    grid: Grid | None = None,
    progress: Advance | None = None,
) -> list[np.ndarray]:
    """Return the terms of the bound of every image once for each of `given`, at the same times and with the same noise.

    They are (3,N,T) bits/dim of `vdm.evaluation.image_terms` or, for "each class", (K,N,T) nats of
    `vdm.classification.class_losses`.  `parts` are the images to evaluate, all of them unless it is given: a process
    takes one part, and at most `num_devices` share all images.  With `alone` each image is evaluated as if it were the
    only one.  A `grid` takes the place of `settings.num_timesteps` even steps.  `progress` is a bar unless it is given.

    Raises UserError if model and images do not fit (exit 2), for invalid images (4), for labels that are missing (2) or
    damaged (5), and for a missing device (2).
    """
    require_fitting_images(model, images)
    find_device(settings.device, settings.num_devices)  # refuses what the machine does not have, before processes start
    if parts is None:
        warn_if_seen(model, images)
        parts = bound_settings(settings).shares(len(images), settings.num_devices)
    of_bound = bound_settings(settings, alone=alone, grid=grid)
    job = partial(terms_of_part, model, images, settings, of_bound, given, parts, progress)
    if len(parts) == 1:
        return job()
    from flows.training.distributed import launch

    return [np.concatenate(each, axis=1) for each in zip(*launch(job, num_processes=len(parts)), strict=True)]


def terms_of_part(
    model: TrainedModel,
    images: Chosen,
    settings: "Evaluate",
    of_bound: BoundSettings,
    given: Sequence[Condition],
    parts: Sequence[range],
    progress: Advance | None,
) -> list[np.ndarray]:
    """Return the terms of the images of this process for each of `given`."""
    from flows.training.distributed import local_rank

    rank = local_rank()
    device = find_device(settings.device, len(parts), rank)
    vdm, part = model.on(device).vdm, parts[rank]
    of_bound = replace(of_bound, precision=find_precision(settings.precision, device))
    advance = progress or bar("evaluating", shown=rank == 0)
    evaluations = sum((model.num_classes or 0) if each == "each class" else 1 for each in given)
    compile_long_work(vdm, evaluations * len(part) * settings.times_per_image // settings.batch_size)
    pixels, own = images.pixels, images.classes(model) if "class" in given else None
    return [
        class_losses(vdm, pixels, part, of_bound, progress=advance)
        if each == "each class"
        else image_terms(vdm, pixels, part, of_bound, labels=own if each == "class" else None, progress=advance)
        for each in given
    ]


def bound_settings(settings: "Evaluate", *, alone: bool = False, grid: Grid | None = None) -> BoundSettings:
    """Return the settings of the bound in float32; a `grid` takes the place of `settings.num_timesteps` even steps."""
    if grid is None and settings.num_timesteps is not None:
        grid = Grid(settings.num_timesteps)
    return BoundSettings(
        times_per_image=settings.times_per_image,
        batch_size=settings.batch_size,
        seed=settings.seed,
        grid=grid,
        alone=alone,
    )


def bounds(
    model: TrainedModel,
    images: Chosen,
    settings: "Evaluate",
    given: Sequence[Condition],
    grid: Grid | None = None,
) -> list[Evaluation]:
    """Return the bound of every image once for each of `given`.  Raises what `terms` raises."""
    return [terms_of_set(each) for each in terms(model, images, settings, given, grid=grid)]


def require_fitting_images(model: TrainedModel, images: Chosen) -> None:
    """Raise UserError if model and images do not fit each other (exit 2), or if the images are invalid (4)."""
    images.set.require_fitting(model)
    images.require_valid()


def warn_if_seen(model: TrainedModel, images: Chosen) -> None:
    """Warn if the model was fitted to the validation images and is evaluated on them."""
    if images.split == "validation" and model.fitted_to == BOTH:
        log.warning("%s was fitted to the validation images, too, so they say nothing about other images", model.name)
