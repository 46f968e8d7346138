"""Images and grids of images as PNG inside the page."""

import math
from base64 import b64encode
from io import BytesIO
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from flows.images.store import eight_bit, spread
from flows.report.results import Results

GRID, TILE = 448, 64
"""Widths in pixels that a grid and a single image may take in the page; smaller ones are enlarged by a whole factor."""
MOST_SIDE = 256
MOST_COLUMNS = 8


class Picture(NamedTuple):
    """A picture as the attributes of an `img`: its data, its size in the page, its description in words."""

    src: Markup
    width: int
    height: int
    alt: str


class Grids(NamedTuple):
    """As many samples as test images, at the same size; no test images if there are none here."""

    num_images: int
    samples: Picture
    held_out: Picture | None


def grids(results: Results) -> Grids | None:
    """Return samples and test images as grids; None without samples, or if nothing says how many levels they have."""
    known, drawn = results.images or results.model, results.samples
    if known is None or drawn is None:
        return None
    real = results.images.test if results.images else drawn[:0]
    size = min(columns_of(drawn.shape[3]) ** 2, len(drawn), len(real) or len(drawn))
    samples = grid(drawn[:size], known.num_levels, f"{size} samples of the model")
    held_out = grid(spread(real, size), known.num_levels, f"{size} test images") if len(real) else None
    return Grids(size, samples, held_out)


def tile(image: np.ndarray, num_levels: int, alt: str) -> Picture:
    """Return an image (C,H,W) of the levels 0..num_levels-1 as a picture."""
    return picture(shades(image, num_levels), TILE, alt)


def grid(images: np.ndarray, num_levels: int, alt: str) -> Picture:
    """Return images (N,C,H,W) of the levels 0..num_levels-1 in rows, with transparent lines between them."""
    tiles = np.stack([shades(image, num_levels) for image in images])
    number, height, width, _ = tiles.shape
    columns = columns_of(width)
    rows = math.ceil(number / columns)
    cells = np.zeros((rows * columns, height + 1, width + 1, 4), dtype=np.uint8)
    cells[:number, :height, :width, :3] = tiles
    cells[:number, :height, :width, 3] = 255
    canvas = cells.reshape(rows, columns, height + 1, width + 1, 4).swapaxes(1, 2)
    canvas = canvas.reshape(rows * (height + 1), columns * (width + 1), 4)[:-1, :-1]
    return picture(canvas, GRID, alt)


def columns_of(width: int) -> int:
    """Return how many images of that width stand side by side in a grid: fewer if all can then be enlarged."""
    enlarged = [columns for columns in range(5, MOST_COLUMNS + 1) if 2 * columns * (width + 1) <= GRID]
    return max(enlarged, default=max(2, min(MOST_COLUMNS, GRID // (width + 1))))


def shades(image: np.ndarray, num_levels: int) -> np.ndarray:
    """Return an image (C,H,W) as (H,W,3) uint8: in colour if it has three channels, else its first channel in gray.

    Of an image that is larger than the page needs, only every n-th pixel is kept.
    """
    step = math.ceil(max(image.shape[1:]) / MOST_SIDE)
    pixels = eight_bit(np.nan_to_num(image[:, ::step, ::step]), num_levels)
    return (pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, axis=0)).transpose(1, 2, 0)


def picture(pixels: np.ndarray, room: int, alt: str) -> Picture:
    """Return pixels (H,W,3) or (H,W,4) as a picture, enlarged by a whole factor.

    It becomes at most `room` pixels wide and four times as high, unless it is larger already.
    """
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    height, width = pixels.shape[:2]
    factor = max(1, min(room // width, 4 * room // height))
    return Picture(encoded(file.getvalue(), "png"), factor * width, factor * height, alt)


def encoded(content: bytes, kind: str) -> Markup:
    """Return a picture as a data: URI."""
    return Markup(f"data:image/{kind};base64,{b64encode(content).decode()}")
