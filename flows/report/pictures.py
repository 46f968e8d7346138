"""Pictures inside the page: images and grids of images as PNG, at the size that the page has for them."""

from base64 import b64encode
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from flows.dossier.dossier import Dossier
from flows.images.grids import Stretch, png, shades, stretch_of, transparent_grid
from flows.images.image_set import spread

GRID, TILE = 448, 64
"""Widths in pixels that a grid and a single image may take in the page; smaller ones are enlarged by a whole factor."""
MOST_COLUMNS = 8


class Illustration(NamedTuple):
    """A picture as the attributes of an `img`: its data, its size in the page, its description in words."""

    src: Markup
    width: int
    height: int
    alt: str


class Grids(NamedTuple):
    """As many samples as test images, at the same size; no test images if there are none here."""

    num_images: int
    samples: Illustration
    held_out: Illustration | None
    stretch: str = ""
    """Which levels are black and white, above 256 levels."""


def grids(dossier: Dossier) -> Grids | None:
    """Return samples and test images as grids; None without samples, or if nothing says how many levels they have."""
    known, drawn = dossier.images or dossier.model, dossier.samples
    if known is None or drawn is None:
        return None
    real = dossier.images["test"] if dossier.images else drawn[:0]
    size = min(columns_of(drawn.shape[3]) ** 2, len(drawn), len(real) or len(drawn))
    stretch = stretch_of(spread(real, size) if len(real) else drawn[:size], known.num_levels)
    samples = arrange(drawn[:size], known.num_levels, f"{size} samples of the model", stretch)
    held_out = arrange(spread(real, size), known.num_levels, f"{size} test images", stretch) if len(real) else None
    return Grids(size, samples, held_out, stretch.words if known.num_levels > 256 else "")


def tile(image: np.ndarray, num_levels: int, alt: str) -> Illustration:
    """Return an image (C,H,W) of the levels 0..num_levels-1 as a picture; its description has the stretch, if any."""
    stretch = stretch_of(image, num_levels)
    described = f"{alt}, {stretch.words}" if num_levels > 256 else alt
    return picture(shades(image, num_levels, stretch), TILE, described)


def arrange(images: np.ndarray, num_levels: int, alt: str, stretch: Stretch | None = None) -> Illustration:
    """Return images (N,C,H,W) of the levels 0..num_levels-1 in rows."""
    columns = columns_of(shades(images[0], num_levels).shape[1])
    return picture(transparent_grid(images, num_levels, columns, stretch), GRID, alt)


def columns_of(width: int) -> int:
    """Return how many images of that width stand side by side in a grid: fewer if all can then be enlarged."""
    enlarged = [columns for columns in range(5, MOST_COLUMNS + 1) if 2 * columns * (width + 1) <= GRID]
    return max(enlarged, default=max(2, min(MOST_COLUMNS, GRID // (width + 1))))


def picture(pixels: np.ndarray, room: int, alt: str) -> Illustration:
    """Return pixels (H,W,3) or (H,W,4) as a picture, enlarged by a whole factor.

    It becomes at most `room` pixels wide and four times as high, unless it is larger already.
    """
    height, width = pixels.shape[:2]
    factor = max(1, min(room // width, 4 * room // height))
    return Illustration(data_uri(png(pixels), "png"), factor * width, factor * height, alt)


def data_uri(content: bytes, kind: str) -> Markup:
    """Return a picture as a data: URI."""
    return Markup(f"data:image/{kind};base64,{b64encode(content).decode()}")
