"""Divide images into training, validation and test images: by the names of folders, or by seeded draws."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.escaping import listed
from flows.images.image_set import SPLITS

if TYPE_CHECKING:
    from flows.core.params import Data

NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""The names of the parts of a folder, by split."""
TRAIN, VALIDATION, TEST = range(len(SPLITS))
"""The numbers of the splits in `Source.splits`."""


class Batch(NamedTuple):
    """Images (n,C,H,W) of one shape, in the order of their source."""

    images: np.ndarray
    num_levels: int = 256
    labels: np.ndarray | None = None
    """(n,) integers."""
    file: str | None = None
    """The name of the file that holds these images, in a folder of images."""


class Source(NamedTuple):
    """All images of a source, to be read once, and the split of each."""

    batches: Iterable[Batch]
    splits: np.ndarray
    """The number of each image's split in SPLITS, (N,) int8."""
    origin: dict[str, Any]
    """What `dataset.json` says of the source; complete when all batches were read."""


def held_out(source: str, count: int, fraction: float, split_seed: int, parameter: str) -> np.ndarray:
    """Return the numbers of a seeded share of `count` images, in the order in which they were drawn.

    Raises UserError (exit 4), which names the source and the parameter, if a fraction above 0 draws no image or every
    image.
    """
    drawn = np.random.default_rng(split_seed).permutation(count)[: round(fraction * count)]
    if fraction and not 0 < len(drawn) < count:
        reason = f"{len(drawn)} of {count} images would be held out ({parameter} {fraction:g})"
        advice = "both splits need images, so add some or change the share"
        raise UserError(f"{source}: {reason}; {advice}", Exit.INVALID_DATA)
    return drawn


def hold_out_validation(source: str, splits: np.ndarray, data: "Data") -> None:
    """Turn a seeded share of the training images into validation images.  Raises what `held_out` raises."""
    train = np.flatnonzero(splits == TRAIN)
    drawn = held_out(source, len(train), data.validation_fraction, data.split_seed, "data.validation_fraction")
    splits[train[drawn]] = VALIDATION


def division(data: "Data", given: str | None = None) -> str:
    """Describe how the images were divided; `given` says how the source divides training and test images."""
    seed = f"with seed {data.split_seed}"
    test = given or f"{data.test_fraction:g} held out {seed}"
    if not data.validation_fraction:
        return test
    return f"{test}; {data.validation_fraction:g} of the training images held out for validation {seed}"


def divide(
    root: Path, names: list[str], counts: list[int], parts: dict[str, str], data: "Data"
) -> tuple[np.ndarray, str]:
    """Return the split of every image in a folder, TRAIN, VALIDATION or TEST as (N,) int8, and how it was chosen.

    `counts` are the numbers of images in the files.  If the folder has `parts`, as `parts_of` returns them, they
    decide.  Without parts, a seeded share is held out for the test.  Without a validation part, a seeded share of the
    training images is held out for validation.  Raises UserError (exit 4).
    """
    if parts:
        splits = np.repeat(np.array([SPLITS.index(parts[part_of(name)]) for name in names], np.int8), counts)
    else:
        splits = np.full(sum(counts), TRAIN, np.int8)
        splits[held_out(str(root), len(splits), data.test_fraction, data.split_seed, "data.test_fraction")] = TEST
    given = f"by its folders: {', '.join(f'{part} for {split}' for part, split in parts.items())}" if parts else None
    num_train, num_validation, _ = np.bincount(splits, minlength=len(SPLITS)).tolist()
    if num_validation > num_train:
        reason = f"{num_validation} validation images, but only {num_train} training images"
        raise UserError(f"{root}: {reason}; exchange the folders, or move images", Exit.INVALID_DATA)
    if given and num_validation:
        return splits, given
    hold_out_validation(str(root), splits, data)
    return splits, division(data, given)


def parts_of(root: Path, names: list[str]) -> dict[str, str]:
    """Return the split of each part of a folder, such as {"train": "train", "val": "test"}; {} if it has no parts.

    A validation part is the test split if the only other part is a training part, as in ImageNet.  Raises UserError
    (exit 4) if a part is empty, and if parts do not divide the whole folder.
    """
    if root.is_file():  # its name says nothing
        return {}
    parts = {part: split_named(part) for part in sorted({part_of(name) for name in names})}
    splits = set(parts.values())
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    if empty := [folder for folder in folders if split_named(part_of(folder)) not in {"", *splits}]:
        raise UserError(f"{root}: no images in {listed(empty)}; add them, or remove that folder", Exit.INVALID_DATA)
    if splits == {""}:
        return {}
    if "train" not in splits or "" in splits or not 2 <= len(parts) == len(splits):
        train, validation, test = (", ".join(NAMES[split]) for split in SPLITS)
        found = sorted({name.partition("/")[0] for name in names})
        wanted = f"parts for training ({train}), test ({test}) and perhaps validation ({validation}), and no others"
        advice = "name one part as the source, or add, rename or remove parts"
        raise UserError(f"{root}: needs {wanted}; there is {listed(found[:5])}; {advice}", Exit.INVALID_DATA)
    return {part: split if split == "train" or "test" in splits else "test" for part, split in parts.items()}


def split_named(part: str) -> str:
    """Return the split that a part of a folder is named after, or ""."""
    return next((split for split, names in NAMES.items() if part in names), "")


def part_of(name: str) -> str:
    """Return the first part of a name, in lower case: `train` of Train/cat/1.png and of train.npy."""
    return name.partition("/")[0].lower().removesuffix(".npy")
