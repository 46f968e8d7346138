"""Images of any kind as one array, and decoded images as files."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.core.files import naming
from flows.evaluation.bound import kind, require_valid
from flows.images.folder import ImageFiles
from flows.images.store import DESCRIPTION, load_images, write_array
from vdm.choices import Split
from vdm.model import VDM

ARRAY = "images.npy"
SHADES = {2: np.uint8(255), 4: np.uint8(85), 16: np.uint8(17)}
"""The step between the shades of pictures of 1, 2 and 4 bits, by their number of levels."""


class Images(NamedTuple):
    """Images to encode: an array (N,C,H,W) uint8, and whether they came from pictures."""

    array: np.ndarray
    num_levels: int
    pictures: bool


def open_images(path: Path, split: Split | None, vdm: VDM, model: Path) -> Images:
    """Return the images in `path`: a split of an image set, a folder of pictures in the order of names, or one file.

    Raises UserError: exit 2 for a split of what is not a set, and what the model cannot encode, 4 for images of several
    kinds or of more than 8 bits, 5 for missing and damaged files.
    """
    if (path / DESCRIPTION).exists():
        image_set = load_images(path)
        require_valid(image_set, path, split or "test")
        images = Images(getattr(image_set, split or "test"), image_set.num_levels, False)
    elif split:
        raise UserError(f"{path} is not an image set, so it has no splits; leave out --split", Exit.USAGE)
    else:
        images = read_files(path)
    require_fitting(images, vdm, path, model)
    return images


def read_files(path: Path) -> Images:
    """Return the images in a folder of pictures and arrays, or in one file.  Raises UserError."""
    files = ImageFiles(path)
    parts = [images for _, images in files.read()]
    if files.num_levels > 256:
        raise UserError(f"{path}: images of 16 bits; models of at most 8 bits can compress", Exit.INVALID_DATA)
    return Images(np.concatenate(parts), files.num_levels, set(files.formats) != {"NPY"})


def require_fitting(images: Images, vdm: VDM, path: Path, model: Path) -> None:
    """Raise UserError (exit 2) unless the images have the shape and levels of the model, and it has at most 256.

    Pictures of 1, 2 and 4 bits need a model with the same number of levels; `write_decoded` restores their shades.
    """
    if vdm.num_levels > 256:
        raise UserError(f"{model} has {vdm.num_levels} levels; models of at most 256 can compress", Exit.USAGE)
    if images.array.shape[1:] != vdm.image_shape:
        theirs, ours = "x".join(map(str, images.array.shape[1:])), kind(vdm.image_shape, vdm.num_levels)
        raise UserError(f"{model} is a model of images of {ours}; {path} holds {theirs}", Exit.USAGE)
    few = {images.num_levels, vdm.num_levels} & SHADES.keys()
    if images.pictures and few and images.num_levels != vdm.num_levels:
        reason = f"{path} holds pictures of {images.num_levels} levels"
        raise UserError(f"{model} is a model of {vdm.num_levels} levels; {reason}", Exit.USAGE)
    highest = images.array.reshape(len(images.array), -1).max(1)
    if highest[place := int(highest.argmax())] >= vdm.num_levels:
        reason = f"image {place} holds level {highest[place]}, and the levels of {model} are 0 to {vdm.num_levels - 1}"
        advice = "; pictures of `vdmctl sample` hold shades, and its .npy output levels" if images.pictures else ""
        raise UserError(f"{path}: {reason}{advice}", Exit.USAGE)


def write_decoded(parts: Iterator[np.ndarray], folder: Path, *, count: int, num_levels: int, pictures: bool) -> None:
    """Write images into a folder: as numbered PNG files, or as `images.npy`.  Raises OSError that names the file."""
    if not pictures:
        write_array(folder / ARRAY, parts)
        return
    step, digits = SHADES.get(num_levels, np.uint8(1)), len(str(count - 1))
    for number, image in enumerate(step * image for image in chain.from_iterable(parts)):
        path = folder / f"{number:0{digits}d}.png"
        with naming(path, path):
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)
