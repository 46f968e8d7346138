"""Fit a preset to a folder of images and to minutes of training."""

import logging
import math
import os
from functools import partial
from pathlib import Path

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.model import TrainedModel, arguments_of
from flows.core.params_file import parse_params, read_preset
from flows.training.choice import Choice, Choices, format_preset, format_yaml, take_values
from flows.training.planning_images import plan_images
from flows.training.planning_minutes import measure_steps, plan_minutes
from vdm.training.settings import TrainingSettings

log = logging.getLogger(__name__)

AUTOMATIC = "".join(
    f"{section}:\n  precision: auto  # images larger than 8x8 gain from bfloat16\n"
    for section in ("train", "evaluate", "sample")
)
"""What suits the images of a folder, and not the digits."""
TRANSFORMS = ("background", "grayscale", "gray_as_rgb", "crop", "resize", "pad", "stored_bits", "num_bits")
"""The parameters `data` that a training takes from the one that it continues."""
RECIPE = (
    "batch_size",
    "augmentation",
    "class_dropout",
    "optimizer",
    "learning_rate_decay",
    "betas",
    "weight_decay",
    "max_gradient_norm",
)
"""The parameters `train` that a training takes from the one that it continues."""
RATE_OF_ADAMW = 1e-3
"""The learning rate of networks that are not ours, unless it is given."""
SHARE_OF_THE_RATE, SHARE_OF_THE_STEPS = 0.4, 0.5
"""Of those of the training that is continued; docs/results.md has the figures."""


def plan(
    name: str,
    source: Path,
    minutes: float,
    start: TrainedModel | None = None,
    *,
    classes: bool = False,
    without_copies: bool = False,
) -> str:
    """Return a whole params.yaml: the preset for the images in `source`, with `minutes` of training on this machine.

    With `classes` the model is given the class, which is the folder, and `without_copies` leaves out exact copies.  The
    images are checked against the contract before anything is measured.  With `start`, training continues from that
    model: network and transforms are its own, the learning rate and at most as many steps suit continuing.  Warns if
    the minutes may not be what they seem: steps measured on a busy machine, or too few to see each image.

    Raises UserError: exit 2 for other than positive minutes, for a preset that does not suit the images, such as one
    with classes for images without, and for images that do not become like those of `start`; 4 for too few images, and
    for those that the contract refuses; 6 if another training holds the device; and what `Reading` and `divide`
    raise for the folder.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be above 0, got {minutes:g}", Exit.USAGE)
    texts = [AUTOMATIC, *([compose_continuation(start)] if start else [])]
    preset = parse_params(read_preset(name, None, *texts), name)
    for_images = plan_images(preset, source, start, classes=classes, without_copies=without_copies)
    num_images, num_classes = for_images.num_images, for_images.num_classes
    model = preset.model.model_copy(update=take_values(for_images.model) | {"classes": num_classes})
    measure = partial(measure_steps, arguments_of(model, for_images.image_shape, for_images.num_levels))
    enough = count_enough_steps(start) if start else None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    for_minutes = plan_minutes(preset, 60 * minutes, measure, num_images, num_classes, enough)
    load = max(load, os.getloadavg()[0])
    if load > cores:
        text = (
            "the machine was busy while steps were measured: a load of %.1f on %d cores; with another, minutes differ"
        )
        log.warning(text, load, cores)
    if for_minutes.images_seen < num_images["train"]:
        text = "%g min are less than an epoch: %d of %d training images are seen, once each; give more minutes"
        log.warning(text, minutes, for_minutes.images_seen, num_images["train"])
    sections: dict[str, Choices] = {
        "data": for_images.data,
        "model": for_images.model,
        "contract": for_images.contract,
        "train": for_minutes.train,
        "evaluate": for_minutes.evaluate,
        "sample": for_minutes.sample,
        "features": for_minutes.features,
    }
    before = preset.model_dump()
    changed = {
        section: {key: choice for key, choice in choices.items() if choice.value != before[section][key]}
        for section, choices in sections.items()
    }
    title = f"# The preset {name} for the images in {format_yaml(str(source))}: {minutes:g} min of training here"
    text = read_preset(name, None, *texts, f"{title}\n{format_preset(changed)}")
    parse_params(text, name)
    return text


def compose_continuation(start: TrainedModel) -> str:
    """Return the preset with which training continues from a model: its network, its transforms, its recipe."""
    theirs = visible(f"of {start.name}")
    network = {"classes": None} | start.description.model
    is_foreign = "network" in network
    data, train = start.parameters.get("data", {}), start.parameters.get("train", {})
    # If no rate is known: as if the model was trained like the digits, or as `flows.api` trains other networks.
    usual = RATE_OF_ADAMW if is_foreign else TrainingSettings.learning_rate
    before = train.get("learning_rate")
    rate = SHARE_OF_THE_RATE * (before if isinstance(before, int | float) else usual)
    recipe = {key: Choice(train[key], theirs) for key in RECIPE if key in train}
    why = f"{SHARE_OF_THE_RATE:g} of that {theirs}, which suits continuing"
    recipe["learning_rate"] = Choice(float(f"{rate:.3g}"), why)
    recipe["start_from"] = Choice(start.name, "")
    transforms = {key: Choice(data[key], theirs) for key in TRANSFORMS if key in data}
    of_images = "image_shape", "num_levels"
    model = {key: Choice(value, theirs) for key, value in network.items() if key not in of_images}
    text = format_preset({"data": transforms, "model": model, "train": recipe})
    if is_foreign and "optimizer" not in train:
        text += f"\n  optimizer: adamw  # {theirs}, whose network is no other's"  # in `train`, the last section
    return text


def count_enough_steps(start: TrainedModel) -> int | None:
    """Return how many steps suffice to continue from a model; None if it is not known how many it took."""
    steps = start.parameters.get("train", {}).get("steps")
    return max(1, round(steps * SHARE_OF_THE_STEPS)) if isinstance(steps, int) else None
