"""Write images (N,C,H,W) of levels as a grid, as single PNG files, or as an array, by the name of the output."""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.core.files import naming, write_whole
from flows.core.folders import writing_folder
from flows.images.store import eight_bit, write_array

GAP = 2
SMALLEST_SHOWN = 32
WRITTEN = r"\d+\.png"


def require_kind(path: Path, *kinds: str) -> None:
    """Raise UserError (exit 2) unless the path ends in one of the kinds; "" is a path without an ending."""
    if path.suffix.lower() not in kinds:
        listed = " or ".join(kind or "no ending, for a folder" for kind in kinds)
        raise UserError(f"{path}: unknown ending; choose {listed}", Exit.USAGE)


def write(path: Path, images: np.ndarray, num_levels: int, beside: Sequence[np.ndarray] = (), *, rows: int = 0) -> None:
    """Write a grid (.png), an array of levels (.npy), or a folder with a PNG file for each image.

    The images `beside` (C,H,W) come first in a grid, and are in no other output.  Without them, a grid may have `rows`,
    as in `rows_of`.  The output appears whole or not at all.  Raises OSError that names the file.
    """
    match path.suffix.lower():
        case ".png":
            together = np.stack([*beside, *images])
            columns = max(1 + len(beside), math.ceil(math.sqrt(len(together)))) if beside else None
            by_row = rows and not beside
            write_whole(path, png(rows_of(images, num_levels, rows) if by_row else grid(together, num_levels, columns)))
        case ".npy":
            write_array(path, [images.astype(np.uint8 if num_levels <= 256 else np.uint16, copy=False)])
        case _:
            digits = len(str(len(images) - 1))
            with writing_folder(path) as folder:
                for number, image in enumerate(shown(images, num_levels)):
                    file = folder / f"{number:0{digits}}.png"
                    with naming(file, file):
                        Image.fromarray(image).save(file, optimize=True)


def shown(images: np.ndarray, num_levels: int) -> np.ndarray:
    """Return images (N,C,H,W) as 8-bit pixels (N,H,W,3), or their first channel (N,H,W) unless they have three."""
    pixels = eight_bit(images, num_levels)
    return pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels[:, 0]


def grid(images: np.ndarray, num_levels: int, columns: int | None = None, smallest: int = SMALLEST_SHOWN) -> np.ndarray:
    """Return images (N,C,H,W) as one picture of 8-bit pixels, almost square, or of that many columns.

    Images smaller than `smallest` pixels are enlarged by a whole factor, to be visible.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    scale = max(1, smallest // max(images.shape[2:]))
    pixels = shown(images, num_levels).repeat(scale, 1).repeat(scale, 2)
    height, width, *channels = pixels.shape[1:]
    tiles = np.full((rows, columns, height + GAP, width + GAP, *channels), 128, np.uint8)
    tiles.reshape(-1, *tiles.shape[2:])[: len(pixels), GAP:, GAP:] = pixels
    picture = tiles.swapaxes(1, 2).reshape(rows * (height + GAP), columns * (width + GAP), *channels)
    return np.pad(picture, [(0, GAP), (0, GAP), *[(0, 0)] * len(channels)], constant_values=128)


def rows_of(images: np.ndarray, num_levels: int, rows: int) -> np.ndarray:
    """Return images (N,C,H,W) as a grid in which image i is in row i modulo `rows`."""
    columns = math.ceil(len(images) / rows)
    return np.concatenate([grid(images[row::rows], num_levels, columns) for row in range(min(rows, len(images)))])


def png(pixels: np.ndarray) -> bytes:
    """Return 8-bit pixels (H,W) or (H,W,3) as a PNG file."""
    content = BytesIO()
    Image.fromarray(pixels).save(content, format="png", optimize=True)
    return content.getvalue()
