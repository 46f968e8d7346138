"""Images that a user names for a model: a split of an image set, or pictures and arrays as the model takes them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.core.documents import check_value
from flows.core.errors import Exit, FileError, UserError
from flows.core.escaping import visible
from flows.core.params import Data
from flows.images.folder import PictureFiles, open_source
from flows.images.image_set import Chosen, Description, ImageSet, dtype_of, is_image_set, kind, open_images
from flows.images.made_to_fit import MOST_PIXELS, describe_changes, read_to_fit, require_small, takes_pictures
from flows.images.picture import BadImageError, DoesNotFit, FileDoesNotFit, Picture, read_size
from flows.images.reading import Reading
from flows.images.transforms import parts, shape_of, transform_picture
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.model import TrainedModel

SHADES = {2: np.uint8(255), 4: np.uint8(85), 16: np.uint8(17)}
"""The step between the shades of pictures of 1, 2 and 4 bits, by their number of levels."""
LARGE = 2**20
"""Pixels of a picture from which on decoding it takes much memory."""


log = logging.getLogger(__name__)


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
    with open_source(path) as files:
        if fit:
            pictures = read_made_to_fit(files, model, data)
            if words := describe_changes(pictures):
                log.warning("%s: pictures were changed to fit: %s", visible(path), words)
            images = make_set(pictures, str(path), model)
        else:
            try:
                images = make_set(read_files(files, data, model), str(path), model)
            except DoesNotFit as error:
                if not can_be_made_to_fit(files, model):
                    raise
                raise UserError(f"{error}; --fit changes pictures to what the model takes", error.code) from error
    yield Chosen(images, "test", most)


def read_made_to_fit(files: PictureFiles, model: "TrainedModel", data: Data | None) -> list[Picture]:
    """Return what the files hold, the pictures made to fit; arrays are as `read_files` reads them.

    Raises what `read_files`, `require_fitting` and `read_to_fit` raise.
    """
    found = list[Picture]()
    for name in files.names:
        if name.lower().endswith(".npy"):
            arrays = read_files(files.only(name), data)
            require_fitting(arrays, str(files.shown(name)), model)
            found += [array._replace(name=name, num_levels=model.num_levels) for array in arrays]
        else:
            found.append(read_to_fit(files.folder / name, model, data, files.shown(name))._replace(name=name))
    return found


def can_be_made_to_fit(files: PictureFiles, model: "TrainedModel") -> bool:
    """Whether `read_made_to_fit` takes the files, by their names and the headers of pictures."""
    sizes = [None if path.suffix.lower() == ".npy" else read_size(path) for path in files.paths]
    return takes_pictures(model) and all(size and size.num_pixels <= MOST_PIXELS for size in sizes)


def transforms_of(model: "TrainedModel") -> Data | None:
    """Return how the images of the model were transformed, if that is known.  Raises UserError (exit 5)."""
    stated = model.parameters.get("data")
    return check_value(Data, stated, f"{model.folder}/training.json: parameters.data") if stated else None


def shift_of_files(data: Data | None) -> int:
    """Return how far the levels of a model lie to the right of those in files of 16 bits, as its card says."""
    stored = data and (data.stored_bits or 16)
    return stored - min(stored, data.num_bits or stored) if data and stored else 0


def make_set(pictures: Sequence[Picture], name: str, model: "TrainedModel") -> ImageSet:
    """Return pictures that fit the model as the test images of a set that lies in no folder.

    `name` is what the user named.  Raises what `require_fitting` raises.
    """
    require_fitting(pictures, name, model)
    pixels = np.concatenate([each.pixels for each in pictures]).astype(dtype_of(model.num_levels), copy=False)
    described = Description(
        name="image_folder",
        num_levels=model.num_levels,
        image_shape=list(model.image_shape),
        num_train=0,
        num_test=len(pixels),
        transforms=pictures[0].transforms,
        pictures=are_pictures(pictures),
    )
    files = [str(each.name) for each in pictures for _ in each.pixels]
    return ImageSet(name, described, {"train": pixels[:0], "test": pixels}, files={"test": files})


def are_pictures(pictures: Sequence[Picture]) -> bool:
    """Whether some are pictures, and not arrays.

    Those that were made to fit count if a PNG file shows the levels of the model as they look.
    """
    of_shades = (*SHADES, 256)
    return any(each.format != "NPY" and (each.changes is None or each.num_levels in of_shades) for each in pictures)


def read_files(
    files: PictureFiles, data: Data | None, model: "TrainedModel | None" = None, *, most: int | None = None
) -> list[Picture]:
    """Return what the files hold, in the order of their names.

    `data` names the transforms, if any.  Raises UserError, which is of exit 2 for more than `most` images, and for a
    picture that `require_size` refuses for the model, if there is one.
    """
    if model:
        for name in files.names:
            require_size(files.folder / name, data, model, shown=files.shown(name))
    found = list[Picture]()
    count = 0
    for picture in Reading(files, data).pictures():
        count += len(picture.pixels)
        if most is not None and count > most:  # before transforms make them larger
            raise FileError(files.source, f"{most} images at most are taken; leave out the others", Exit.USAGE)
        for some in map(picture.part, parts(picture.pixels, data) if data else [slice(None)]):
            found.append(transform_picture(some, data) if data else some)
    return found


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
        raise DoesNotFit(f"{reason}; {shown} holds {height}x{width} pixels", Exit.USAGE)


def require_fitting(pictures: Sequence[Picture], path: str, model: "TrainedModel") -> None:
    """Raise UserError (exit 2) unless pictures of one shape and number of levels fit the model, named by their path.

    Pictures of 1, 2 and 4 bits need a model with the same number of levels, and so do pictures of up to 8 bits and
    models of more.
    """
    name, num_levels, some = model.name, model.num_levels, pictures[0]
    shown, may_be_shades = are_pictures(pictures), all(each.format != "NPY" for each in pictures)
    refuse, refuse_file = (DoesNotFit, FileDoesNotFit) if may_be_shades else (UserError, FileError)
    if some.pixels.shape[1:] != model.image_shape:
        reason = f"{name} is a model of images of {kind(model.image_shape, num_levels)}"
        theirs = "x".join(map(str, some.pixels.shape[1:]))
        raise refuse(f"{reason}; {path} holds {theirs}, transforms: {some.transforms}", Exit.USAGE)
    few = {some.num_levels, num_levels} & SHADES.keys()
    one_is_deep = (some.num_levels > 256) != (num_levels > 256)
    if shown and (few or one_is_deep) and some.num_levels != num_levels:
        reason = f"{path} holds pictures of {some.num_levels} levels"
        raise refuse(f"{name} is a model of {num_levels} levels; {reason}", Exit.USAGE)
    highest = np.concatenate([each.pixels.reshape(len(each.pixels), -1).max(1) for each in pictures])
    if highest[place := int(highest.argmax())] >= num_levels:
        reason = f"image {place} holds level {highest[place]}, and the levels of {name} are 0 to {num_levels - 1}"
        advice = f"; transforms: {some.transforms}" if num_levels > 256 else ""
        if shown and num_levels <= 256:
            advice = "; pictures of `vdmctl sample` hold shades, and its .npy output levels"
        raise refuse_file(path, f"{reason}{advice}", Exit.USAGE)
