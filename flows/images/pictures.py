"""Pictures and arrays in any folder, as a model takes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flows.core import bounded_yaml
from flows.core.checkpoint import card_parameters, read_description
from flows.core.documents import checked
from flows.core.errors import Exit, UserError
from flows.core.files import scratch_folder, write_whole
from flows.core.params import Data
from flows.images.folder import ImageFiles
from flows.images.preparing import line_of
from flows.images.store import DESCRIPTION, files_of, save_images
from flows.images.transforms import describe, levels_left, transform
from vdm.choices import Split

SHADES = {2: np.uint8(255), 4: np.uint8(85), 16: np.uint8(17)}
"""The step between the shades of pictures of 1, 2 and 4 bits, by their number of levels."""


class Images(NamedTuple):
    """Images (N,C,H,W) uint8, whether they came from pictures, the file of each, and their transforms in words."""

    array: np.ndarray
    num_levels: int
    pictures: bool
    names: list[str]
    transforms: str = "none"


def read_files(path: Path, split: Split | None, data: Data | None = None) -> Images:
    """Return the images in a folder of pictures and arrays, in the order of their names, or in one file.

    `data` names the transforms.  Raises UserError, exit 2 if a split is named.
    """
    if split:
        raise UserError(f"{path} is not an image set, so it has no splits; leave out --split", Exit.USAGE)
    files = ImageFiles(path, grayscale=bool(data and data.grayscale), resized=bool(data and data.resize))
    read = [(name, transform(part, files.num_levels, data) if data else part) for name, part in files.read()]
    names = [name for name, part in read for _ in part]
    levels, transforms = files.num_levels, "none"
    if data:
        levels, transforms = levels_left(levels, data.num_bits), describe(levels, data)
    if levels > 256:
        raise UserError(f"{path}: images of 16 bits, which only models whose card says so take", Exit.INVALID_DATA)
    return Images(np.concatenate([part for _, part in read]), levels, set(files.formats) != {"NPY"}, names, transforms)


def require_fitting(images: Images, path: Path, model: Path) -> int:
    """Return the model's number of levels, at most 256.  Raise UserError (exit 2) unless the images fit the model.

    Pictures of 1, 2 and 4 bits need a model with the same number of levels.
    """
    described = read_description(model)["model"]
    image_shape, num_levels = tuple(described["image_shape"]), int(described["num_levels"])
    if num_levels > 256:
        raise UserError(f"{model} has {num_levels} levels; files of images need a model of at most 256", Exit.USAGE)
    if images.array.shape[1:] != image_shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (images.array.shape[1:], image_shape))
        reason = f"{model} is a model of images of {ours} with {num_levels} levels"
        raise UserError(f"{reason}; {path} holds {theirs}, transforms: {images.transforms}", Exit.USAGE)
    few = {images.num_levels, num_levels} & SHADES.keys()
    if images.pictures and few and images.num_levels != num_levels:
        reason = f"{path} holds pictures of {images.num_levels} levels"
        raise UserError(f"{model} is a model of {num_levels} levels; {reason}", Exit.USAGE)
    highest = images.array.reshape(len(images.array), -1).max(1)
    if highest[place := int(highest.argmax())] >= num_levels:
        reason = f"image {place} holds level {highest[place]}, and the levels of {model} are 0 to {num_levels - 1}"
        advice = "; pictures of `vdmctl sample` hold shades, and its .npy output levels" if images.pictures else ""
        raise UserError(f"{path}: {reason}{advice}", Exit.USAGE)
    return num_levels


@contextmanager
def as_image_set(path: Path, split: Split | None, model: Path) -> Iterator[Path]:
    """Yield the folder of an image set: `path`, or for the block a new one, whose test images are the files in `path`.

    The files are transformed as the images of the model were, if its card says how.  Raises UserError: exit 2 for a
    split of what is not a set, and for images that do not fit the model, 4 for images of several kinds or of more than
    8 bits, 5 for missing and damaged files.
    """
    if (path / DESCRIPTION).exists():
        yield path
        return
    stated = bounded_yaml.sections(card_parameters(model)).get("data")
    images = read_files(path, split, checked(Data, stated, f"{model}/README.md: data") if stated else None)
    described = {"num_levels": require_fitting(images, path, model), "transforms": images.transforms}
    with scratch_folder() as folder:
        save_images(folder, {"train": images.array[:0], "test": images.array}, described | {"name": "image_folder"})
        write_whole(files_of(folder, "test"), "".join(f"{line_of(name)}\n" for name in images.names))
        yield folder
