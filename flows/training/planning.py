"""Fit a preset to a folder of images and to minutes of training."""

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flows.contract.findings import Findings
from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.files import scratch_folder
from flows.core.model import TrainedModel, arguments_of
from flows.core.params import Data, Model, Params, Train
from flows.core.params_file import parse_params, read_preset
from flows.images.depth import advice, fitting
from flows.images.download import write_set
from flows.images.folder import ImageFiles, read_folder
from flows.images.image_set import FEWEST_COMPARED, SPLITS, ImageSet, digests_of, kind, open_images, spread
from flows.images.splitting import Source, require_splits, split_of
from flows.process.locks import claim
from flows.training.distributed import any_process, launch, local_rank, process_group
from flows.training.fitting import build, resolve
from vdm.choices import Split
from vdm.training.settings import TrainingSettings

log = logging.getLogger(__name__)

MOST_SIDE, RESIZED_SIDE = 64, 32
"""Images of one size and at most this side are trained on as they are, others are resized to the second side."""
OF_ANY_KIND = {"background": "white", "grayscale": True, "gray_as_rgb": False, "resize": [1, 1]}
"""Transforms with which images of all colours and sizes are read."""
MOST_STRETCH = 1.05
"""Images are cropped, not stretched, if the ratios of their sides differ by more than this factor."""
MOST_NAMED = 10
COPIES = ("leaked", "duplicates")
"""What the contract finds of images that equal another one."""
MOST_SEEDS = 100
"""Seeds of the split that are tried, one after the other, until every split has enough images."""
FEWEST_STEPS, SMALLEST_BATCH = 1000, 16
"""Batches are halved down to the smallest one while the minutes have fewer steps."""
RATE_OF_ADAMW = 1e-3
"""The learning rate of networks that are not ours, unless it is given."""
MEASURED_SECONDS = 5.0
"""How long steps are measured."""
FEWEST_SURPRISE = 200
"""The fewest validation images with which others are compared, if there are as many: fewer give no p."""
LEAST_STEPS = 10
"""The fewest steps that the minutes must have."""
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
SHARE_OF_THE_RATE, SHARE_OF_THE_STEPS = 0.4, 0.5
"""Of those of the training that is continued; docs/results.md has the figures."""
OF_THE_NOISE, MOST_FOR_NOISE = 0.05, 500
"""The noise at gamma_0 in units of the sensor's, and the images in which that is measured."""
Values = dict[str, dict[str, tuple[Any, str]]]
"""New values of parameters, and their reasons, by section and name."""


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
    for those that the contract refuses; 6 if another training holds the device; and what `ImageFiles` and `divide`
    raise for the folder.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be above 0, got {minutes:g}", Exit.USAGE)
    texts = [AUTOMATIC, *([continuing(start)] if start else [])]
    preset = parse_params(read_preset(name, None, *texts), name)
    found = of_images(preset, source, start, classes=classes, without_copies=without_copies)
    planned, shape, num_levels, num_classes, splits = found
    new_values = {key: value for key, (value, _) in planned["model"].items()}
    model = preset.model.model_copy(update=new_values | {"classes": num_classes})
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    measure = partial(measured, arguments_of(model, shape, num_levels))
    planned |= of_minutes(preset, 60 * minutes, measure, splits, num_classes, enough_steps(start) if start else None)
    load = max(load, os.getloadavg()[0])
    if load > cores:
        text = (
            "the machine was busy while steps were measured: a load of %.1f on %d cores; with another, minutes differ"
        )
        log.warning(text, load, cores)
    seen = planned["train"]["steps"][0] * planned["train"]["batch_size"][0]
    if seen < splits[0]:
        text = "%g min are less than an epoch: %d of %d training images are seen, once each; give more minutes"
        log.warning(text, minutes, seen, splits[0])
    lines = [f"# The preset {name} for the images in {as_yaml(str(source))}: {minutes:g} min of training here"]
    for section, values in planned.items():
        before = getattr(preset, section).model_dump()
        new = [f"  {key}: {as_yaml(new)}  # {why}" for key, (new, why) in values.items() if new != before[key]]
        lines += [f"{section}:", *new] if new else []
    text = read_preset(name, None, *texts, "\n".join(lines))
    parse_params(text, name)
    return text


def as_yaml(value: Any) -> str:
    """Return the value as YAML in one line, of printable characters: JSON, but with characters beyond U+FFFF whole."""
    return visible(json.dumps(value, ensure_ascii=False))


