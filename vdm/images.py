"""An image set on disk: `train.npy` and `test.npy`, (N,C,H,W) uint8 levels, and `dataset.json` that describes them.

The arrays are mapped into memory, not read, and never unpickled.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "test")
DESCRIPTION = "dataset.json"
REQUIRED = {"name", "num_levels", "image_shape", "num_train", "num_test"}


class ImageSetError(ValueError):
    """A file of the image set is missing or damaged."""


class ImageSet(NamedTuple):
    """The mapped arrays with what `dataset.json` says of them."""

    description: dict[str, Any]
    train: np.ndarray
    test: np.ndarray

    @property
    def num_levels(self) -> int:
        """K: pixels are 0..K-1."""
        return int(self.description["num_levels"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.description["image_shape"]
        return channels, height, width


def save_images(folder: Path, splits: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """Write both splits (N,C,H,W) and the description, which comes last: without it there is no set."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        np.save(folder / f"{split}.npy", splits[split], allow_pickle=False)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")


def load_images(folder: Path) -> ImageSet:
    """The image set in `folder`.  Raises ImageSetError."""
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError) as error:
        raise ImageSetError(f"{folder / DESCRIPTION}: missing or damaged: {error}") from error
    if not isinstance(description, dict) or not description.keys() >= REQUIRED:
        raise ImageSetError(f"{folder / DESCRIPTION}: must be an object with {', '.join(sorted(REQUIRED))}")
    shape = description["image_shape"]
    sizes = [*shape, description["num_levels"]] if isinstance(shape, list) else []
    counts = [description["num_train"], description["num_test"]]
    if len(sizes) != 4 or not all(map(is_count, [*sizes, *counts])) or 0 in sizes:
        raise ImageSetError(f"{folder / DESCRIPTION}: image_shape must be [C, H, W], and levels and counts integers")
    return ImageSet(description, *(load_array(folder / f"{split}.npy") for split in SPLITS))


def is_count(value: Any) -> bool:
    """Whether it is an integer from 0 to 2^32."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**32


def load_array(path: Path) -> np.ndarray:
    """The array at `path`, mapped read-only.  Raises ImageSetError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise ImageSetError(f"{path}: missing or damaged: {error}") from error
    if array.ndim == 0 or array.dtype.kind not in "buif":
        raise ImageSetError(f"{path}: holds {array.dtype} of {array.ndim} dimensions, not images")
    return np.asanyarray(array)


def data_sha256(folder: Path) -> str:
    """One digest for what a likelihood depends on: the bytes of both arrays and the number of levels.

    Raises ImageSetError.
    """
    digest = hashlib.sha256(f"num_levels={load_images(folder).num_levels}\n".encode())
    for split in SPLITS:
        with (folder / f"{split}.npy").open("rb") as file:
            digest.update(f"{split} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
