"""How many bits/dim images take in a PNG file, which a model should beat."""

from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from flows.images.image_set import spread

MOST_BYTES = 2**23
"""Of the images that are written as a PNG, which takes some seconds."""


class InPng(NamedTuple):
    """Images in one PNG: how many they are, whether these are all, and what they take in bits/dim."""

    num_images: int
    complete: bool
    bpd: float

    @property
    def words(self) -> str:
        """Which images these are."""
        return "the same images" if self.complete else f"{self.num_images:,} of these images"

    def is_better(self, bpd: float | None) -> bool:
        """Whether a model needs more bits/dim; a figure that is not finite is no comparison."""
        return bpd is not None and self.bpd < bpd


def measure_png(images: np.ndarray) -> InPng:
    """Return what images (N,C,H,W), evenly spread if they are many, take below each other in a PNG."""
    chosen = np.ascontiguousarray(spread(images, max(1, MOST_BYTES // images[0].nbytes)))
    _, channels, _, width = chosen.shape
    in_colour = channels == 3 and chosen.dtype == np.uint8  # Pillow writes no colours of 16 bits
    rows = chosen.transpose(0, 2, 3, 1).reshape(-1, width, 3) if in_colour else chosen.reshape(-1, width)
    file = BytesIO()
    Image.fromarray(rows).save(file, format="png", compress_level=9)
    return InPng(len(chosen), len(chosen) == len(images), 8 * file.tell() / chosen.size)
