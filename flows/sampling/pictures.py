"""Write images (N,C,H,W) of levels as a grid, as single PNG files, or as an array, by the name of the output."""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.core.files import naming, write_whole
from flows.core.folders import has_only, writing_folder
from flows.images.store import write_array
from flows.process.ending import finish

GAP = 2
SMALLEST_SHOWN = 32
WRITTEN = r"\d+\.png"


def require_new(path: Path, *, force: bool) -> None:
    """Raise UserError (exit 2) if the output exists, unless it may be replaced.

    A folder that holds anything but pictures with the names that `write` gives them is never replaced.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise UserError(f"{path} exists; --force replaces it", Exit.USAGE)
    if path.is_dir() and (path.suffix or not has_only(path, WRITTEN)):
        raise UserError(f"{path} is a folder with other files than samples; choose another --out", Exit.USAGE)
    if not path.is_dir() and not path.suffix:
        raise UserError(f"{path} is a file; choose another --out", Exit.USAGE)


def require_kind(path: Path, *kinds: str) -> None:
    """Raise UserError (exit 2) unless the path ends in one of the kinds; "" is a path without an ending."""
    if path.suffix.lower() not in kinds:
        listed = " or ".join(kind or "no ending, for a folder" for kind in kinds)
        raise UserError(f"{path}: unknown ending; choose {listed}", Exit.USAGE)


def write(path: Path, images: np.ndarray, num_levels: int) -> None:
    """Write a grid (.png), an array of levels (.npy), or a folder with a PNG file for each image.

    The output appears whole or not at all, and signals no longer stop the command: see `flows.process.ending.finish`.
    Raises OSError that names the file.
    """
    match path.suffix.lower():
        case ".png":
            content = png(grid(images, num_levels))
            finish()
            write_whole(path, content)
        case ".npy":
            finish()
            write_array(path, [images.astype(np.uint8 if num_levels <= 256 else np.uint16, copy=False)])
        case _:
            digits = len(str(len(images) - 1))
            with writing_folder(path) as folder:
                for number, image in enumerate(images):
                    file = folder / f"{number:0{digits}}.png"
                    with naming(file, file):  # not `write_whole`, which would list the folder for every file
                        Image.fromarray(shown(image, num_levels)).save(file, optimize=True)
                finish()


def shown(image: np.ndarray, num_levels: int) -> np.ndarray:
    """Return an image (C,H,W) of levels as 8-bit pixels (H,W,3), or its first channel (H,W) unless it has three."""
    pixels = np.rint(image.astype(float) * (255 / (num_levels - 1))).astype(np.uint8)
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]


def grid(images: np.ndarray, num_levels: int, columns: int | None = None) -> np.ndarray:
    """Return images as one picture of 8-bit pixels, almost square, or of that many columns.

    Small images are enlarged by a whole factor, to be visible.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = max(1, SMALLEST_SHOWN // max(images.shape[2:]))
    tiles = [shown(image, num_levels).repeat(scale, 0).repeat(scale, 1) for image in images]
    height, width = tiles[0].shape[:2]
    rows = math.ceil(len(tiles) / columns)
    size = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, *tiles[0].shape[2:])
    picture = np.full(size, 128, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = row * (height + GAP) + GAP, column * (width + GAP) + GAP
        picture[top : top + height, left : left + width] = tile
    return picture


def png(pixels: np.ndarray) -> bytes:
    """Return 8-bit pixels (H,W) or (H,W,3) as a PNG file."""
    content = BytesIO()
    Image.fromarray(pixels).save(content, format="png", optimize=True)
    return content.getvalue()
