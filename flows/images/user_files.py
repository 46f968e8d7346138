"""Images that a user names for a model: a split of an image set, or pictures and arrays as the model takes them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flows.core.documents import check_value
from flows.core.errors import Exit, FileError, UserError
from flows.core.escaping import visible
from flows.core.files import scratch_folder, write_whole
from flows.core.params import Data
from flows.images.download import line_for_name
from flows.images.folder import ImageFiles, Listed, open_source
from flows.images.image_set import (
    Chosen,
    Description,
    ImageSet,
    dtype_of,
    files_of,
    is_image_set,
    kind,
    open_images,
    save_images,
)
from flows.images.made_to_fit import Fitted, describe_changes, read_to_fit, require_small
from flows.images.picture_files import BadImageError, read_size
from flows.images.transforms import describe_transforms, levels_left, parts, shape_of, transform
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.model import TrainedModel

SHADES = {2: np.uint8(255), 4: np.uint8(85), 16: np.uint8(17)}
"""The step between the shades of pictures of 1, 2 and 4 bits, by their number of levels."""
LARGE = 2**20
"""Pixels of a picture from which on decoding it takes much memory."""


log = logging.getLogger(__name__)


class Read(NamedTuple):
    """Images (N,C,H,W) of levels from files, whether these are pictures, the file of each, the transforms in words."""

    array: np.ndarray
    num_levels: int
    pictures: bool
    names: list[str]
    transforms: str


@contextmanager
def open_named(
    path: Path,
    split: Split | None,
    model: "TrainedModel",
    most: int | None = None,
    *,
    transformed: bool = True,
    fit: bool = False,
) -> Iterator[Chosen]:
    """Yield `most` images in `path`: a split of an image set, else the files in it, as a set while the block runs.

    The split of a set is `test` for None.  Files are transformed as the images of the model were, if these are known
    and `transformed` is set.  With `fit`, pictures are made to fit the model, and a warning says what was changed.
    Raises UserError: exit 2 for a split of what is not a set, for a set with `fit`, and for images that do not fit the
    model, 4 for images of several kinds, 5 for missing and damaged files.
    """
    if is_image_set(path):
        if fit:
            raise UserError(f"{path} is an image set, and only pictures are made to fit; leave out --fit", Exit.USAGE)
        yield Chosen(open_images(path), split or "test", most)
        return
    if split:
        raise UserError(f"{path} is not an image set, so it has no splits; leave out --split", Exit.USAGE)
    data = transforms_of(model) if transformed else None
    with open_source(path) as listed:
        if fit:
            read, pictures = read_made_to_fit(listed, model, data)
            if words := describe_changes(pictures):
                log.warning("%s: pictures were changed to fit: %s", visible(path), words)
        else:
            try:
                read = read_files(listed, data, model)
                require_fitting(read, str(path), model)
            except UserError as error:
                if not can_be_made_to_fit(listed, model, data):
                    raise
                raise UserError(f"{error}; --fit changes pictures to what the model takes", error.code) from error
    with store_as_set(read, str(path), model) as images:
        yield Chosen(images, "test", most)


def read_made_to_fit(listed: Listed, model: "TrainedModel", data: Data | None) -> tuple[Read, list[Fitted]]:
    """Return the images in files of pictures and arrays, the pictures made to fit, and these.

    Raises what `read_files`, `require_fitting` and `read_to_fit` raise.
    """
    parts, files, pictures = list[np.ndarray](), list[str](), list[Fitted]()
    for name in listed.names:
        if name.lower().endswith(".npy"):
            array = read_files(listed.only(name), data)
            require_fitting(array, str(listed.shown(name)), model)
            parts.append(array.array)
        else:
            pictures.append(read_to_fit(listed.folder / name, model, data, listed.shown(name)))
            parts.append(pictures[-1].image[None])
        files += [name] * len(parts[-1])
    # A PNG file shows the levels of these models as they look.
    are_pictures = bool(pictures) and model.num_levels in (*SHADES, 256)
    transforms = describe_transforms(256, data) if data else "none"
    return Read(np.concatenate(parts), model.num_levels, are_pictures, files, transforms), pictures


def can_be_made_to_fit(listed: Listed, model: "TrainedModel", data: Data | None) -> bool:
    """Whether `read_made_to_fit` takes the files."""
    try:
        read_made_to_fit(listed, model, data)
    except UserError:
        return False
    return True


def transforms_of(model: "TrainedModel") -> Data | None:
    """Return how the images of the model were transformed, if that is known.  Raises UserError (exit 5)."""
    stated = model.parameters.get("data")
    return check_value(Data, stated, f"{model.folder}/training.json: parameters.data") if stated else None


def shift_of_files(data: Data | None) -> int:
    """Return how far the levels of a model lie to the right of those in files of 16 bits, as its card says."""
    stored = data and (data.stored_bits or 16)
    return stored - min(stored, data.num_bits or stored) if data and stored else 0


@contextmanager
def store_as_set(read: Read, name: str, model: "TrainedModel") -> Iterator[ImageSet]:
    """Yield images that fit the model as the test images of a set, which exists while the block runs."""
    described = {"name": "image_folder", "num_levels": model.num_levels}
    described |= {"transforms": read.transforms, "pictures": read.pictures}
    with scratch_folder() as folder:
        array = read.array.astype(dtype_of(model.num_levels), copy=False)
        save_images(folder, {"train": array[:0], "test": array}, described)
        write_whole(files_of(folder, "test"), "".join(f"{line_for_name(name)}\n" for name in read.names))
        yield open_images(folder, name)


def set_in_memory(read: Read, name: str, model: "TrainedModel") -> ImageSet:
    """Return images that fit the model as the test images of a set that lies in no folder."""
    shown = Description(
        name="image_folder",
        num_levels=model.num_levels,
        image_shape=list(model.image_shape),
        num_train=0,
        num_test=len(read.array),
        transforms=read.transforms,
        pictures=read.pictures,
    )
    array = read.array.astype(dtype_of(model.num_levels), copy=False)
    return ImageSet(Path(os.devnull), name, shown, {"train": array[:0], "test": array})


def read_files(
    listed: Listed, data: Data | None, model: "TrainedModel | None" = None, *, most: int | None = None
) -> Read:
    """Return the images in files of pictures and arrays, in the order of their names.

    `data` names the transforms, if any.  Raises UserError, which is of exit 2 for more than `most` images, and for a
    picture that `require_size` refuses for the model, if there is one.
    """
    files = ImageFiles(listed, data)
    if model:
        for name in listed.names:
            require_size(listed.folder / name, data, model, shown=listed.shown(name))
    read = list[tuple[str, np.ndarray]]()
    count = 0
    for name, part, _ in files.read():
        count += len(part)
        if most is not None and count > most:  # before transforms make them larger
            raise FileError(listed.source, f"{most} images at most are taken; leave out the others", Exit.USAGE)
        for some in parts(part, data) if data else [slice(None)]:
            read.append((name, transform(part[some], files.num_levels, data) if data else part))
    names = [name for name, part in read for _ in part]
    levels, transforms = files.num_levels, "none"
    if data:
        levels, transforms = levels_left(levels, data.num_bits), describe_transforms(levels, data)
    return Read(np.concatenate([part for _, part in read]), levels, set(files.formats) != {"NPY"}, names, transforms)


def require_size(
    path: Path, data: Data | None, model: "TrainedModel", *, small: bool = False, shown: Path | str = ""
) -> None:
    """Raise UserError for a large picture that the model cannot take, before it is decoded.

    Those are pictures of `LARGE` pixels or more whose size the transforms do not make fit (exit 2) and, with `small`,
    those that `flows.images.made_to_fit.require_small` refuses (4).  What is no picture is left to its reader.
    Messages call the path `shown`, if that is given.
    """
    shown, size = shown or path, read_size(path)
    if not size:
        return
    width, height, _ = size
    if small:
        try:
            require_small(path)
        except BadImageError as error:
            raise FileError(shown, str(error), error.code) from error
    if size.num_pixels < LARGE or (data and data.resize):
        return
    turned = [(height, width), (width, height)]  # as EXIF may say
    sizes = [shape_of((1, *size), data)[1:] if data else size for size in turned]
    pad = 2 * data.pad if data else 0
    if not any((rows + pad, columns + pad) == model.image_shape[1:] for rows, columns in sizes):
        reason = f"{model.name} is a model of images of {kind(model.image_shape, model.num_levels)}"
        raise UserError(f"{reason}; {shown} holds {height}x{width} pixels", Exit.USAGE)


def require_fitting(read: Read, path: str, model: "TrainedModel") -> None:
    """Raise UserError (exit 2) unless the images fit the model, named by their path.

    Pictures of 1, 2 and 4 bits need a model with the same number of levels, and so do pictures of up to 8 bits and
    models of more.
    """
    name, num_levels = model.name, model.num_levels
    if read.array.shape[1:] != model.image_shape:
        reason = f"{name} is a model of images of {kind(model.image_shape, num_levels)}"
        theirs = "x".join(map(str, read.array.shape[1:]))
        raise UserError(f"{reason}; {path} holds {theirs}, transforms: {read.transforms}", Exit.USAGE)
    few = {read.num_levels, num_levels} & SHADES.keys()
    one_is_deep = (read.num_levels > 256) != (num_levels > 256)
    if read.pictures and (few or one_is_deep) and read.num_levels != num_levels:
        reason = f"{path} holds pictures of {read.num_levels} levels"
        raise UserError(f"{name} is a model of {num_levels} levels; {reason}", Exit.USAGE)
    highest = read.array.reshape(len(read.array), -1).max(1)
    if highest[place := int(highest.argmax())] >= num_levels:
        reason = f"image {place} holds level {highest[place]}, and the levels of {name} are 0 to {num_levels - 1}"
        advice = f"; transforms: {read.transforms}" if num_levels > 256 else ""
        if read.pictures and num_levels <= 256:
            advice = "; pictures of `vdmctl sample` hold shades, and its .npy output levels"
        raise FileError(path, f"{reason}{advice}", Exit.USAGE)
