"""An image set on disk: `train.npy` and `test.npy`, (N,C,H,W) uint8 levels, and `dataset.json` that describes them.

Sets with labels have `train_labels.npy` and `test_labels.npy`, (N,) integers, too; those made of files have
`train_files.txt` and `test_files.txt`.  No likelihood depends on these.  The arrays are mapped into memory, not read,
and never unpickled.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vdm.files import naming

SPLITS = ("train", "test")
DESCRIPTION = "dataset.json"
MOST_CHUNK_BYTES = 2**25
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

    @property
    def transforms(self) -> str:
        """What was done to the source's pixels, in words; `none` for pixels as they were published."""
        return str(self.description.get("transforms", "none"))


def save_images(
    folder: Path, splits: Mapping[str, np.ndarray | Iterable[np.ndarray]], description: dict[str, Any]
) -> None:
    """Write both splits and the description, which comes last: without it there is no set.

    A split is an (N,C,H,W) array, or chunks of one that are written as they come.  Shape and counts are added to the
    description unless it states them.  Raises ValueError for chunks of different shapes or types, or none at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    for split in SPLITS:
        images = splits[split]
        chunks = [images] if isinstance(images, np.ndarray) else images
        measured[f"num_{split}"], *shape = write_array(folder / f"{split}.npy", chunks)
        measured.setdefault("image_shape", shape)
    (folder / DESCRIPTION).write_text(json.dumps(measured | description, indent=2, sort_keys=True) + "\n")


def write_array(path: Path, chunks: Iterable[np.ndarray]) -> tuple[int, ...]:
    """Write chunks (n,...) one after the other as one .npy file, and return its shape.  Raises ValueError.

    The file takes the place of an older one when it is whole: to cut that short would end a process that maps it.
    """
    shape: tuple[int, ...] = ()
    dtype = np.dtype(np.uint8)
    partial = path.with_name(f"{path.name}.partial")
    # Not through a memory map: on a full disk that ends the process with SIGBUS, where a write raises OSError.
    with naming(path, partial), partial.open("wb") as file:
        for chunk in chunks:
            if not shape:
                shape, dtype = (0, *chunk.shape[1:]), chunk.dtype
                write_header(file, shape, dtype)
            if (chunk.shape[1:], chunk.dtype) != (shape[1:], dtype):
                raise ValueError(f"images of {chunk.shape[1:]} {chunk.dtype} after images of {shape[1:]} {dtype}")
            file.write(np.ascontiguousarray(chunk).data)
            shape = (shape[0] + len(chunk), *shape[1:])
        if not shape:
            raise ValueError("no images")
        file.seek(0)
        write_header(file, shape, dtype)
    partial.replace(path)
    return shape


def write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """The header of a .npy file.  NumPy leaves room in it for any first dimension, so that it can be written anew."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


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
    """The array at `path`, mapped into memory.  Raises ImageSetError."""
    try:
        # Copy-on-write: the file cannot be changed through it, and torch takes it without a copy of its own.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise ImageSetError(f"{path}: missing or damaged: {error}") from error
    if array.ndim == 0 or array.dtype.kind not in "buif":
        raise ImageSetError(f"{path}: holds {array.dtype} of {array.ndim} dimensions, not images")
    return np.asanyarray(array)


def chunks(images: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield images in contiguous chunks of at most `size`, fewer of large images, with the number of the first.

    A mapped array is mapped anew for each chunk, so that pages that were read do not add up in this process.
    """
    mapped = isinstance(images, np.memmap) and images.flags.c_contiguous and images.size > 0
    size = fitting(size, images[0].nbytes) if images.size else size
    for first in range(0, len(images), size):
        count = min(size, len(images) - first)
        if mapped:
            offset = images.offset + first * images[0].nbytes  # type: ignore[attr-defined]
            name, shape = images.filename, (count, *images.shape[1:])  # type: ignore[attr-defined]
            yield first, np.array(np.memmap(name, images.dtype, "r", offset, shape))
        else:
            yield first, np.ascontiguousarray(images[first : first + count])


def fitting(most: int, row_bytes: int) -> int:
    """Return how many rows make a chunk of bounded size: at most `most`, at least one."""
    return max(1, min(most, MOST_CHUNK_BYTES // max(row_bytes, 1)))


def load_labels(folder: Path, split: str) -> np.ndarray | None:
    """The (N,) labels of a split; None for a set without.  Raises ImageSetError."""
    path = folder / f"{split}_labels.npy"
    return load_array(path) if path.is_file() else None


def files_of(folder: Path, split: str) -> Path:
    """Of a set that was made of files: the text file whose line i is the name of the file of image i, as JSON."""
    return folder / f"{split}_files.txt"


def data_sha256(folder: Path) -> str:
    """One digest for what a likelihood depends on: the bytes of both arrays, the levels, and what was done to pixels.

    Raises ImageSetError.
    """
    image_set = load_images(folder)
    digest = hashlib.sha256(f"num_levels={image_set.num_levels}\n".encode())
    if image_set.transforms != "none":
        digest.update(f"transforms={image_set.transforms}\n".encode())
    for split in SPLITS:
        with (folder / f"{split}.npy").open("rb") as file:
            digest.update(f"{split} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
