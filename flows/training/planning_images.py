"""What a folder of images needs: transforms, splits, limits of the contract, and what suits their levels."""

import logging
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flows.contract.findings import Findings
from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.files import scratch_folder
from flows.core.model import TrainedModel
from flows.core.params import Data, Model, Params
from flows.images.depth import choose_bits, reason_for
from flows.images.download import write_set
from flows.images.folder import PictureFiles, open_source
from flows.images.image_set import FEWEST_COMPARED, SPLITS, ImageSet, digests_of, kind, open_images, spread
from flows.images.reading import Reading, read_folder
from flows.images.source import Source
from flows.images.splitting import require_splits, split_of
from flows.training.choice import Choice, Choices, take_values
from vdm.choices import Split

log = logging.getLogger(__name__)

MOST_SIDE, RESIZED_SIDE = 64, 32
"""Images of one size and at most this side are trained on as they are, others are resized to the second side."""
OF_ANY_KIND = {"background": "white", "grayscale": True, "gray_as_rgb": False, "resize": [1, 1]}
"""Transforms with which images of all colours and sizes are read."""
MOST_STRETCH = 1.05
"""Images are cropped, not stretched, if the ratios of their sides differ by more than this factor."""
MOST_NAMED = 10
"""Classes that a line names."""
COPIES = ("leaked", "duplicates")
"""What the contract finds of images that equal another one."""
MOST_SEEDS = 100
"""Seeds of the split that are tried, one after the other, until every split has enough images."""
OF_THE_NOISE, MOST_FOR_NOISE = 0.05, 500
"""The noise at gamma_0 in units of the sensor's, and the images in which that is measured."""


class PlanOfImages(NamedTuple):
    """What is chosen for images, by section, and what they are then."""

    data: Choices
    model: Choices
    contract: Choices
    image_shape: tuple[int, int, int]
    num_levels: int
    """K."""
    num_classes: int | None
    """None for a model without classes."""
    num_images: dict[Split, int]


def plan_images(
    preset: Params, source: Path, start: TrainedModel | None, *, classes: bool, without_copies: bool = False
) -> PlanOfImages:
    """Return what suits the images in `source`; with `classes`, a model that is given their class.

    With `start`, the images become like its own.  `without_copies` leaves out images that equal another one.
    """
    from flows.contract.inspection import inspect_images  # which takes time that training on arrays does not need

    with scratch_folder() as folder:
        with open_source(source) as files:
            data = choose_transforms_like(start, preset.data, files) if start else choose_transforms(preset.data, files)
            if without_copies:
                data["without_copies"] = Choice(True, "as you said")
            transforms = preset.data.model_copy(update=take_values(data))
            images, data["split_seed"] = divide_well(files, transforms, folder)
        num_images = {split: len(images[split]) for split in SPLITS}
        ours = kind(images.image_shape, images.num_levels)
        if start and ours != (theirs := kind(start.image_shape, start.num_levels)):
            reason = f"{start.name} is a model of images of {theirs}, and those in {source} become {ours}"
            raise UserError(f"{reason}; train without --start-from", Exit.USAGE)
        counts = "%d for training, %d for validation, %d test images"
        divided = images.description.split
        log.info(f"%s: images of %s; {counts}; %s", visible(source), ours, *num_images.values(), divided)
        if num_images["validation"] < FEWEST_COMPARED:
            text = "%s: only %d validation images, which say little about which weights are best; add images"
            log.warning(text, visible(source), num_images["validation"])
        limits = choose_limits(inspect_images(preset.contract, images, None).findings, source)
        model = {} if start else choose_for_levels(preset.model, images.num_levels, images["train"])
        num_classes = count_classes(preset.model, images, source, asked=classes)
    if classes:
        model["classes"] = Choice("auto", f"{num_classes} folders")
    return PlanOfImages(data, model, limits, images.image_shape, images.num_levels, num_classes, num_images)


