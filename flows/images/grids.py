"""Images of levels as 8-bit pixels, and grids of them as one picture."""

import math
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

GAP = 2
SMALLEST_SHOWN = 32
MOST_SIDE = 256


class Stretch(NamedTuple):
    """The levels that are shown as black and as white."""

    black: int
    white: int

    @property
    def words(self) -> str:
        """The levels in words."""
        return f"shown from black to white: levels {self.black:,} to {self.white:,}"


def stretch_of(images: np.ndarray, num_levels: int) -> Stretch:
    """Return what is shown as black and as white: the ends of the levels.

    Above 256 levels they are those that 0.5% of the pixels are below or above: instruments fill few of them.
    """
    if num_levels <= 256 or not images.size:
        return Stretch(0, num_levels - 1)
    black, white = np.percentile(images, [0.5, 99.5]).round().astype(int).tolist()
    return Stretch(black, max(white, black + 1))


def eight_bit(images: np.ndarray, num_levels: int, stretch: Stretch | None = None) -> np.ndarray:
    """Return images of levels 0..num_levels-1 as 8-bit pixels; numbers beyond the stretch are black or white.

    The stretch is by default that of these images.
    """
    black, white = stretch or stretch_of(images, num_levels)
    return np.asarray(np.rint((images.astype(float) - black) * (255 / (white - black))).clip(0, 255).astype(np.uint8))


def as_8_bits(images: np.ndarray, num_levels: int, stretch: Stretch | None = None) -> np.ndarray:
    """Return images (N,C,H,W) as 8-bit pixels (N,H,W,3), or their first channel (N,H,W) unless they have three."""
    pixels = eight_bit(images, num_levels, stretch)
    return pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels[:, 0]


def grid(
    images: np.ndarray,
    num_levels: int,
    columns: int | None = None,
    smallest: int = SMALLEST_SHOWN,
    stretch: Stretch | None = None,
) -> np.ndarray:
    """Return images (N,C,H,W) as one picture of 8-bit pixels, almost square, or of that many columns.

    Images smaller than `smallest` pixels are enlarged by a whole factor, to be visible.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    scale = max(1, smallest // max(images.shape[2:]))
    pixels = as_8_bits(images, num_levels, stretch).repeat(scale, 1).repeat(scale, 2)
    height, width, *channels = pixels.shape[1:]
    tiles = np.full((rows, columns, height + GAP, width + GAP, *channels), 128, np.uint8)
    tiles.reshape(-1, *tiles.shape[2:])[: len(pixels), GAP:, GAP:] = pixels
    picture = tiles.swapaxes(1, 2).reshape(rows * (height + GAP), columns * (width + GAP), *channels)
    return np.pad(picture, [(0, GAP), (0, GAP), *[(0, 0)] * len(channels)], constant_values=128)


def rows_of(images: np.ndarray, num_levels: int, rows: int) -> np.ndarray:
    """Return images (N,C,H,W) as a grid in which image i is in row i modulo `rows`."""
    columns, stretch = math.ceil(len(images) / rows), stretch_of(images, num_levels)
    parts = [images[row::rows] for row in range(min(rows, len(images)))]
    return np.concatenate([grid(part, num_levels, columns, stretch=stretch) for part in parts])


def transparent_grid(images: np.ndarray, num_levels: int, columns: int, stretch: Stretch | None = None) -> np.ndarray:
    """Return images (N,C,H,W) in rows as pixels (H,W,4), with transparent lines of one pixel between them."""
    stretch = stretch or stretch_of(images, num_levels)
    tiles = np.stack([shades(image, num_levels, stretch) for image in images])
    number, height, width, _ = tiles.shape
    rows = math.ceil(number / columns)
    cells = np.zeros((rows * columns, height + 1, width + 1, 4), dtype=np.uint8)
    cells[:number, :height, :width, :3] = tiles
    cells[:number, :height, :width, 3] = 255
    canvas = cells.reshape(rows, columns, height + 1, width + 1, 4).swapaxes(1, 2)
    return canvas.reshape(rows * (height + 1), columns * (width + 1), 4)[:-1, :-1]


def shades(image: np.ndarray, num_levels: int, stretch: Stretch | None = None) -> np.ndarray:
    """Return an image (C,H,W) as (H,W,3) uint8: in colour if it has three channels, else its first channel in gray.

    Of an image that is larger than a page needs, only every n-th pixel is kept.
    """
    step = math.ceil(max(image.shape[1:]) / MOST_SIDE)
    pixels = eight_bit(np.nan_to_num(image[:, ::step, ::step]), num_levels, stretch)
    return (pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, axis=0)).transpose(1, 2, 0)


def png(pixels: np.ndarray) -> bytes:
    """Return 8-bit pixels (H,W), (H,W,3) or (H,W,4), or 16-bit ones (H,W), as a PNG file."""
    content = BytesIO()
    Image.fromarray(pixels).save(content, format="png", optimize=True)
    return content.getvalue()
