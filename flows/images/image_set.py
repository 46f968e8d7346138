"""An image set: the folder in which it lies, and the opened set that commands pass along.

The folder has an array of (N,C,H,W) levels for each split, uint8 or, above 256 levels, uint16, and `dataset.json` that
describes them.  The arrays are `train.npy`, `test.npy` and, unless the validation split is empty, `validation.npy`.  A
set with labels also has `train_labels.npy` and so on, (N,) integers, which `class_names` in the description may name.
A set made of files has `train_files.txt` and so on.  `train_digests.npy` has a digest of each image's pixels, and,
after transforms, `train_sources.npy` one of its pixels before these, by which an image is found in other sets.  Only
likelihoods given the class depend on the labels, and none on digests and names of files.  Arrays are mapped into memory
and never unpickled.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, get_args

import numpy as np
from pydantic import Field

from flows.core.documents import Count, Document, read_document
from flows.core.errors import Exit, FileError, UserError, brief
from flows.core.escaping import list_names
from flows.core.files import file_sha256, open_regular, parse_json, replace_file, write_whole
from vdm.choices import FITTED_SPLITS, MOST_LEVELS, Given, Split, TrainingImages

if TYPE_CHECKING:
    from flows.core.model import TrainedModel

SPLITS: tuple[Split, ...] = get_args(Split)
DESCRIPTION = "dataset.json"
MOST_CHUNK_BYTES = 2**25
COMPUTED = ("array_sha256", "data_sha256", "labels_sha256")
"""What another process need not compute again."""
PixelChange = Literal["background", "grayscale", "gray_as_rgb", "crop", "resize", "pad", "num_bits"]
"""A change of the source's pixels, by the parameter `data` that asks for it."""
LOSSY = frozenset({"JPEG", "lossy WEBP", "lossy TIFF"})
"""The formats of files that may have lost detail; see `flows.images.picture.format_of`."""
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
    lossy_files: Count | None = None
    """How many of the source's files may have lost detail; None in a set that states formats alone."""
    split: str = ""
    transforms: str = "none"
    """The transforms of the source's pixels, in words."""
    transformed: list[PixelChange] | None = None
    """The same by their parameters; None in a set that states words alone."""
    class_names: list[str] | None = None
    damaged: list[str] | None = None
    """The damaged files of the source that were left out."""
    pictures: bool = False
    """Whether these are pictures that the user named, and not arrays."""

    @property
    def splits(self) -> list[Split]:
        """The splits of the set: all three, or two if it has no validation images."""
        return [split for split in SPLITS if split != "validation" or self.num_validation]

    @property
    def is_resized(self) -> bool:
        """Whether the pixels of the source were resized."""
        if self.transformed is None:
            return any(step.startswith("resized ") for step in self.transforms.split(", "))
        return "resize" in self.transformed

    @property
    def is_lossy(self) -> bool:
        """Whether files of the source may have lost detail."""
        if self.lossy_files is None:
            return not LOSSY.isdisjoint(count.partition(" ")[2] for count in self.formats.split(", "))
        return self.lossy_files > 0

    @property
    def stated(self) -> dict[str, Any]:
        """The keys that the file has and the pipeline knows."""
        return self.model_dump(exclude_unset=True, include=set(Description.model_fields))