def count_classes(model: Model, images: ImageSet, source: Path, *, asked: bool) -> int | None:
    """Return how many classes a model of the images has; None for one without, unless it is `asked` for.

    Says which classes the images have.  Raises UserError (exit 2) if they have none, and the model needs them.
    """
    names = images.class_names or []
    num_classes = len(names) if asked or model.classes == "auto" else model.classes
    if num_classes is not None and len(names) < 2:
        who = "--classes needs" if asked else "the preset has classes, which need"
        advice = "make them, or leave out --classes" if asked else "make them, or choose a preset without classes"
        raise UserError(f"{source}: {who} two or more folders with the images of a class each; {advice}", Exit.USAGE)
    if len(names) > 1:
        labels = Counter[int]()
        for split in SPLITS:
            labels.update(images.classes(split).tolist())
        largest = [f"{names[label]} {count:,}" for label, count in labels.most_common(MOST_NAMED)]
        more = [f"and {len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
        hint = "" if num_classes else "; --classes makes a model that is given the class"
        log.info("%s: %d classes: %s%s", visible(source), len(names), ", ".join(largest + more), hint)
    return num_classes


def choose_transforms(preset: Data, files: PictureFiles) -> Choices:
    """Return the parameters `data` that make the images in the files alike."""
    reading = Reading(files, preset.model_copy(update=OF_ANY_KIND))
    shapes: list[tuple[int, ...]] = []
    colourless = 0
    for picture in reading.pictures():
        pixels = picture.pixels
        shapes += [pixels.shape[1:]] * len(pixels)
        colourless += int((pixels == pixels[:, :1]).all((1, 2, 3)).sum())
    data = choose_source(files)
    if reading.lightness:
        light = float(np.mean(reading.lightness))
        background, looks = ("white", "dark") if light < 128 else ("black", "light")
        which = f"{len(reading.lightness):,} of {len(shapes):,} are transparent in places"
        data["background"] = Choice(background, f"{which}, and {looks}: a mean level of {light:.0f}")
    data |= choose_depth(reading)
    channels, *sides = np.array(shapes).T
    if len({*channels}) > 1 or (channels.max() == 3 and colourless == len(shapes)):
        if 2 * colourless > len(shapes):
            data["grayscale"] = Choice(True, f"{colourless:,} of {len(shapes):,} images have no colours")
        else:
            data["gray_as_rgb"] = Choice(True, f"{(channels == 1).sum():,} of {len(shapes):,} images are gray")
    ratios = sides[1] / sides[0]
    if ratios.max() > MOST_STRETCH * ratios.min():
        square = np.minimum(*sides)
        left_out = 1 - (square**2).sum() / (sides[0] * sides[1]).sum()
        data["crop"] = Choice("center", f"their sides differ; it leaves out {left_out:.0%} of the pixels")
        sides = [square, square]
    size = [int(np.median(side)) for side in sides]
    if max(size) > MOST_SIDE or any(len({*side}) > 1 for side in sides):
        size = [max(1, round(side * min(1, RESIZED_SIDE / max(size)))) for side in size]
        ranges = " by ".join(" to ".join(f"{length}" for length in sorted({side.min(), side.max()})) for side in sides)
        data["resize"] = Choice(size, f"they have {ranges} pixels; larger images show more and take longer")
    return data


def choose_depth(reading: Reading) -> Choices:
    """Return the parameters `data` for the levels of files of more than 8 bits, all of which were read."""
    if reading.num_levels <= 256:
        return {}
    used, bits = reading.used, (reading.num_levels - 1).bit_length()
    left = used.left(bits - 8)
    text = "%s: levels %s; a shift to 8 bits (data.num_bits: 8) would leave %s"
    log.info(text, visible(str(reading.files.source)), used.words(reading.num_levels), f"{left:,}")
    chosen = choose_bits(used.levels, reading.num_levels)
    reason = reason_for(chosen, used.levels)
    return {name: Choice(value, reason) for name, value in chosen.items()}


def choose_transforms_like(start: TrainedModel, preset: Data, files: PictureFiles) -> Choices:
    """Return the parameters `data` that make the images in the files like those of a model.

    The `preset` has its transforms if they are known; else they follow from the shape of its images.
    """
    data = choose_source(files)
    if start.parameters:
        return data
    reading = Reading(files, preset.model_copy(update=OF_ANY_KIND))
    shapes = {picture.pixels.shape[1:] for picture in reading.pictures()}
    channels, *sides = start.image_shape
    if {tuple(shape[1:]) for shape in shapes} != {tuple(sides)}:
        data["resize"] = Choice(sides, f"as the images of {start.name}")
    if channels == 1 and {shape[0] for shape in shapes} != {1}:
        data["grayscale"] = Choice(True, f"as the images of {start.name}")
    return data


def choose_source(files: PictureFiles) -> Choices:
    """Return the parameters `data` that name the files."""
    return {"name": Choice("image_folder", "yours"), "source": Choice(str(files.source), "yours")}


def divide_well(files: PictureFiles, data: Data, folder: Path) -> tuple[ImageSet, Choice]:
    """Return the images in the files, written as a set into an empty folder, and the seed of their splits with why.

    It is the first seed from `data.split_seed` on with which each split has enough images.  Raises UserError (exit 4)
    if none has.
    """
    place, divisible = folder / "images", read_folder(files, data)
    place.mkdir()
    counts = write_set(place, divisible, data)
    seed = find_seed(place, counts, divisible, data)
    if seed != data.split_seed:
        place, divisible = folder / "again", read_folder(files, data)
        place.mkdir()
        counts = write_set(place, divisible, data.model_copy(update={"split_seed": seed}))
    if counts["test"] < FEWEST_COMPARED:
        reason = f"{counts['test']} test images, but samples are compared with at least {FEWEST_COMPARED}"
        raise UserError(f"{files.source}: {reason}; add images", Exit.INVALID_DATA)
    require_splits(divisible, counts, data)
    few = f"{data.split_seed} gives a split too few of {sum(counts.values())} images"
    return open_images(place, str(files.source)), Choice(seed, few)


def find_seed(written: Path, counts: Counter[Split], source: Source, data: Data) -> int:
    """Return the first seed from `data.split_seed` on with which each split has enough images; itself if none has.

    The set that was `written` has the digests of the images.
    """
    needed: dict[Split, int] = {"train": 1, "validation": data.validation_fraction > 0, "test": FEWEST_COMPARED}

    def suffice(counts: Counter[Split]) -> bool:
        return all(counts[split] >= least for split, least in needed.items() if split not in source.given)

    if suffice(counts):
        return data.split_seed
    images: list[tuple[bytes, Split | None]] = []
    for split in counts:
        drawn_from: Split | None = (split if split in source.given else "train") if source.given else None
        images += [(bytes(row), drawn_from) for row in np.load(digests_of(written, split))]
    for seed in range(data.split_seed + 1, data.split_seed + MOST_SEEDS):
        tried = data.model_copy(update={"split_seed": seed})
        if suffice(Counter(split_of(digest, given, source, tried) for digest, given in images)):
            return seed
    return data.split_seed


def choose_limits(findings: Findings, source: Path) -> Choices:
    """Return the limits in `contract:` that accept what `validate` would refuse, with a warning of each.

    Raises UserError (exit 4) that names everything that no limit should accept, and what to do.
    """
    failed = findings.failed("critical")
    refused = [result for result in failed if result.column in COPIES or result.accepted_by is None]
    if refused:
        advice = "leave copies out with --without-copies" if {each.column for each in refused} & {*COPIES} else ""
        reasons = "; ".join(filter(None, [*(result.words for result in refused), advice]))
        raise UserError(f"{source}: {reasons}", Exit.INVALID_DATA)
    limits: Choices = {}
    for result in failed:
        limits[f"max_{result.column}"] = Choice(result.accepted_by, f"not so here: {result.meaning}")
        text = "%s: %s; params.yaml accepts it, and results will say so"
        log.warning(text, visible(source), visible(result.words))
    return limits


def choose_for_levels(model: Model, num_levels: int, images: np.ndarray | None = None) -> Choices:
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
        noise = 0.0 if images is None else estimate_noise(spread(images, MOST_FOR_NOISE))
        if 3 * OF_THE_NOISE * noise > 1:
            gamma_0 = round(2 * math.log(2 * OF_THE_NOISE * noise / num_levels), 1)
            finest = max(1, round(math.log2(num_levels / noise)) - 2)
            reason += f", of which the noise of a pixel is {noise:.2g}"
        exponents = [*range(finest, 2, -2)][::-1] or [finest]
    return {"gamma_0": Choice(gamma_0, reason), "fourier_exponents": Choice(exponents, reason)}


def estimate_noise(images: np.ndarray) -> float:
    """Return the typical standard deviation of what is only in single pixels of images (N,C,H,W), in levels.

    It is the median of what is left of pixels without the planes through their neighbours (Immerkaer 1996).
    """
    values = np.diff(np.diff(images.astype(float), 2, axis=2), 2, axis=3)
    return float(np.median(np.abs(values)) / (6 * 0.6745)) if values.size else 0.0
