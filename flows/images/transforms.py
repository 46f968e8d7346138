"""PixelChange the pixels of a source.  Each transform changes the bits/dim, so each is declared and recorded.

The order: background, grayscale or gray_as_rgb, crop, resize, pad, down to `num_bits`.  If that is 8 or less, images of
more than 8 bits are first shifted down to 8.
`flows.images.picture` lays pictures over the background.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from flows.core.errors import Exit, UserError
from flows.images.image_set import PixelChange, rows_per_chunk

if TYPE_CHECKING:
    from flows.core.params import Data
    from flows.images.picture import Picture

# C x H x W of one image: a larger one cannot be trained on, since the model keeps the resolution throughout.
MOST_DIMS = 2**25


def parts(images: np.ndarray, data: "Data") -> Iterator[slice]:
    """Yield the slices of images to transform at a time, which bounds memory.

    Raises UserError for images that are too large after the transforms: exit 2 if resize or pad is set, else 4.
    """
    channels, *sides = shape_of(images.shape[1:], data)
    height, width = (side + 2 * data.pad for side in data.resize or sides)
    if channels * height * width > MOST_DIMS:
        reason = f"images of {channels}x{height}x{width} have more than {MOST_DIMS:,} levels"
        advice = "set data.resize to a smaller [height, width], or lower data.pad"
        raise UserError(f"{reason}; {advice}", Exit.USAGE if data.resize or data.pad else Exit.INVALID_DATA)
    step = rows_per_chunk(len(images), max(images[0].nbytes, channels * height * width))
    for first in range(0, len(images), step):
        yield slice(first, first + step)


def shape_of(shape: tuple[int, ...], data: "Data") -> tuple[int, int, int]:
    """Return the shape (C,H,W) of images before they are resized."""
    channels, height, width = shape
    if data.grayscale and channels == 3:
        channels = 1
    if data.gray_as_rgb and channels == 1:
        channels = 3
    if data.crop:
        height = width = min(height, width)
    return channels, height, width


def transform(images: np.ndarray, num_levels: int, data: "Data") -> np.ndarray:
    """Return (N,C,H,W) levels 0..num_levels-1, uint8 or uint16, transformed to levels 0..levels_left(...)-1.

    These are uint8 up to 256 levels.  Raises UserError (exit 2) for grayscale of other than 1 or 3 channels.
    """
    if data.num_bits and data.num_bits <= 8:
        images = drop_low_bits(images, num_levels, 8).astype(np.uint8, copy=False)
        num_levels = levels_left(num_levels, 8)
    if data.grayscale and images.shape[1] != 1:
        images = gray(images)
    if data.gray_as_rgb and images.shape[1] == 1:
        images = images.repeat(3, axis=1)
    if data.crop:
        images = middle(images)
    if data.resize and list(images.shape[2:]) != data.resize:
        images = resize(images, data.resize, num_levels)
    if data.pad:
        images = np.pad(images, ((0, 0), (0, 0), (data.pad, data.pad), (data.pad, data.pad)))
    return drop_low_bits(images, num_levels, data.num_bits)


def transform_picture(picture: "Picture", data: "Data") -> "Picture":
    """Return a picture of levels, transformed.  Raises what `transform` raises."""
    words = describe_transforms(picture.num_levels, data)
    left = levels_left(picture.num_levels, data.num_bits)
    return picture._replace(
        pixels=transform(picture.pixels, picture.num_levels, data), num_levels=left, transforms=words
    )


def gray(images: np.ndarray) -> np.ndarray:
    """Return the gray levels of (N,3,H,W), rounded, so that colours without hue keep their level."""
    if images.shape[1] != 3:
        reason = f"data.grayscale needs 1 or 3 channels, but the images have {images.shape[1]}"
        raise UserError(reason, Exit.USAGE)
    red, green, blue = images.astype(np.uint32).swapaxes(0, 1)
    return np.asarray((299 * red + 587 * green + 114 * blue + 500) // 1000, images.dtype)[:, None]


def middle(images: np.ndarray) -> np.ndarray:
    """Return the middle square of (N,C,H,W); of an odd number of rows or columns too many, one more at the end goes."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def resize(images: np.ndarray, size: list[int], num_levels: int) -> np.ndarray:
    """Return the images resized to `size` (H,W): bicubic, antialiased, overshoot at edges clipped to the levels."""
    import torch
    from torchvision.transforms.v2 import functional

    bicubic = functional.InterpolationMode.BICUBIC
    # np.require copies read-only images, of which torch warns.
    tensor = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if images.dtype != np.uint8:
        tensor = tensor.float()
    if size[1] == 1:  # torch fails for three channels then, and is wrong for five; one channel at a time is slower
        tensor = tensor.flatten(0, 1)[:, None]
    result = functional.resize(tensor, size, interpolation=bicubic, antialias=True).numpy()
    if images.dtype != np.uint8:
        result = result.round().clip(0)
    return np.asarray(np.minimum(result, num_levels - 1), images.dtype).reshape(*images.shape[:2], *size)


def drop_low_bits(images: np.ndarray, num_levels: int, num_bits: int | None) -> np.ndarray:
    """Return the upper `num_bits` bits of the levels; all for None."""
    shift = lost_bits(num_levels, num_bits)
    return images >> images.dtype.type(shift) if shift else images


def lost_bits(num_levels: int, num_bits: int | None) -> int:
    """Return how many low bits to drop so that levels 0..num_levels-1 fit into `num_bits`; 0 for None."""
    return 0 if num_bits is None else max(0, (num_levels - 1).bit_length() - num_bits)


def levels_left(num_levels: int, num_bits: int | None) -> int:
    """Return the number of levels after the shift to `num_bits`."""
    return ((num_levels - 1) >> lost_bits(num_levels, num_bits)) + 1


def list_transforms(num_levels: int, data: "Data") -> dict[PixelChange, str]:
    """Return the transforms in words, by their parameter and in their order."""
    bits = (num_levels - 1).bit_length()
    steps: dict[PixelChange, str] = {
        "background": f"transparency laid over {data.background_hex}, in 8 bits" if data.background else "",
        "grayscale": "grayscale (ITU-R 601, rounded)" if data.grayscale else "",
        "gray_as_rgb": "gray as RGB" if data.gray_as_rgb else "",
        "crop": "cropped to the middle square" if data.crop else "",
        "resize": f"resized to {data.resize[0]}x{data.resize[1]} (bicubic, antialiased)" if data.resize else "",
        "pad": f"padded by {data.pad}" if data.pad else "",
        "num_bits": f"{bits} bits shifted to {data.num_bits}" if lost_bits(num_levels, data.num_bits) else "",
    }
    return {name: words for name, words in steps.items() if words}


def describe_transforms(num_levels: int, data: "Data") -> str:
    """Return the transforms in words, for `dataset.json`, the digest and the model card; `none` without any."""
    return ", ".join(list_transforms(num_levels, data).values()) or "none"