class ImageSet:
    """An image set: its arrays, its labels, and digests that are computed once.

    `images["train"]` is an array (N,C,H,W); that of a split without images is empty.  An opened set has its arrays
    mapped into memory.  Processes that share work get its path and open it again, and the digests that are known: that
    is how this object is pickled.  A set that was made in memory lies in no folder, and has no labels.
    """

    def __init__(
        self,
        name: str,
        description: Description,
        arrays: Mapping[Split, np.ndarray],
        *,
        folder: Path | None = None,
        files: Mapping[Split, Sequence[str]] | None = None,
    ) -> None:
        self.name = name
        """What the user named: the folder, or pictures that were made a set."""
        self.description = description
        self.arrays = arrays
        self.folder = folder
        self.files = files or {}
        """The name of each image's file in a set that lies in no folder."""
        self.valid: set[tuple[Split, int | None]] = set()
        """The chosen images that `Chosen.require_valid` found valid: the split, and how many at most."""

    def __reduce__(self) -> Any:
        if self.folder is None:
            return super().__reduce__()
        known = {key: self.__dict__[key] for key in COMPUTED if key in self.__dict__}
        return open_images, (self.folder, self.name), known

    def __getitem__(self, split: Split) -> np.ndarray:
        return self.arrays.get(split, self.arrays["train"][:0])

    def count_fitted(self, wanted: TrainingImages) -> int:
        """Return the number of images that a training on these is fitted to."""
        return sum(len(self[split]) for split in FITTED_SPLITS[wanted])

    @property
    def lies_in(self) -> Path:
        """The folder of the set.  Raises UserError (exit 5) for a set that lies in none."""
        if self.folder is None:
            raise UserError(f"{self.name} lies in no folder of an image set", Exit.MISSING)
        return self.folder

    @property
    def splits(self) -> list[Split]:
        """The splits that the description states."""
        return self.description.splits

    @property
    def num_levels(self) -> int:
        """K: pixels are 0..K-1."""
        return self.description.num_levels

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the pixels."""
        return dtype_of(self.num_levels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.description.image_shape
        return channels, height, width

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes by number, if the set states them."""
        return self.description.class_names

    @property
    def is_of_files(self) -> bool:
        """Whether the images are files that the user named: such a set has test images alone."""
        return not len(self["train"])

    @property
    def has_labels(self) -> bool:
        """Whether some split has labels."""
        return self.folder is not None and any(self.folder.glob("*_labels.npy"))

    def labels(self, split: Split) -> np.ndarray | None:
        """Return the labels of a split (N,), or None if the set has none.  Raises UserError (exit 5)."""
        if self.folder is None or not (path := labels_of(self.folder, split)).exists():
            return None
        return load_array(path)

    def digests(self, split: Split) -> set[bytes]:
        """Return the digests of a split's images.  Raises UserError (exit 5) for a set without them."""
        return {bytes(row) for row in load_array(digests_of(self.lies_in, split))} if len(self[split]) else set()

    def classes(self, split: Split) -> np.ndarray:
        """Return the labels of a split as classes, (N,) int64.

        Raises UserError: exit 2 for a set without labels, 5 for labels that do not fit the images.
        """
        count = len(self[split])
        if not count:
            return np.zeros(0, np.int64)
        found = self.labels(split)
        if found is None:
            advice = "set model.classes to null; a model with classes is evaluated without them by --given nothing"
            reason = f"{self.name} has no labels of its {split} images, which classes need"
            raise UserError(f"{reason}; {advice}", Exit.USAGE)
        if found.shape != (count,) or found.dtype.kind not in "ui" or found.min() < 0:
            reason = f"{found.dtype} of shape {found.shape}, not a class from 0 for each of {count} images"
            raise UserError(f"{labels_of(self.lies_in, split)}: {reason}; run `vdmctl download`", Exit.MISSING)
        return np.array(found, np.int64)

    def file_names(self, split: Split, numbers: Collection[int]) -> dict[int, str]:
        """Return the files of some images of a split by number, {} for a set that was not made of files.

        Raises UserError (exit 5).
        """
        if split in self.files:
            return {number: valid_text(self.files[split][number]) for number in numbers}
        if not numbers or self.folder is None or not (path := files_of(self.folder, split)).exists():
            return {}
        try:
            with open_regular(path) as lines:
                return {number: str(parse_json(line)) for number, line in enumerate(lines) if number in numbers}
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: missing or damaged: {error}", Exit.MISSING) from error

    @cached_property
    def array_sha256(self) -> dict[Split, str]:
        """The digest of the file of each split's array, also of a set that lies in no folder."""
        if self.folder is None:
            return {split: array_file_sha256(self[split]) for split in self.splits}
        return {split: file_sha256(self.folder / f"{split}.npy") for split in self.splits}

    @cached_property
    def data_sha256(self) -> str:
        """A digest of what likelihoods depend on: arrays, number of levels, transforms."""
        digest = hashlib.sha256(f"num_levels={self.num_levels}\n".encode())
        if self.description.transforms != "none":
            digest.update(f"transforms={self.description.transforms}\n".encode())
        for split, sha256 in self.array_sha256.items():
            digest.update(f"{split} {sha256}\n".encode())
        return digest.hexdigest()

    @cached_property
    def labels_sha256(self) -> str:
        """A digest of all labels, which `data_sha256` leaves out.  Raises OSError for a file that cannot be read."""
        lines = (f"{split} {file_sha256(labels_of(self.lies_in, split))}\n" for split in self.splits)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def require_fitting(self, model: "TrainedModel") -> None:
        """Raise UserError (exit 2) unless the images have the shape and the levels of the model's."""
        ours, theirs = kind(model.image_shape, model.num_levels), kind(self.image_shape, self.num_levels)
        if ours != theirs:
            reason = f"{model.name} is a model of images of {ours}; {self.name} holds {theirs}"
            raise UserError(f"{reason}; name the model's images with --images", Exit.USAGE)


