"""What may be done to pixels before a model sees them.  Each changes the bits/dim, so each is declared and recorded.

In this order: more than 8 bits down to 8, grayscale, resize, pad, down to `num_bits`.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torchvision.transforms.v2 import functional

from flows.core.errors import Exit, UserError
from flows.images.store import fitting

# A model never changes the resolution: a larger image cannot be trained on, and is to be resized.
MOST_LEVELS = 2**25


def transform(
    images: np.ndarray, num_levels: int, *, grayscale: bool, resize: list[int] | None, pad: int, num_bits: int
) -> np.ndarray:
    """Turn (N,C,H,W) levels 0..num_levels-1, uint8 or uint16, into uint8 levels 0..levels_left(...)-1.

    Raises what `shape_left` raises.
    """
    shape_left(images.shape[1:], grayscale=grayscale, resize=resize, pad=pad)
    images, num_levels = shifted(images, num_levels, 8).astype(np.uint8, copy=False), levels_left(num_levels, 8)
    if grayscale and images.shape[1] == 3:
        images = gray(images)
    if resize and list(images.shape[2:]) != resize:
        images = resized(images, resize, num_levels)
    if pad:
        images = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    return shifted(images, num_levels, num_bits)


def shape_left(shape: tuple[int, ...], *, grayscale: bool, resize: list[int] | None, pad: int) -> tuple[int, int, int]:
    """Return the (C,H,W) of an image after the transforms.

    Raises UserError: exit 2 for gray levels of neither 1 nor 3 channels and for a size that the parameters make too
    large, 4 for an image that is too large as it is.
    """
    channels, height, width = shape
    if channels not in (1, 3) and grayscale:
        raise UserError(f"data.grayscale: of 1 or 3 channels, but images have {channels}", Exit.USAGE)
    height, width = (side + 2 * pad for side in resize or (height, width))
    left = (1 if grayscale else channels, height, width)
    if (num_levels := math.prod(left)) > MOST_LEVELS:
        what = f"images of {'x'.join(map(str, left))} have {num_levels:,} levels, at most {MOST_LEVELS:,} are possible"
        if resize or pad:
            raise UserError(f"data.resize and data.pad: {what}; lower them", Exit.USAGE)
        raise UserError(f"{what}; set data.resize to a smaller [height, width]", Exit.INVALID_DATA)
    return left


def parts(images: np.ndarray, *, grayscale: bool, resize: list[int] | None, pad: int, num_bits: int) -> Iterator[slice]:
    """Yield which images to transform at a time, so that the memory that the results take is bounded."""
    row = math.prod(shape_left(images.shape[1:], grayscale=grayscale, resize=resize, pad=pad))
    step = fitting(len(images), max(row, images[0].nbytes))
    for first in range(0, len(images), step):
        yield slice(first, first + step)


def gray(images: np.ndarray) -> np.ndarray:
    """Return gray levels of (N,3,H,W), a band of rows at a time: they are floats before they are rounded."""
    height = images.shape[2]
    rows = fitting(height, images[:, :, :1].nbytes)
    bands = [images[:, :, top : top + rows] for top in range(0, height, rows)]
    done = [functional.rgb_to_grayscale(writable(band)).numpy() for band in bands]
    return np.concatenate(done, axis=2) if len(done) > 1 else done[0]


def resized(images: np.ndarray, size: list[int], num_levels: int) -> np.ndarray:
    """Bicubic with antialiasing, whatever the ratio of the sides.  The overshoot at edges is clipped to the levels."""
    bicubic = functional.InterpolationMode.BICUBIC
    result = functional.resize(writable(images), size, interpolation=bicubic, antialias=True).numpy()
    return np.asarray(np.minimum(result, np.uint8(num_levels - 1)))


def writable(images: np.ndarray) -> torch.Tensor:
    """Return a tensor of the images, or of a copy of those that are read-only, of which torch warns."""
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def shifted(images: np.ndarray, num_levels: int, num_bits: int) -> np.ndarray:
    """Levels without the bits below the upper `num_bits`."""
    shift = lost_bits(num_levels, num_bits)
    return images >> images.dtype.type(shift) if shift else images


def lost_bits(num_levels: int, num_bits: int) -> int:
    """How many low bits must go for levels 0..num_levels-1 to fit into `num_bits`."""
    return max(0, (num_levels - 1).bit_length() - num_bits)


def levels_left(num_levels: int, num_bits: int) -> int:
    """The number of levels after the shift."""
    return ((num_levels - 1) >> lost_bits(num_levels, num_bits)) + 1


def describe(num_levels: int, *, grayscale: bool, resize: list[int] | None, pad: int, num_bits: int) -> str:
    """The transforms in words, as `dataset.json`, the digest and the model card state them; `none` without any."""
    bits = (num_levels - 1).bit_length()
    steps = [
        "grayscale (ITU-R 601)" if grayscale else "",
        f"resized to {resize[0]}x{resize[1]} (bicubic, antialiased)" if resize else "",
        f"padded by {pad}" if pad else "",
        f"{bits} bits shifted to {num_bits}" if bits > num_bits else "",
    ]
    return ", ".join(step for step in steps if step) or "none"
