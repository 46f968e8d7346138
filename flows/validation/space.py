"""Detail that is missing, and the grid that JPEG leaves: what the histogram of the levels cannot show.

An image that was enlarged or blurred has less detail than pixels: in segments of 16 neighbouring pixels, some
directions (eigenvectors of their covariance) carry nothing but the rounding to whole levels, whatever the kernel was.
JPEG rounds the cosine coefficients of blocks of 8x8 pixels to multiples of a step for every frequency.  After decoding
they still lie around these multiples, so that the mean of cos(2 pi c / step) over coefficients c is near 1.  For the
coefficients of unprocessed images, which have a falling density beyond half a step, it is about 0 or negative.
"""

import numpy as np
from scipy.fft import dctn

SEGMENT, BLOCK = 16, 8
PERIOD = 24
"""Distance of the segments: a multiple of 2, 3, 4, 6 and 8, so that enlarged images look alike in all of them."""
SIDES = {"detail": 64, "grid": 32}
"""Largest side of the part in the middle of an image that is measured."""
ROUNDING = 0.5
"""Variance in levels^2 up to which a direction carries nothing but rounding, whose own is 1/12."""
FEWEST_SEGMENTS, MOST_SEGMENTS = 50 * SEGMENT, 100_000
FEWEST_POSITIONS = 8
STEPS = np.arange(2, 41)
FEWEST_COEFFICIENTS, FEWEST_FREQUENCIES = 50, 8
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def cropped(pixels: np.ndarray, most: int) -> np.ndarray:
    """Return the middle of images, at most `most` pixels wide and high, cut at multiples of 24."""
    height, width = pixels.shape[2:]
    top, left = (max(0, side - most) // 2 // PERIOD * PERIOD for side in (height, width))
    return pixels[:, :, top : top + most, left : left + most]


def lost_detail(pixels: np.ndarray, num_levels: int) -> float:
    """Return the larger share of directions with nothing but rounding, along rows or columns of images (n,C,H,W).

    Segments with end levels, where clipping added detail, or with a quarter of one level, as in drawings, are left out
    if there are enough others.  The result is 0 for few segments.
    """
    shares = [0.0]
    middle = cropped(pixels, SIDES["detail"])
    for turned in (middle, middle.swapaxes(2, 3)):
        first = range(0, turned.shape[3] - SEGMENT + 1, PERIOD) if min(turned.shape[2:]) >= SEGMENT else range(0)
        parts = [turned[..., place : place + SEGMENT].reshape(-1, SEGMENT) for place in first]
        segments = np.concatenate([np.zeros((0, SEGMENT), pixels.dtype), *parts])
        varied = np.ptp(segments.reshape(-1, 4, SEGMENT // 4), axis=2).all(axis=1)
        inner = segments[varied & (segments.min(axis=1) > 0) & (segments.max(axis=1) < num_levels - 1)]
        some = inner if len(inner) >= FEWEST_SEGMENTS else segments
        if len(some) >= FEWEST_SEGMENTS:
            covariance = np.cov(some[:: -(-len(some) // MOST_SEGMENTS)], rowvar=False)
            varies = np.diag(covariance) > ROUNDING
            if varies.sum() >= FEWEST_POSITIONS:
                shares.append(float((np.linalg.eigvalsh(covariance[varies][:, varies]) < ROUNDING).mean()))
    return max(shares)


def jpeg_grid(pixels: np.ndarray, num_levels: int) -> float:
    """Return how much images (n,C,H,W) lie on the grid of JPEG: 0 for unprocessed ones, up to 1 after JPEG.

    It is the median over the frequencies of the largest mean of cos(2 pi c / step) of any step.  It is 0 for few
    blocks, and for images of other than 256 levels.
    """
    if num_levels != 256 or min(pixels.shape[2:]) < BLOCK:
        return 0.0
    found = coefficients(cropped(pixels, SIDES["grid"]))
    means = np.full((len(STEPS), BLOCK**2), -1.0)
    for number, step in enumerate(STEPS):
        outside = np.abs(found) > step / 2
        counts = outside.sum(axis=0)
        cosines = np.where(outside, np.cos(found * np.float32(2 * np.pi / step)), 0).sum(axis=0, dtype=float)
        np.divide(cosines, counts, out=means[number], where=counts >= FEWEST_COEFFICIENTS)
    judged = (np.abs(found) > STEPS[0] / 2).sum(axis=0) >= FEWEST_COEFFICIENTS
    return max(0.0, float(np.median(means.max(axis=0)[judged]))) if judged.sum() >= FEWEST_FREQUENCIES else 0.0


def coefficients(pixels: np.ndarray) -> np.ndarray:
    """Return the cosine coefficients (B,64) of the brightness in blocks of 8x8 without saturated pixels."""
    values = pixels[:, :3].astype(np.float32)
    gray = np.tensordot(values, LUMA, (1, 0)) if pixels.shape[1] == 3 else values[:, 0]
    inner = np.all((pixels > 0) & (pixels < 255), axis=1)
    down, across = (side // BLOCK for side in gray.shape[1:])

    def blocks(plane: np.ndarray) -> np.ndarray:
        cut = plane[:, : down * BLOCK, : across * BLOCK]
        return cut.reshape(-1, down, BLOCK, across, BLOCK).swapaxes(2, 3).reshape(-1, BLOCK, BLOCK)

    usable = blocks(gray)[blocks(inner).all(axis=(1, 2))]
    return np.asarray(dctn(usable - 128, axes=(1, 2), norm="ortho").reshape(-1, BLOCK**2))