def continuing(start: TrainedModel) -> str:
    """Return the preset with which training continues from a model: its network, its transforms, its recipe."""
    known = start.parameters
    theirs = visible(f"of {start.name}")
    network = {"classes": None} | start.description.model
    sections = {
        "data": {key: known["data"][key] for key in TRANSFORMS if key in known.get("data", {})},
        "model": {key: value for key, value in network.items() if key not in ("image_shape", "num_levels")},
        "train": {key: known["train"][key] for key in RECIPE if key in known.get("train", {})},
    }
    lines = []
    for section, values in sections.items():
        if values or section == "train":
            lines += [f"{section}:", *(f"  {key}: {as_yaml(value)}  # {theirs}" for key, value in values.items())]
    before = known.get("train", {}).get("learning_rate")
    # Else it is as if the model was trained like the digits, or as `flows.api` trains other networks.
    usual = RATE_OF_ADAMW if "network" in start.description.model else TrainingSettings.learning_rate
    rate = SHARE_OF_THE_RATE * (before if isinstance(before, int | float) else usual)
    if "network" in start.description.model and "optimizer" not in known.get("train", {}):
        lines.append(f"  optimizer: adamw  # {theirs}, whose network is no other's")
    lines.append(f"  learning_rate: {rate:.3g}  # {SHARE_OF_THE_RATE:g} of that {theirs}, which suits continuing")
    return "\n".join([*lines, f"  start_from: {as_yaml(start.name)}"])


def enough_steps(start: TrainedModel) -> int | None:
    """Return how many steps suffice to continue from a model; None if it is not known how many it took."""
    steps = start.parameters.get("train", {}).get("steps")
    return max(1, round(steps * SHARE_OF_THE_STEPS)) if isinstance(steps, int) else None


class Found(NamedTuple):
    """Parameters for images, and what was found: the shape that they get, K, the number of classes and of each split.

    The number of classes is None for parameters without classes.
    """

    planned: Values
    shape: tuple[int, int, int]
    num_levels: int
    num_classes: int | None
    splits: list[int]


