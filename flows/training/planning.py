"""Fit a preset to a folder of images and to minutes of training."""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.core import layout
from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.model import arguments_of
from flows.core.params import Model, Params, Train
from flows.core.params_file import parse_params, read_preset
from flows.images.download import divided
from flows.images.folder import ImageFiles, class_labels, read_folder
from flows.images.image_set import FEWEST_COMPARED, SPLITS
from flows.images.splitting import parts_of, require_splits
from flows.images.transforms import levels_left
from flows.process.locks import claim
from flows.training.distributed import any_process, launch, local_rank, process_group
from flows.training.fitting import build, resolve
from vdm.choices import Split

log = logging.getLogger(__name__)

MOST_SIDE, RESIZED_SIDE = 64, 32
"""Images of one size and at most this side are trained on as they are, others are resized to the second side."""
FEWEST_STEPS, SMALLEST_BATCH = 1000, 16
"""Batches are halved down to the smallest one while the minutes have fewer steps."""
MEASURED_SECONDS = 5.0
AUTOMATIC = "".join(
    f"{section}:\n  precision: auto  # images larger than 8x8 gain from bfloat16\n"
    for section in ("train", "evaluate", "sample")
)
"""What suits the images of a folder, and not the digits."""
Values = dict[str, dict[str, tuple[Any, str]]]
"""New values of parameters, and their reasons, by section and name."""


