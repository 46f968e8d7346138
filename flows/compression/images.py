"""Images of any kind as one array on disk, and decoded images as files."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.files import naming
from flows.evaluation.bound import kind, require_valid
from flows.images.folder import ImageFiles
from flows.images.store import DESCRIPTION, chunks, load_array, load_images, write_array
from vdm.choices import Split
from vdm.model import VDM

ARRAY = "images.npy"
HASHED_AT_ONCE = 1000
SHADES = {2: np.uint8(255), 4: np.uint8(85), 16: np.uint8(17)}
"""The step between the shades of pictures of 1, 2 and 4 bits, by their number of levels."""


class Images(NamedTuple):
    """Images to encode: an array (N,C,H,W) uint8, mapped into memory, and whether they came from pictures."""

    array: np.ndarray
    num_levels: int
    pictures: bool
    files: Sequence[str] = ()
    """The file of each image; empty for an image set."""


def open_images(path: Path, split: Split | None, scratch: Path, vdm: VDM, model: Path) -> Images:
    """Return the images in `path`: a split of an image set, a folder of pictures in the order of names, or one file.

    Images that are not in a set are copied into the folder `scratch`, if they have the shape of the model's.  Raises
    UserError: exit 2 for a split of what is not a set and for another shape, 4 for images of several kinds or of more
    than 8 bits, 5 for missing and damaged files.
    """
    if (path / DESCRIPTION).exists():
        image_set = load_images(path)
        require_valid(image_set, path, split or "test")
        return Images(getattr(image_set, split or "test"), image_set.num_levels, False)
    if split:
        raise UserError(f"{path} is not an image set, so it has no splits; leave out --split", Exit.USAGE)
    remedy = "`vdmctl compress` transforms nothing, so convert them to one kind, or compress an image set"
    files, names = ImageFiles(path, remedy=remedy), []

    def fitting() -> Iterator[np.ndarray]:
        for name, images in files.read():
            if files.num_levels > 256:
                raise UserError(f"{path}: images of 16 bits; models of at most 8 bits can compress", Exit.INVALID_DATA)
            require_shape(images.shape[1:], vdm, path, model)
            names.extend([name] * len(images))
            yield images

    pixels = fitting()
    first = next(pixels)  # fails before anything is copied
    write_array(scratch / ARRAY, chain([first], pixels))
    return Images(load_array(scratch / ARRAY), files.num_levels, set(files.formats) != {"NPY"}, names)


def require_fitting(images: Images, vdm: VDM, path: Path, model: Path) -> bytes:
    """Return the sha256 of the pixels.

    Raises UserError (exit 2) unless they have the model's shape and levels, and for models of more than 256 levels.
    Pictures of 1, 2 and 4 bits need a model with the same number of levels; `write_decoded` restores their shades.
    """
    if vdm.num_levels > 256:
        raise UserError(f"{model} has {vdm.num_levels} levels; models of at most 256 can compress", Exit.USAGE)
    require_shape(images.array.shape[1:], vdm, path, model)
    few = {images.num_levels, vdm.num_levels} & SHADES.keys()
    if images.pictures and few and images.num_levels != vdm.num_levels:
        reason = f"{path} holds pictures of {images.num_levels} levels"
        raise UserError(f"{model} is a model of {vdm.num_levels} levels; {reason}", Exit.USAGE)
    digest = hashlib.sha256()
    for first, chunk in chunks(images.array, HASHED_AT_ONCE):
        if (highest := int(chunk.max())) >= vdm.num_levels:
            place = first + int(chunk.reshape(len(chunk), -1).max(1).argmax())
            where = f"image {place} ({visible(images.files[place])})" if images.files else f"image {place}"
            reason = f"{where} holds level {highest}, and the levels of {model} are 0 to {vdm.num_levels - 1}"
            advice = "; pictures of `vdmctl sample` hold shades, and its .npy output levels" if images.pictures else ""
            raise UserError(f"{path}: {reason}{advice}", Exit.USAGE)
        digest.update(chunk.data)
    return digest.digest()


def require_shape(shape: tuple[int, ...], vdm: VDM, path: Path, model: Path) -> None:
    """Raise UserError (exit 2) unless the images in `path`, of this shape (C,H,W), have the shape of the model's."""
    if shape != vdm.image_shape:
        theirs, ours = "x".join(map(str, shape)), kind(vdm.image_shape, vdm.num_levels)
        raise UserError(f"{model} is a model of images of {ours}; {path} holds {theirs}", Exit.USAGE)


def write_decoded(parts: Iterator[np.ndarray], folder: Path, *, count: int, num_levels: int, pictures: bool) -> None:
    """Write images into a folder: as numbered PNG files, or as `images.npy`.  Raises OSError that names the file."""
    if not pictures:
        first = next(parts, None)
        if first is not None:
            write_array(folder / ARRAY, chain([first], parts))
        return
    step, digits = SHADES.get(num_levels, np.uint8(1)), len(str(count - 1))
    for number, image in enumerate(step * image for part in parts for image in part):
        path = folder / f"{number:0{digits}d}.png"
        with naming(path, path):
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)