def of_images(
    preset: Params, source: Path, start: TrainedModel | None, *, classes: bool, without_copies: bool = False
) -> Found:
    """Return the parameters for the images in `source`; with `classes`, of a model that is given their class.

    With `start`, the images become like its own.  `without_copies` leaves out images that equal another one.
    """
    from flows.contract.inspection import inspect_images  # which takes time that training on arrays does not need

    files = ImageFiles(source)
    data = like_those_of(start, preset.data, files) if start else like(preset.data, files)
    if without_copies:
        data["without_copies"] = True, "as you said"
    planned: Values = {"data": data, "model": {}}
    with scratch_folder() as folder:
        images, data["split_seed"] = divided_well(files, with_values(preset.data, data), folder)
        splits = [len(images[split]) for split in SPLITS]
        found = kind(images.image_shape, images.num_levels)
        if start and found != (theirs := kind(start.image_shape, start.num_levels)):
            reason = f"{start.name} is a model of images of {theirs}, and those in {source} become {found}"
            raise UserError(f"{reason}; train without --start-from", Exit.USAGE)
        counts = "%d for training, %d for validation, %d test images"
        log.info(f"%s: images of %s; {counts}; %s", visible(source), found, *splits, images.description.split)
        if splits[1] < FEWEST_COMPARED:
            text = "%s: only %d validation images, which say little about which weights are best; add images"
            log.warning(text, visible(source), splits[1])
        planned["contract"] = of_findings(inspect_images(preset.contract, images, None).findings, source)
        labels = Counter[int]()
        for split in SPLITS if images.has_labels else ():
            labels.update(images.classes(split).tolist())
        names = images.class_names or []
        of_model = of_levels(preset.model, images.num_levels, images["train"])
    num_classes = preset.model.classes
    if classes or num_classes is not None:
        if len(names) < 2:
            who = "--classes needs" if classes else "the preset has classes, which need"
            advice = "make them, or leave out --classes" if classes else "make them, or choose a preset without classes"
            raise UserError(
                f"{source}: {who} two or more folders with the images of a class each; {advice}", Exit.USAGE
            )
        num_classes = len(names) if classes or num_classes == "auto" else num_classes
    if classes:
        planned["model"]["classes"] = "auto", f"{len(names)} folders"
    if len(names) > 1:
        largest = [f"{names[label]} {count:,}" for label, count in labels.most_common(MOST_NAMED)]
        more = [f"and {len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
        how = "" if num_classes else "; --classes makes a model that is given the class"
        log.info("%s: %d classes: %s%s", visible(source), len(names), ", ".join(largest + more), how)
    if not start:
        planned["model"] |= of_model
    return Found(planned, images.image_shape, images.num_levels, num_classes, splits)


def divided_well(files: ImageFiles, data: Data, folder: Path) -> tuple[ImageSet, tuple[int, str]]:
    """Return the images in the files, written as a set into an empty folder, and the seed of their splits with why.

    It is the first seed from `data.split_seed` on with which each split has enough images.  Raises UserError (exit 4)
    if none has.
    """
    place, divisible = folder / "images", read_folder(files, data)
    place.mkdir()
    counts = write_set(place, divisible, data)
    seed = suitable_seed(place, counts, divisible, data)
    if seed != data.split_seed:
        place, divisible = folder / "again", read_folder(files, data)
        place.mkdir()
        counts = write_set(place, divisible, data.model_copy(update={"split_seed": seed}))
    if counts["test"] < FEWEST_COMPARED:
        reason = f"{counts['test']} test images, but samples are compared with at least {FEWEST_COMPARED}"
        raise UserError(f"{files.source}: {reason}; add images", Exit.INVALID_DATA)
    require_splits(divisible, counts, data)
    few = f"{data.split_seed} gives a split too few of {sum(counts.values())} images"
    return open_images(place, str(files.source)), (seed, few)


def suitable_seed(written: Path, counts: Counter[Split], source: Source, data: Data) -> int:
    """Return the first seed from `data.split_seed` on with which each split has enough images; itself if none has.

    The set that was `written` has the digests of the images.
    """
    needed: dict[Split, int] = {"train": 1, "validation": data.validation_fraction > 0, "test": FEWEST_COMPARED}

    def enough(counts: Counter[Split]) -> bool:
        return all(counts[split] >= least for split, least in needed.items() if split not in source.given)

    if enough(counts):
        return data.split_seed
    images: list[tuple[bytes, Split | None]] = []
    for split in counts:
        drawn_from: Split | None = (split if split in source.given else "train") if source.given else None
        images += [(bytes(row), drawn_from) for row in np.load(digests_of(written, split))]
    for seed in range(data.split_seed + 1, data.split_seed + MOST_SEEDS):
        tried = data.model_copy(update={"split_seed": seed})
        if enough(Counter(split_of(digest, given, source, tried) for digest, given in images)):
            return seed
    return data.split_seed


def of_findings(findings: Findings, source: Path) -> dict[str, tuple[Any, str]]:
    """Return the limits in `contract:` that accept what `validate` would refuse, with a warning of each.

    Raises UserError (exit 4) that names everything that no limit should accept, and what to do.
    """
    failed = findings.failed("critical")
    refused = [result for result in failed if result.column in COPIES or result.accepted_by is None]
    if refused:
        advice = "leave copies out with --without-copies" if {each.column for each in refused} & {*COPIES} else ""
        reasons = "; ".join(filter(None, [*(result.words for result in refused), advice]))
        raise UserError(f"{source}: {reasons}", Exit.INVALID_DATA)
    limits: dict[str, tuple[Any, str]] = {}
    for result in failed:
        limits[f"max_{result.column}"] = result.accepted_by, f"not so here: {result.meaning}"
        text = "%s: %s; params.yaml accepts it, and results will say so"
        log.warning(text, visible(source), visible(result.words))
    return limits


def with_values(data: Data, values: dict[str, tuple[Any, str]]) -> Data:
    """Return the parameters `data` with new values, each of which has a reason beside it."""
    return data.model_copy(update={name: value for name, (value, _) in values.items()})


def of_levels(model: Model, num_levels: int, images: np.ndarray | None = None) -> dict[str, tuple[Any, str]]:
    """Return the parameters `model` for images of so many levels; {} if they are those of the preset.

    Above 256 levels they suit the noise of the sensor in the `images` (N,C,H,W), where that is coarser than the levels.
    What is finer than `OF_THE_NOISE` of it hardly tells a level from its neighbours: on a radiograph of 15 bits, whose
    noise is 63 levels, 350 steps reached 9.3 instead of 9.9 bits/dim.
    """
    gamma_0, finest = round(-2 * math.log(3 * num_levels), 1), max(1, (num_levels - 1).bit_length() - 2)
    if gamma_0 == model.gamma_0:
        return {}
    exponents, reason = [finest - 1, finest], f"for {num_levels} levels"
    if num_levels > 256:
        noise = 0.0 if images is None else noise_of(spread(images, MOST_FOR_NOISE))
        if 3 * OF_THE_NOISE * noise > 1:
            gamma_0 = round(2 * math.log(2 * OF_THE_NOISE * noise / num_levels), 1)
            finest = max(1, round(math.log2(num_levels / noise)) - 2)
            reason += f", of which the noise of a pixel is {noise:.2g}"
        exponents = [*range(finest, 2, -2)][::-1] or [finest]
    return {"gamma_0": (gamma_0, reason), "fourier_exponents": (exponents, reason)}


def noise_of(images: np.ndarray) -> float:
    """Return the typical standard deviation of what is only in single pixels of images (N,C,H,W), in levels.

    It is the median of what is left of pixels without the planes through their neighbours (Immerkaer 1996).
    """
    values = np.diff(np.diff(images.astype(float), 2, axis=2), 2, axis=3)
    return float(np.median(np.abs(values)) / (6 * 0.6745)) if values.size else 0.0


def like_those_of(start: TrainedModel, stated: Data, found: ImageFiles) -> dict[str, tuple[Any, str]]:
    """Return the parameters `data` that make the images in the files like those of a model.

    Its transforms are `stated` if they are known; else they follow from the shape of its images.
    """
    data: dict[str, tuple[Any, str]] = {"name": ("image_folder", "yours"), "source": (str(found.source), "yours")}
    if start.parameters:
        return data | {name: (getattr(stated, name), "") for name in TRANSFORMS}
    files = ImageFiles(found, stated.model_copy(update=OF_ANY_KIND))
    shapes = {each.images.shape[1:] for each in files.read()}
    channels, *sides = start.image_shape
    if {tuple(shape[1:]) for shape in shapes} != {tuple(sides)}:
        data["resize"] = sides, f"as the images of {start.name}"
    if channels == 1 and {shape[0] for shape in shapes} != {1}:
        data["grayscale"] = True, f"as the images of {start.name}"
    return data


def like(preset: Data, found: ImageFiles) -> dict[str, tuple[Any, str]]:
    """Return the parameters `data` that make the images in the files alike."""
    files = ImageFiles(found, preset.model_copy(update=OF_ANY_KIND))
    shapes: list[tuple[int, ...]] = []
    colourless = 0
    for _, images, _ in files.read():
        shapes += [images.shape[1:]] * len(images)
        colourless += int((images == images[:, :1]).all((1, 2, 3)).sum())
    data: dict[str, tuple[Any, str]] = {"name": ("image_folder", "yours"), "source": (str(found.source), "yours")}
    if files.lightness:
        light = float(np.mean(files.lightness))
        background, looks = ("white", "dark") if light < 128 else ("black", "light")
        which = f"{len(files.lightness):,} of {len(shapes):,} are transparent in places"
        data["background"] = background, f"{which}, and {looks}: a mean level of {light:.0f}"
    data |= of_depth(files)
    channels, *sides = np.array(shapes).T
    if len({*channels}) > 1 or (channels.max() == 3 and colourless == len(shapes)):
        if 2 * colourless > len(shapes):
            data["grayscale"] = (True, f"{colourless:,} of {len(shapes):,} images have no colours")
        else:
            data["gray_as_rgb"] = (True, f"{(channels == 1).sum():,} of {len(shapes):,} images are gray")
    ratios = sides[1] / sides[0]
    if ratios.max() > MOST_STRETCH * ratios.min():
        square = np.minimum(*sides)
        left_out = 1 - (square**2).sum() / (sides[0] * sides[1]).sum()
        data["crop"] = "center", f"their sides differ; it leaves out {left_out:.0%} of the pixels"
        sides = [square, square]
    size = [int(np.median(side)) for side in sides]
    if max(size) > MOST_SIDE or any(len({*side}) > 1 for side in sides):
        size = [max(1, round(side * min(1, RESIZED_SIDE / max(size)))) for side in size]
        ranges = " by ".join(" to ".join(f"{length}" for length in sorted({side.min(), side.max()})) for side in sides)
        data["resize"] = size, f"they have {ranges} pixels; larger images show more and take longer"
    return data


def of_depth(files: ImageFiles) -> dict[str, tuple[Any, str]]:
    """Return the parameters `data` for the levels of files of more than 8 bits, all of which were read."""
    if files.num_levels <= 256:
        return {}
    used, bits = files.used, (files.num_levels - 1).bit_length()
    found = fitting(used.levels, files.num_levels)
    left = used.left(bits - 8)
    text = "%s: levels %s; a shift to 8 bits (data.num_bits: 8) would leave %s"
    log.info(text, visible(str(files.source)), used.words(files.num_levels), f"{left:,}")
    return {name: (value, advice(used.levels, files.num_levels).partition(":")[0]) for name, value in found.items()}


def of_minutes(
    preset: Params,
    seconds: float,
    measure: Callable[[Train], tuple[float, float]],
    splits: list[int],
    num_classes: int | None = None,
    enough: int | None = None,
) -> Values:
    """Return the parameters for so many seconds of training, and a quarter each for other computations.

    These are the evaluation, the samples and, of a model with classes, the classification.  There are at most `enough`
    steps.
    """
    train = preset.train
    size, first, step = pace(train, seconds, measure)
    _, num_validation, num_test = splits
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
    evaluate: dict[str, tuple[Any, str]] = {"times_per_image": (evaluations, few), "surprise_images": (compared, few)}
    if num_classes is not None:
        at_once = int(seconds / 4 * calls / num_classes)  # images at one time each
        class_images = num_test if preset.evaluate.class_images is None else preset.evaluate.class_images
        class_images = min(class_images, num_test, max(1, at_once // 2))
        class_times = min(preset.evaluate.class_times, max(2, at_once // max(1, class_images)))
        evaluate |= {"class_images": (class_images, few), "class_times": (class_times, few)}
    return {
        "train": {
            "steps": (steps, reason),
            "batch_size": (size, few),
            **of_steps(train, steps),
            "validate_every_steps": (math.ceil(steps / validations), f"{validations} times"),
            "validation_times": (times, f"{num_validation} images, in a tenth of the minutes"),
        },
        "evaluate": evaluate,
        "sample": {"num_images": (samples, f"to compare with {num_test} test images")},
        "features": {"steps": (min(preset.features.steps, max(100, round(5 * seconds))), few)},
    }


class Pace(NamedTuple):
    """How fast a training is: the images of a step, the seconds of the first step, and those of a later one."""

    batch_size: int
    first: float
    step: float


def pace(train: Train, seconds: float, measure: Callable[[Train], tuple[float, float]]) -> Pace:
    """Return the pace of a training of so many seconds, with batches small enough for `FEWEST_STEPS`."""
    parts = train.num_devices * train.accumulation
    first, step = measure(train)
    size, longest = train.batch_size, (seconds - first) / FEWEST_STEPS
    while step * size / train.batch_size > longest and size >= 2 * SMALLEST_BATCH and size // 2 % parts == 0:
        size //= 2
    if size != train.batch_size:
        first, step = measure(train.model_copy(update={"batch_size": size}))
    return Pace(size, first, step)


def of_steps(train: Train, steps: int) -> dict[str, tuple[Any, str]]:
    """Return the parameters `train` that depend on the number of steps."""
    return {
        "warmup_steps": (min(train.warmup_steps, steps // 10), "at most a tenth of the steps"),
        "ema_decay": (round(min(max(0.5, 1 - 20 / steps), 0.9999), 4), "an average over a twentieth of the steps"),
        "log_every": (max(1, steps // 50), "about 50 lines"),
    }


def measured(config: dict[str, Any], train: Train) -> tuple[float, float]:
    """Return the seconds of the first step of a training and of a later one, measured on random images.

    Raises UserError: exit 2 for devices that are missing and images that do not suit, 6 for a device that is busy.
    """
    job = partial(time_steps, config, train, MEASURED_SECONDS)
    with claim(find_device(train.device, train.num_devices)):
        first, step = launch(job, num_processes=train.num_devices)[0] if train.num_devices > 1 else job()
    log.info("measured: %.3g s a step of %d images", step, train.batch_size)
    return first, step


def time_steps(config: dict[str, Any], train: Train, seconds: float) -> tuple[float, float]:
    """Return the seconds of the first step and the median of the later ones, in one process of the training.

    `config` are the arguments of the model.  Later steps are measured for so many seconds, and at least three.
    """
    device = find_device(train.device, train.num_devices, local_rank())
    with process_group(device):
        shape = train.batch_size, *config["image_shape"]
        images = torch.randint(config["num_levels"], shape, dtype=torch.int32, device=device)
        trainer = build(config, resolve(train, device), images, None)
        times = [time.monotonic()]
        while len(times) < 5 or not any_process(times[-1] - times[1] > seconds):
            trainer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.monotonic())
    first, *later = np.diff(times)
    return float(first), float(np.median(later[1:]))
