"""Images of any kind as one array, and decoded images as files."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from flows.core.files import naming
from flows.evaluation.bound import require_valid
from flows.images.pictures import SHADES, Images, read_files, require_fitting
from flows.images.store import DESCRIPTION, load_images, write_array
from vdm.choices import Split

ARRAY = "images.npy"


def open_images(path: Path, split: Split | None, model: Path) -> Images:
    """Return the images in `path`: a split of an image set, a folder of pictures in the order of names, or one file.

    Raises UserError: exit 2 for a split of what is not a set, and what the model cannot encode, 4 for images of several
    kinds or of more than 8 bits, 5 for missing and damaged files.
    """
    if (path / DESCRIPTION).exists():
        image_set = load_images(path)
        require_valid(image_set, path, split or "test")
        images = Images(getattr(image_set, split or "test"), image_set.num_levels, False, [])
    else:
        images = read_files(path, split)
    require_fitting(images, path, model)
    return images


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
