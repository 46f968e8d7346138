"""An image set on disk: an array of (N,C,H,W) uint8 levels for each split, and `dataset.json` that describes them.

The arrays are `train.npy`, `test.npy` and, unless the validation split is empty, `validation.npy`.  A set with labels
also has `train_labels.npy` and so on, (N,) integers, which `class_names` in the description may name.  A set made of
files has `train_files.txt` and so on.  Only likelihoods given the class depend on the labels, and none on the names of
files.  Arrays are mapped into memory and never unpickled.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, get_args

import numpy as np
from pydantic import Field

from flows.core.documents import Count, Document, read
from flows.core.errors import Exit, UserError, brief
from flows.core.files import file_sha256, open_regular, parse_json, write_whole, writing
from vdm.choices import MOST_LEVELS, Split

SPLITS = get_args(Split)
DESCRIPTION = "dataset.json"
MOST_CHUNK_BYTES = 2**25
# The quality of samples cannot be estimated with fewer samples and test images.
FEWEST_COMPARED = 10


class Description(Document):
    """The content of `dataset.json`."""

    name: str
    num_levels: Annotated[int, Field(ge=2, le=MOST_LEVELS)]
    image_shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    """[C, H, W]."""
    num_train: Count
    num_validation: Count = 0
    num_test: Count
    published_train: Count = 0
    published_validation: Count = 0
    published_test: Count = 0
    title: str = ""
    homepage: str = ""
    licence: str = ""
    formats: str = ""
    split: str = ""
    transforms: str = ""
    class_names: list[str] | None = None


class ImageSet(NamedTuple):
    """The mapped arrays and the content of `dataset.json`."""

    description: dict[str, Any]
    train: np.ndarray
    validation: np.ndarray
    """Empty, (0,C,H,W), in a set without a validation split."""
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
        """The transforms of the source's pixels, in words; `none` for unchanged pixels."""
        return str(self.description.get("transforms", "none"))


def save_images(folder: Path, splits: Mapping[str, np.ndarray], description: dict[str, Any]) -> None:
    """Write the splits, (N,C,H,W) each, then the description, without which the folder is not a set.

    `validation` may be missing.  Shape and counts are added to the description unless it states them.
    """
    for split, images in splits.items():
        write_array(folder / f"{split}.npy", [images])
    write_description(folder, {split: images.shape for split, images in splits.items()}, description)


def write_description(folder: Path, shapes: Mapping[str, tuple[int, ...]], description: dict[str, Any]) -> None:
    """Write `dataset.json` of a set whose arrays have these shapes, by split."""
    counts = {f"num_{split}": shape[0] for split, shape in shapes.items()}
    measured = {"num_validation": 0, "image_shape": next(iter(shapes.values()))[1:]} | counts
    write_whole(folder / DESCRIPTION, json.dumps(measured | description, indent=2, sort_keys=True) + "\n")


def write_array(path: Path, chunks: Iterable[np.ndarray]) -> None:
    """Write chunks (n,...) of one type one after the other as one .npy file.

    The complete file replaces an older one: truncating that would kill a process that maps it.
    """
    count = 0
    # Not through a memory map: a full disk would kill the process with SIGBUS, where a write raises OSError.
    with writing(path) as file:
        for chunk in chunks:
            if not count:
                write_header(file, chunk.shape, chunk.dtype)
            file.write(np.ascontiguousarray(chunk).data)
            count += len(chunk)
        file.seek(0)
        write_header(file, (count, *chunk.shape[1:]), chunk.dtype)


def write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write the header of a .npy file.  NumPy pads it so that another first dimension can overwrite it."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


def load_images(folder: Path) -> ImageSet:
    """Return the image set in `folder`.  Raises UserError (exit 5)."""
    description = read_description(folder / DESCRIPTION)
    arrays = {split: load_array(folder / f"{split}.npy") for split in present(description)}
    return ImageSet(description, **{"validation": arrays["train"][:0]} | arrays)


