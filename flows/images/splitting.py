"""Divide images into training, validation and test images: by the names of folders, or by seeded draws."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flows.core.errors import Exit, UserError
from flows.images.scanning import listed
from flows.images.store import SPLITS

if TYPE_CHECKING:
    from flows.core.params import Data

NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""The names of the parts of a folder, by split."""
TRAIN, VALIDATION, TEST = range(len(SPLITS))
"""The numbers of the splits in the result of `divide`."""


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
    origin: Callable[[], dict[str, Any]]
    """Return what `dataset.json` says of the source, once all batches were read."""


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


def divide(root: Path, names: list[str], counts: list[int], data: "Data") -> np.ndarray:
    """Return the split of every image in a folder as a number: TRAIN, VALIDATION or TEST, (N,) int8.

    `counts` are the numbers of images in the files.  If the folder has parts, such as `train` and `test`, they decide.
    Without parts, a seeded share is held out for the test.  Without a validation part, a seeded share of the training
    images is held out for validation.  Raises UserError (exit 4).
    """
    given = parts_of(names)
    if root.is_dir():  # the name of a single file says nothing
        require_parts(root, names, given)
    if given:
        chosen = np.repeat(np.array([SPLITS.index(given[part_of(name)]) for name in names], dtype=np.int8), counts)
    else:
        chosen = np.full(sum(counts), TRAIN, dtype=np.int8)
        chosen[held_out(str(root), len(chosen), data.test_fraction, data.split_seed, "data.test_fraction")] = TEST
    num_train, num_validation, _ = np.bincount(chosen, minlength=len(SPLITS)).tolist()
    if num_validation > num_train:
        reason = f"{num_validation} validation images, but only {num_train} training images"
        raise UserError(f"{root}: {reason}; exchange the folders, or move images", Exit.INVALID_DATA)
    if not num_validation:
        hold_out_validation(str(root), chosen, data.validation_fraction, data.split_seed)
    return chosen


def hold_out_validation(source: str, splits: np.ndarray, fraction: float, split_seed: int) -> None:
    """Turn a seeded share of the training images into validation images.  Raises what `held_out` raises."""
    train = np.flatnonzero(splits == TRAIN)
    drawn = held_out(source, len(train), fraction, split_seed, "data.validation_fraction")
    splits[train[drawn]] = VALIDATION


def division(data: "Data", given: str | None = None) -> str:
    """Describe how the images were divided; `given` says how the source divides training and test images."""
    seed = f"with seed {data.split_seed}"
    test = given or f"{data.test_fraction:g} held out {seed}"
    if not data.validation_fraction:
        return test
    return f"{test}; {data.validation_fraction:g} of the training images held out for validation {seed}"


def parts_of(names: list[str]) -> dict[str, str]:
    """Return the split of each part of a folder, such as {"train": "train", "val": "test"}.

    A validation part is the test split if the only other part is a training part, as in ImageNet.  Return {} unless
    there is a training part, a part to test on, at most one part for each split, and nothing else.
    """
    given = {part: split_named(part) for part in sorted({part_of(name) for name in names})}
    splits = set(given.values())
    if len(splits) < len(given) or len(given) < 2 or "train" not in splits or "" in splits:
        return {}
    return {part: split if split == "train" or "test" in splits else "test" for part, split in given.items()}


def require_parts(root: Path, names: list[str], given: dict[str, str]) -> None:
    """Raise UserError (exit 4) if a part is named like a split, but is empty, or the parts do not divide the folder."""
    parts = sorted({name.partition("/")[0] for name in names})
    full = {split_named(part_of(part)) for part in parts}
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    if empty := [part for part in folders if split_named(part_of(part)) not in {"", *full}]:
        raise UserError(f"{root}: no images in {listed(empty)}; add them, or remove that folder", Exit.INVALID_DATA)
    if not given and full != {""}:
        train, validation, test = (", ".join(NAMES[split]) for split in SPLITS)
        raise UserError(
            f"{root}: its parts must be for training ({train}), for the test ({test}), perhaps for validation "
            f"({validation}), and nothing else; there is {listed(parts[:5])}; name one part as the source, or add, "
            "rename or remove parts",
            Exit.INVALID_DATA,
        )


def split_named(part: str) -> str:
    """Return the split that a part of a folder is named after, or ""."""
    return next((split for split, names in NAMES.items() if part in names), "")


def part_of(name: str) -> str:
    """Return the first part of a name, in lower case: `train` of Train/cat/1.png and of train.npy."""
    return name.partition("/")[0].lower().removesuffix(".npy")
