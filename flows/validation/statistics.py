"""Measure the direction, sharpness, balance and channels of every image.

A set whose channels or axes were exchanged, or that was blurred, differs from its reference in these statistics,
although the histogram of its levels is the same or hardly differs.
"""

import numpy as np

MOST_CHANNELS = 4
FEWEST_PIXELS = 3
"""Pixels that each side of an image needs for a second difference."""


def is_image(images: np.ndarray) -> bool:
    """Return whether an array holds (N,C,H,W) integers of at least 3x3 pixels."""
    if images.ndim != 4 or images.dtype.kind not in "ui":
        return False
    return bool(images.shape[1] > 0 and min(images.shape[2:]) >= FEWEST_PIXELS)


def num_channels(images: np.ndarray) -> int:
    """Return how many channels of (N,C,H,W) images are distinguished: 2 to 4, or 1 for any other number."""
    return images.shape[1] if is_image(images) and 2 <= images.shape[1] <= MOST_CHANNELS else 1


def brightness(values: np.ndarray) -> np.ndarray:
    """Return the mean (n,H,W) of the channels of images (n,C,H,W)."""
    return np.asarray(values[:, 0] if values.shape[1] == 1 else values.mean(axis=1))


def statistics(values: np.ndarray, gray: np.ndarray, num_levels: int) -> dict[str, np.ndarray]:
    """Return statistics (n,) by name, from float32 images (n,C,H,W) with K levels and their brightness (n,H,W).

    `direction` is the logarithm of the change from left to right over that from top to bottom, `sharpness` that of the
    second over the first differences.  `balance` is the difference of two halves, and `channel i` the distance of a
    channel's mean from the image's, all in levels.
    """
    one_level = (num_levels - 1) / 255
    first = {axis: np.abs(np.diff(gray, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)}
    second = {axis: np.abs(np.diff(gray, n=2, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)}
    columns, rows = gray.mean(axis=1), gray.mean(axis=2)
    found = {
        "direction": np.log((first[2] + one_level) / (first[1] + one_level)),
        "sharpness": np.log((second[1] + second[2] + one_level) / (first[1] + first[2] + one_level)),
        "balance across": halves(columns),
        "balance down": halves(rows),
    }
    if 1 < values.shape[1] <= MOST_CHANNELS:
        means = values.mean(axis=(2, 3))
        means -= means.mean(axis=1, keepdims=True)
        found |= {f"channel {number}": means[:, number] for number in range(means.shape[1])}
    return found


def halves(means: np.ndarray) -> np.ndarray:
    """Return for each row of (n,L) means the mean of its last half minus that of its first half (n,)."""
    middle = means.shape[1] // 2
    return np.asarray(means[:, -middle:].mean(axis=1) - means[:, :middle].mean(axis=1))