@dataclass(frozen=True)
class Chosen:
    """Some images of a split: `most` of them, evenly spread so that all classes of a sorted set are among them."""

    set: ImageSet
    split: Split
    most: int | None = None
    """None for all images of the split."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def name(self) -> Split | Literal["other"]:
        """The split; `other` for files that the user named."""
        return "other" if self.set.is_of_files else self.split

    @property
    def pixels(self) -> np.ndarray:
        """The images (N,C,H,W)."""
        return spread(self.set[self.split], self.most)

    @property
    def numbers(self) -> np.ndarray:
        """The number of each image in the split (N,)."""
        return spread(np.arange(len(self.set[self.split])), self.most)

    @property
    def names(self) -> list[str] | None:
        """The name of each image's file; None for a set that was not made of files.  Raises UserError (exit 5)."""
        numbers = self.numbers.tolist()
        named = self.set.file_names(self.split, dict.fromkeys(numbers))
        return [named[number] for number in numbers] if named else None

    def classes(self, model: "TrainedModel") -> np.ndarray:
        """Return the class of each image (N,) int64.

        Raises UserError: exit 2 for a set without labels, and for classes that are not the model's, 5 for labels that
        do not fit the images.
        """
        found, ours, known = self.set.classes(self.split), self.set.class_names, model.class_names
        count = model.num_classes or 0
        if (known and ours and known != ours) or found.max(initial=-1) >= count:
            theirs = list_names(known) if known else f"0 to {count - 1}"
            here = list_names(ours) if ours else f"0 to {found.max()}"
            raise UserError(f"{self.set.name} has other classes than the model: {here}, not {theirs}", Exit.USAGE)
        return spread(found, self.most)

    def require_valid(self) -> None:
        """Raise UserError unless the images can be evaluated.

        Its exit code is 2 for a set without validation images, and 4 for a split that is empty, or for images of
        another shape or other levels than the set.
        """
        if (self.split, self.most) in self.set.valid:
            return
        images, advice = self.pixels, "run `vdmctl validate`"
        if self.split == "validation" and not len(images):
            advice = "set data.validation_fraction and run `dvc repro`"
            raise UserError(f"{self.set.name} has no validation images; {advice}", Exit.USAGE)
        if images.dtype != self.set.dtype or images.shape[1:] != self.set.image_shape or not len(images):
            found = f"{len(images)} images of {images.dtype} and shape {images.shape[1:]}"
            raise UserError(f"{self.set.name}: {self.split}.npy holds {found}; {advice}", Exit.INVALID_DATA)
        highest = max(int(chunk.max()) for _, chunk in chunks(images, len(images)))
        if highest >= self.set.num_levels:
            raise UserError(f"{self.set.name}: {self.split}.npy holds level {highest}; {advice}", Exit.INVALID_DATA)
        self.set.valid.add((self.split, self.most))


def open_images(folder: Path, name: str | None = None) -> ImageSet:
    """Return the image set in `folder`; `name` is for messages.  Raises UserError (exit 5)."""
    path = folder / DESCRIPTION
    description = read_document(Description, path, "`vdmctl download` writes the images to data/images")
    arrays = {split: load_array(folder / f"{split}.npy") for split in description.splits}
    return ImageSet(name or str(folder), description, arrays, folder=folder)


def is_image_set(folder: Path) -> bool:
    """Whether the folder is an image set, and not a folder of pictures."""
    return (folder / DESCRIPTION).exists()


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
    with replace_file(path) as file:
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


def array_file_sha256(array: np.ndarray) -> str:
    """Return the digest of the file that `write_array` writes of an array."""
    head = BytesIO()
    write_header(head, array.shape, array.dtype)
    digest = hashlib.sha256(head.getvalue())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def load_array(path: Path) -> np.ndarray:
    """Return the array of numbers at `path`, mapped into memory.  Raises FileError (exit 5)."""
    try:
        array = map_array(path)
    except Exception as error:  # numpy evaluates the header as a literal, which fails in many ways
        raise FileError(path, f"missing or damaged: {brief(error)}") from error
    if not array.ndim or array.dtype.kind not in "buif":
        raise FileError(path, f"holds {array.dtype} of {array.ndim} dimensions, not images")
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


def spread(images: np.ndarray, count: int | None) -> np.ndarray:
    """Return `count` images, evenly spread so that all classes of a sorted set are among them; all for None."""
    if count is None or count >= len(images):
        return images
    return np.array(images[np.linspace(0, len(images) - 1, count).round().astype(int)])


