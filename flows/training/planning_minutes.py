"""What minutes of training allow: steps are measured, and they and the other computations share the time."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.core.network_code import HERE
from flows.core.networks import NetworkSource
from flows.core.params import Params, Train
from flows.images.image_set import FEWEST_COMPARED
from flows.process.locks import claim
from flows.training.choice import Choice, Choices
from flows.training.distributed import any_process, launch, local_rank, process_group
from flows.training.fitting import build, resolve
from vdm.choices import Split

log = logging.getLogger(__name__)

FEWEST_STEPS, SMALLEST_BATCH = 1000, 16
"""Batches are halved down to the smallest one while the minutes have fewer steps."""
LEAST_STEPS = 10
"""The fewest steps that the minutes must have."""
MEASURED_SECONDS = 5.0
"""How long steps are measured."""
FEWEST_SURPRISE = 200
"""The fewest validation images with which others are compared, if there are as many: fewer give no p."""


class PlanOfMinutes(NamedTuple):
    """What is chosen for some minutes of training, by section."""

    train: Choices
    evaluate: Choices
    sample: Choices
    features: Choices

    @property
    def images_seen(self) -> int:
        """How many images the training sees, each as often as it is drawn."""
        return int(self.train["steps"].value * self.train["batch_size"].value)


def plan_minutes(
    preset: Params,
    seconds: float,
    measure: Callable[[Train], tuple[float, float]],
    num_images: dict[Split, int],
    num_classes: int | None = None,
    enough: int | None = None,
) -> PlanOfMinutes:
    """Return what suits so many seconds of training, and a quarter each for other computations.

    These are the evaluation, the samples and, of a model with classes, the classification.  There are at most `enough`
    steps.
    """
    size, first, step = find_pace(preset.train, seconds, measure)
    num_validation, num_test = num_images["validation"], num_images["test"]
    calls = 3 * size / step  # of the network per second: a step takes as long as three for each image
    most = max(1.0, 0.05 * seconds * calls / num_validation)  # validations at two times, in a tenth of the seconds
    validations, times = math.floor(min(most, 10)), math.floor(min(max(2.0, most / 5), 8))
    steps = int((seconds - first - validations * times * num_validation / calls) / step)
    if steps < LEAST_STEPS:
        raise UserError(f"--minutes are too few: a step takes {step:.2g} s; choose a smaller preset", Exit.USAGE)
    reason = f"{seconds / 60:g} min at {step:.3g} s a step, as measured"
    if enough and enough < steps:
        steps, reason = enough, f"enough to continue, at {step:.3g} s a step, as measured"
    samples = max(FEWEST_COMPARED, int(seconds / 4 * calls / preset.sample.num_timesteps))
    samples = min(preset.sample.num_images, num_test, samples)
    evaluated = (2 if num_classes is None else 3) * num_test + num_validation  # also without the class
    evaluations = max(2, int(seconds / 4 * calls / evaluated))
    evaluations = min(preset.evaluate.times_per_image, evaluations)
    few = "for so few minutes"
    compared = int(seconds / 10 * calls / (2 * preset.evaluate.surprise_levels))
    compared = min(preset.evaluate.surprise_images, max(FEWEST_SURPRISE, compared))
    evaluate = {"times_per_image": Choice(evaluations, few), "surprise_images": Choice(compared, few)}
    if num_classes is not None:
        at_once = int(seconds / 4 * calls / num_classes)  # images at one time each
        class_images = num_test if preset.evaluate.class_images is None else preset.evaluate.class_images
        class_images = min(class_images, num_test, max(1, at_once // 2))
        class_times = min(preset.evaluate.class_times, max(2, at_once // max(1, class_images)))
        evaluate["class_images"] = Choice(class_images, few)
        evaluate["class_times"] = Choice(class_times, few)
    train = {
        "steps": Choice(steps, reason),
        "batch_size": Choice(size, few),
        **choose_for_steps(preset.train, steps),
        "validate_every_steps": Choice(math.ceil(steps / validations), f"{validations} times"),
        "validation_times": Choice(times, f"{num_validation} images, in a tenth of the minutes"),
    }
    sample = {"num_images": Choice(samples, f"to compare with {num_test} test images")}
    features = {"steps": Choice(min(preset.features.steps, max(100, round(5 * seconds))), few)}
    return PlanOfMinutes(train, evaluate, sample, features)


def choose_for_steps(train: Train, steps: int) -> Choices:
    """Return the parameters `train` that depend on the number of steps."""
    return {
        "warmup_steps": Choice(min(train.warmup_steps, steps // 10), "at most a tenth of the steps"),
        "ema_decay": Choice(
            round(min(max(0.5, 1 - 20 / steps), 0.9999), 4), "an average over a twentieth of the steps"
        ),
        "log_every": Choice(max(1, steps // 50), "about 50 lines"),
    }


class Pace(NamedTuple):
    """How fast a training is: the images of a step, the seconds of the first step, and those of a later one."""

    batch_size: int
    first: float
    step: float


def find_pace(train: Train, seconds: float, measure: Callable[[Train], tuple[float, float]]) -> Pace:
    """Return the pace of a training of so many seconds, with batches small enough for `FEWEST_STEPS`."""
    parts = train.num_devices * train.accumulation
    first, step = measure(train)
    size, longest = train.batch_size, (seconds - first) / FEWEST_STEPS
    while step * size / train.batch_size > longest and size >= 2 * SMALLEST_BATCH and size // 2 % parts == 0:
        size //= 2
    if size != train.batch_size:
        first, step = measure(train.model_copy(update={"batch_size": size}))
    return Pace(size, first, step)


def measure_steps(config: dict[str, Any], train: Train) -> tuple[float, float]:
    """Return the seconds of the first step of a training and of a later one, measured on random images.

    Raises UserError: exit 2 for devices that are missing and images that do not suit, 6 for a device that is busy.
    """
    job = partial(time_steps, config, train, MEASURED_SECONDS)
    with claim(find_device(train.device, train.num_devices)):
        first, step = launch(job, num_processes=train.num_devices)[0] if train.num_devices > 1 else job()
    log.info("measured: %.3g s a step of %d images", step, train.batch_size)
    return first, step


def time_steps(
    config: dict[str, Any], train: Train, seconds: float, source: NetworkSource = HERE
) -> tuple[float, float]:
    """Return the seconds of the first step and the median of the later ones, in one process of the training.

    `config` are the arguments of the model.  Later steps are measured for so many seconds, and at least three.
    """
    device = find_device(train.device, train.num_devices, local_rank())
    with process_group(device):
        shape = train.batch_size, *config["image_shape"]
        images = torch.randint(config["num_levels"], shape, dtype=torch.int32, device=device)
        trainer = build(config, resolve(train, device), images, None, source=source)
        times = [time.monotonic()]
        while len(times) < 5 or not any_process(times[-1] - times[1] > seconds):
            trainer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.monotonic())
    first, *later = np.diff(times)
    return float(first), float(np.median(later[1:]))