def present(description: Mapping[str, Any]) -> list[str]:
    """Return the splits of a set with this description: all three, or two if it has no validation images."""
    return [split for split in SPLITS if split != "validation" or description.get("num_validation")]


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of a `dataset.json`.  Raises UserError (exit 5) for missing keys and wrong types."""
    return read(Description, path, "`vdmctl download` writes the images to data/images").model_dump(exclude_unset=True)


def load_array(path: Path) -> np.ndarray:
    """Return the array of numbers at `path`, mapped into memory.  Raises UserError (exit 5)."""
    try:
        array = map_array(path)
    except Exception as error:  # numpy evaluates the header as a literal, which fails in many ways
        raise UserError(f"{path}: missing or damaged: {brief(error)}", Exit.MISSING) from error
    if not array.ndim or array.dtype.kind not in "buif":
        raise UserError(f"{path}: holds {array.dtype} of {array.ndim} dimensions, not images", Exit.MISSING)
    return array


def map_array(path: Path) -> np.memmap[Any, Any]:
    """Return the array in a .npy file, mapped into memory.  Raises OSError, and what NumPy raises for its header.

    Raises ValueError for bytes after the array: `np.save` on an open file appends a second array, which nobody reads.
    """
    open_regular(path).close()  # numpy would wait for the writer of a pipe
    # Copy-on-write: the file cannot be changed through the map, and torch does not copy it.
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="c")
    if array.offset + array.nbytes != path.stat().st_size:
        raise ValueError("more bytes than its header says")
    return array


def require_levels(image_set: ImageSet, folder: Path, split: str) -> None:
    """Raise UserError (exit 4) unless the images of a split have the shape and the levels of the set in `folder`."""
    images, advice = getattr(image_set, split), "run `vdmctl validate`"
    if images.dtype != np.uint8 or images.shape[1:] != image_set.image_shape or not len(images):
        found = f"{len(images)} images of {images.dtype} and shape {images.shape[1:]}"
        raise UserError(f"{folder}: {split}.npy holds {found}; {advice}", Exit.INVALID_DATA)
    highest = max(int(chunk.max()) for _, chunk in chunks(images, len(images)))
    if highest >= image_set.num_levels:
        raise UserError(f"{folder}: {split}.npy holds level {highest}; {advice}", Exit.INVALID_DATA)


def spread(images: np.ndarray, count: int | None) -> np.ndarray:
    """Return `count` images, evenly spread so that all classes of a sorted set are among them; all for None."""
    if count is None or count >= len(images):
        return images
    return np.array(images[np.linspace(0, len(images) - 1, count).round().astype(int)])


def chunks(images: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield contiguous chunks of at most `size` images, fewer if they are large, each with the number of its first."""
    size = fitting(size, images[0].nbytes) if images.size else size
    for first in range(0, len(images), size):
        yield first, np.ascontiguousarray(images[first : first + size])


def fitting(most: int, row_bytes: int) -> int:
    """Return how many rows make a chunk of bounded size: at most `most`, at least one."""
    return max(1, min(most, MOST_CHUNK_BYTES // max(row_bytes, 1)))


def load_labels(folder: Path, split: str) -> np.ndarray | None:
    """Return the labels of a split (N,), or None if the set has none.  Raises UserError (exit 5)."""
    path = folder / f"{split}_labels.npy"
    return load_array(path) if path.exists() else None


def files_of(folder: Path, split: str) -> Path:
    """Return the path of the text file whose line i is the name of the file of image i, as JSON."""
    return folder / f"{split}_files.txt"


def read_file_names(folder: Path, split: str, images: Collection[int]) -> dict[int, str]:
    """Return the files of some images of a split by number, {} for a set that was not made of files.

    Raises UserError (exit 5).
    """
    path = files_of(folder, split)
    if not images or not path.exists():
        return {}
    try:
        with open_regular(path) as lines:
            return {number: str(parse_json(line)) for number, line in enumerate(lines) if number in images}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or damaged: {error}", Exit.MISSING) from error


def data_sha256(folder: Path) -> str:
    """Return a digest of what likelihoods depend on: arrays, number of levels, transforms.

    Raises UserError (exit 5).
    """
    image_set = load_images(folder)
    digest = hashlib.sha256(f"num_levels={image_set.num_levels}\n".encode())
    if image_set.transforms != "none":
        digest.update(f"transforms={image_set.transforms}\n".encode())
    for split in present(image_set.description):
        digest.update(f"{split} {file_sha256(folder / f'{split}.npy')}\n".encode())
    return digest.hexdigest()


def eight_bit(images: np.ndarray, num_levels: int) -> np.ndarray:
    """Return images of levels 0..num_levels-1 as 8-bit pixels; numbers beyond these are black or white."""
    return np.asarray(np.rint(images.astype(float) * (255 / (num_levels - 1))).clip(0, 255).astype(np.uint8))