def chunks(images: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield contiguous chunks of at most `size` images, fewer if they are large, each with the number of its first.

    A file that is mapped whole is read instead: all its pages would stay in the memory of the process.
    """
    size, mapped = rows_per_chunk(size, images[0].nbytes) if images.size else size, whole_map(images)
    if mapped is None:
        for first in range(0, len(images), size):
            yield first, np.ascontiguousarray(images[first : first + size])
        return
    with Path(str(mapped.filename)).open("rb") as file:  # opened once: a file that replaces it has other images
        file.seek(mapped.offset)
        for first in range(0, len(images), size):
            some = images[first : first + size]
            yield first, np.fromfile(file, some.dtype, some.size).reshape(some.shape)


def whole_map(images: np.ndarray) -> np.memmap[Any, Any] | None:
    """Return the array if it is a file that is mapped whole and in order, else None."""
    if not isinstance(images, np.memmap) or images.filename is None or not images.flags.c_contiguous:
        return None
    return images if images.offset + images.nbytes == Path(images.filename).stat().st_size else None


def rows_per_chunk(most: int, row_bytes: int) -> int:
    """Return how many rows make a chunk of bounded size: at most `most`, at least one."""
    return max(1, min(most, MOST_CHUNK_BYTES // max(row_bytes, 1)))


def dtype_of(num_levels: int) -> np.dtype[Any]:
    """Return the type of pixels with so many levels: uint8 or, above 256 levels, uint16."""
    return np.dtype(np.uint8 if num_levels <= 256 else np.uint16)


def labels_of(folder: Path, split: str) -> Path:
    """Return the path of the labels of a split."""
    return folder / f"{split}_labels.npy"


def digests_of(folder: Path, split: str) -> Path:
    """Return the path of the digests of a split's images, (N,16) uint8; see `flows.images.splitting.digest_of`."""
    return folder / f"{split}_digests.npy"


def sources_of(folder: Path, split: str) -> Path:
    """Return the path of the digests of the pixels from which transforms made a split's images, (N,16) uint8."""
    return folder / f"{split}_sources.npy"


def files_of(folder: Path, split: str) -> Path:
    """Return the path of the text file whose line i is the name of the file of image i, as JSON."""
    return folder / f"{split}_files.txt"


def valid_text(name: str) -> str:
    """Return the name of a file as text that is valid UTF-8: strict readers of JSON refuse another."""
    return os.fsencode(name).decode(errors="backslashreplace")


def kind(shape: tuple[int, ...], num_levels: int) -> str:
    """Return shape and number of levels as text, such as "1x8x8 with 17 levels"."""
    return "x".join(map(str, shape)) + f" with {num_levels} levels"


def about_classes(images: ImageSet) -> dict[str, Any]:
    """Return what a model that is trained on the set states of its classes: a digest of all labels, and the names.

    Raises OSError for labels that cannot be read.
    """
    names = {"class_names": images.class_names} if "class_names" in images.description.stated else {}
    return {"labels_sha256": images.labels_sha256} | names


def number_of_classes(images: ImageSet, wanted: int | Literal["auto"] | None) -> int | None:
    """Return the number of classes of a model that is trained on the set: `auto` is as many as it has.

    Raises UserError: exit 2 for a set of one class, without labels or with more classes, and what `ImageSet.classes`
    raises.
    """
    if wanted is None:
        return None
    found = 1 + max(int(images.classes(split).max(initial=0)) for split in SPLITS)
    if found < 2 or (wanted != "auto" and found > wanted):
        advice = "set it to auto, or to null for a set of one class"
        raise UserError(f"{images.name} has {found} classes, but model.classes is {wanted}; {advice}", Exit.USAGE)
    return found if wanted == "auto" else wanted


def is_given_class(model: "TrainedModel", given: Literal["auto", Given], images: ImageSet) -> bool:
    """Whether a model is given the classes of images; `auto` is yes if it has classes, and the images have labels.

    Raises UserError (exit 2) for `class` and a model without classes.
    """
    if model.num_classes is not None:
        return given == "class" or (given == "auto" and images.has_labels)
    if given == "class":
        raise UserError(f"{model.name} has no classes; train one with model.classes: auto", Exit.USAGE)
    return False


def class_numbers(text: str, count: int | None, names: Sequence[str] | None) -> list[int]:
    """Return the classes in a list such as `3,7` or `cat,dog`; the number `count` for `none`, "no class".

    Raises UserError (exit 2) for one that is neither a name nor a number below `count`, and for a model without any.
    """
    if count is None:
        raise UserError(f"the model has no classes, such as {text}; train one with model.classes: auto", Exit.USAGE)
    known = {name.lower(): number for number, name in reversed(list(enumerate(names or [])))}
    known = {"none": count} | {str(number): number for number in range(count)} | known
    wanted = [part.strip().lower() for part in text.split(",")]
    if unknown := [part for part in wanted if part not in known]:
        some = f", or by name: {list_names(list(names))}" if names else ""
        reason = f"{list_names(unknown[:1])} is none of the model's classes, 0 to {count - 1}{some}"
        raise UserError(f"{reason}; `none` is no class", Exit.USAGE)
    return [known[part] for part in wanted]
