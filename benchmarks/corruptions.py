"""Ways to corrupt images (N,C,H,W) of uint8 levels, with Pillow where people use it, for `benchmarks.contract`."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def photograph_patches(side: int, step: int) -> np.ndarray:
    """Return patches (N,3,side,side) of scikit-learn's two photographs, which overlap if `step` is less than `side`.

    The photographs were JPEG files.  They are halved by averaging 2x2 pixels, which removes the traces of that.
    """
    patches = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[0] // 2, photograph.shape[1] // 2
        sums = photograph[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).sum((1, 3), dtype=int)
        halved = ((sums + 2) // 4).astype(np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(halved, (side, side), axis=(0, 1))[::step, ::step]
        patches.append(windows.reshape(-1, 3, side, side))
    return np.concatenate(patches)


def pictures(images: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Return the images after a function that changes one of Pillow's pictures."""
    changed = [function(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))) for image in images]
    arrays = np.stack([np.asarray(picture) for picture in changed])
    return arrays[:, None] if arrays.ndim == 3 else np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))


def resized(picture: Image.Image, size: tuple[int, int], kind: str) -> Image.Image:
    """Return a picture of another size (width, height); if none of its levels is above 16, none of the new ones is."""
    highest = int(np.asarray(picture).max())
    larger = picture.resize(size, Image.Resampling[kind.upper()])
    return larger if highest > 16 else larger.point(lambda level: min(level, 16))


def enlarged(images: np.ndarray, kind: str, factor: float = 2) -> np.ndarray:
    """Return larger images."""
    size = (round(images.shape[3] * factor), round(images.shape[2] * factor))
    return pictures(images, lambda picture: resized(picture, size, kind))


def halved(images: np.ndarray, kind: str) -> np.ndarray:
    """Return images of the same size that were made half as large in between."""
    half, size = (images.shape[3] // 2, images.shape[2] // 2), (images.shape[3], images.shape[2])
    return pictures(images, lambda picture: resized(resized(picture, half, kind), size, kind))


def blurred(images: np.ndarray, sd: float) -> np.ndarray:
    """Return images that were blurred by a Gaussian of `sd` pixels, computed from floats."""
    place = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (place / sd) ** 2)
    kernel /= kernel.sum()
    smooth = images.astype(np.float32)
    for axis in (2, 3):
        padded = np.pad(smooth, [(4, 4) if number == axis else (0, 0) for number in range(4)], mode="edge")
        length = smooth.shape[axis]
        smooth = sum(weight * padded.take(range(first, first + length), axis) for first, weight in enumerate(kernel))
    return np.rint(smooth).astype(np.uint8)


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Return images that were saved as JPEG."""

    def compressed(picture: Image.Image) -> Image.Image:
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file).convert(picture.mode)

    return pictures(images, compressed)


def contrast(images: np.ndarray, factor: float) -> np.ndarray:
    """Return images whose levels were multiplied."""
    return np.clip(np.rint(images * np.float32(factor)), 0, 255).astype(np.uint8)


def in_a_tenth(images: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the images, a random tenth of which was changed."""
    chosen = np.random.default_rng(1).choice(len(images), len(images) // 10, replace=False)
    changed = images.copy()
    changed[chosen] = function(images[chosen])
    return changed


def shuffled(labels: np.ndarray) -> np.ndarray:
    """Return the labels, a random fifth of which were exchanged among one another."""
    generator = np.random.default_rng(1)
    chosen = generator.choice(len(labels), len(labels) // 5, replace=False)
    changed = labels.copy()
    changed[chosen] = labels[generator.permutation(chosen)]
    return changed


def one_pixel(images: np.ndarray, num_levels: int) -> np.ndarray:
    """Return images with one pixel inverted in all channels."""
    generator, changed = np.random.default_rng(2), images.copy()
    rows, columns = (generator.integers(0, side, len(images)) for side in images.shape[2:])
    every = np.arange(len(images))
    changed[every, :, rows, columns] = num_levels - 1 - changed[every, :, rows, columns]
    return changed


def noisy(images: np.ndarray, sd: float, num_levels: int) -> np.ndarray:
    """Return images with Gaussian noise of `sd` levels."""
    noise = np.random.default_rng(3).normal(0, sd, images.shape)
    return np.clip(np.rint(images + noise), 0, num_levels - 1).astype(np.uint8)