def plan(name: str, source: Path, minutes: float) -> str:
    """Return a whole params.yaml: the preset for the images in `source`, with `minutes` of training on this machine.

    Raises UserError: exit 2 for other than positive minutes, and for a preset that does not suit the images, such as
    one with classes for images without; 4 for too few images; 6 if another training holds the device; and what
    `ImageFiles` and `divide` raise for the folder.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be above 0, got {minutes:g}", Exit.USAGE)
    preset = parse_params(read_preset(name, layout.PRESETS, AUTOMATIC), name)
    planned, shape, num_levels, classes, splits = of_images(preset, source)
    new_values = {key: value for key, (value, _) in planned["model"].items()}
    model = preset.model.model_copy(update=new_values | {"classes": classes})
    planned |= of_minutes(preset, 60 * minutes, partial(measured, model, shape, num_levels), splits)
    lines = [f"# The preset {name} for the images in {json.dumps(str(source))}: {minutes:g} min of training here"]
    for section, values in planned.items():
        before = getattr(preset, section).model_dump()
        new = [f"  {key}: {json.dumps(new)}  # {why}" for key, (new, why) in values.items() if new != before[key]]
        lines += [f"{section}:", *new] if new else []
    text = read_preset(name, layout.PRESETS, AUTOMATIC, "\n".join(lines))
    parse_params(text, name)
    return text


def of_images(preset: Params, source: Path) -> tuple[Values, tuple[int, ...], int, int | None, list[int]]:
    """Return the parameters for the images in `source`, and then their shape, levels, classes and number in each split.

    The number of classes is None for a preset without classes.
    """
    files = ImageFiles(source, grayscale=True, resized=True)
    shapes, coloured = [], False
    for _, images in files.read():
        shapes.append(images.shape[1:])
        coloured = coloured or bool((images != images[:, :1]).any())
    channels, *sides = np.array(shapes).T
    depth, size = int(channels.max()), [int(np.median(side)) for side in sides]
    data: dict[str, tuple[Any, str]] = {"name": ("image_folder", "yours"), "source": (str(source), "yours")}
    if len({*channels}) > 1 or (depth == 3 and not coloured):
        depth, data["grayscale"] = 1, (True, "images without colours are among them")
    if max(size) > MOST_SIDE or any(len({*side}) > 1 for side in sides):
        size = [max(1, round(side * min(1, RESIZED_SIDE / max(size)))) for side in size]
        ranges = " by ".join(f"{side.min()} to {side.max()}" for side in sides)
        data["resize"] = size, f"they have {ranges} pixels; larger images show more and take longer"
    parts = parts_of(source, files.names)
    planned_data = preset.data.model_copy(update={name: value for name, (value, _) in data.items()})
    counts: Counter[Split] = Counter()
    divisible = read_folder(source, planned_data)
    for part in divided(divisible, planned_data):
        counts[part.split] += len(part.images)
    require_splits(divisible, counts, planned_data)
    splits = [counts[split] for split in SPLITS]
    if splits[-1] < FEWEST_COMPARED:
        reason = f"{splits[-1]} test images, but samples are compared with at least {FEWEST_COMPARED}"
        raise UserError(f"{source}: {reason}; add images", Exit.INVALID_DATA)
    classes = preset.model.classes
    if classes is not None:
        _, names = class_labels(source, files.names, 1 if parts else 0)
        if len(names) < 2:
            reason = "the preset has classes, which need two or more folders with the images of a class each"
            raise UserError(f"{source}: {reason}; make them, or choose a preset without classes", Exit.USAGE)
        classes = len(names) if classes == "auto" else classes
    num_levels = levels_left(files.num_levels, preset.data.num_bits)
    found = f"{depth}x{size[0]}x{size[1]} with {num_levels} levels"
    log.info("%s: images of %s; %d for training, %d for validation, %d test images", visible(source), found, *splits)
    planned: Values = {"data": data, "model": {}}
    gamma_0, finest = round(-2 * math.log(3 * num_levels), 1), max(1, (num_levels - 1).bit_length() - 2)
    if gamma_0 != preset.model.gamma_0:
        reason = f"for {num_levels} levels"
        planned["model"] = {"gamma_0": (gamma_0, reason), "fourier_exponents": ([finest - 1, finest], reason)}
    return planned, (depth, *size), num_levels, classes, splits


def of_minutes(
    preset: Params, seconds: float, measure: Callable[[Train], tuple[float, float]], splits: list[int]
) -> Values:
    """Return the parameters for so many seconds of training, and a quarter each for the evaluation and for samples."""
    train, parts = preset.train, preset.train.num_devices * preset.train.accumulation
    first, step = measure(train)
    size, longest = train.batch_size, (seconds - first) / FEWEST_STEPS
    while step * size / train.batch_size > longest and size >= 2 * SMALLEST_BATCH and size // 2 % parts == 0:
        size //= 2
    if size != train.batch_size:
        first, step = measure(train.model_copy(update={"batch_size": size}))
    _, num_validation, num_test = splits
    calls = 3 * size / step  # of the network per second: a step takes as long as three for each image
    most = max(1.0, 0.05 * seconds * calls / num_validation)  # validations at two times, in a tenth of the seconds
    validations, times = math.floor(min(most, 10)), math.floor(min(max(2.0, most / 5), 8))
    steps = int((seconds - first - validations * times * num_validation / calls) / step)
    if steps < 10:
        raise UserError(f"--minutes are too few: a step takes {step:.2g} s; choose a smaller preset", Exit.USAGE)
    samples = max(FEWEST_COMPARED, int(seconds / 4 * calls / preset.sample.num_timesteps))
    samples = min(preset.sample.num_images, num_test, samples)
    evaluations = max(2, int(seconds / 4 * calls / (2 * num_test + num_validation)))
    evaluations = min(preset.evaluate.times_per_image, evaluations)
    few = "for so few minutes"
    return {
        "train": {
            "steps": (steps, f"{seconds / 60:g} min at {step:.3g} s a step, as measured"),
            "batch_size": (size, few),
            "warmup_steps": (min(train.warmup_steps, steps // 10), few),
            "ema_decay": (round(min(max(0.5, 1 - 20 / steps), 0.9999), 4), "an average over a twentieth of the steps"),
            "log_every": (max(1, steps // 50), "about 50 lines"),
            "validate_every_steps": (math.ceil(steps / validations), f"{validations} times"),
            "validation_times": (times, f"{num_validation} images, in a tenth of the minutes"),
        },
        "evaluate": {"times_per_image": (evaluations, few)},
        "sample": {"num_images": (samples, f"to compare with {num_test} test images")},
        "features": {"steps": (min(preset.features.steps, max(100, round(5 * seconds))), few)},
    }


def measured(model: Model, shape: tuple[int, ...], num_levels: int, train: Train) -> tuple[float, float]:
    """Return the seconds of the first step of a training and of a later one, measured on random images.

    Raises UserError: exit 2 for devices that are missing and images that do not suit, 6 for a device that is busy.
    """
    job = partial(time_steps, model, shape, num_levels, train)
    with claim(find_device(train.device, train.num_devices)):
        first, step = launch(job, num_processes=train.num_devices)[0] if train.num_devices > 1 else job()
    log.info("measured: %.3g s a step of %d images", step, train.batch_size)
    return first, step


def time_steps(model: Model, shape: tuple[int, ...], num_levels: int, train: Train) -> tuple[float, float]:
    """Return the seconds of the first step and the median of the later ones, in one process of the training."""
    device = find_device(train.device, train.num_devices, local_rank())
    with process_group(device):
        images = torch.randint(num_levels, (train.batch_size, *shape), dtype=torch.uint8, device=device)
        trainer = build(arguments_of(model, shape, num_levels), resolve(train, device), images, None)
        times = [time.monotonic()]
        while len(times) < 5 or not any_process(times[-1] - times[1] > MEASURED_SECONDS):
            trainer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.monotonic())
    first, *later = np.diff(times)
    return float(first), float(np.median(later[1:]))
