"""Detail that is missing, and the grid that JPEG leaves: what the histogram of the levels cannot show.

An image that was enlarged or blurred has less detail than pixels: in segments of 16 neighbouring pixels, some
directions (eigenvectors of their covariance) carry nothing but the rounding to whole levels, whatever the kernel was.
JPEG rounds the cosine coefficients of blocks of 8x8 pixels to multiples of a step for every frequency.  After decoding
they still lie around these multiples, so that the mean of cos(2 pi c / step) over coefficients c is near 1.  For the
coefficients of unprocessed images, which have a falling density beyond half a step, it is about 0 or negative.
"""

from typing import NamedTuple

import numpy as np

SEGMENT, BLOCK = 16, 8
PERIOD = 24
"""Distance of the segments: a multiple of 2, 3, 4, 6 and 8, so that enlarged images look alike in all of them."""
SAMPLED = 2500
"""Images of a split that are measured, evenly spread."""
SIDES = {"moments": 64, "grid": 32}
"""Largest side of the part in the middle of an image that is measured."""
ROUNDING = 0.5
"""Variance in levels^2 up to which a direction carries nothing but rounding, whose own is 1/12."""
FEWEST_SEGMENTS = 50 * SEGMENT
FEWEST_POSITIONS = 8
STEPS = np.arange(2, 41)
FEWEST_COEFFICIENTS, FEWEST_FREQUENCIES = 50, 8
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Space(NamedTuple):
    """Sums over images."""

    moments: np.ndarray
    """(2,2,17,17): sums of the products of (1, pixels), first of the segments without end levels, then of all; of each
    along rows, then along columns."""
    grid: np.ndarray
    """(2,64,S): by frequency and step, the sum of cos(2 pi c / step) and the number of coefficients |c| > step / 2."""

    def add(self, pixels: np.ndarray, num_levels: int) -> None:
        """Add images (n,C,H,W) of integer levels."""
        if min(pixels.shape[2:]) >= SEGMENT:
            middle = cropped(pixels, SIDES["moments"])
            for axis, turned in enumerate((middle, middle.swapaxes(2, 3))):
                for first in range(0, turned.shape[3] - SEGMENT + 1, PERIOD):
                    self.moments[:, axis] += products(turned[..., first : first + SEGMENT], num_levels)
        if num_levels == 256 and min(pixels.shape[2:]) >= BLOCK:
            self.grid[:] += grid_sums(coefficients(cropped(pixels, SIDES["grid"])))


def nothing() -> Space:
    """Return the sums over no images."""
    return Space(np.zeros((2, 2, SEGMENT + 1, SEGMENT + 1)), np.zeros((2, BLOCK**2, len(STEPS))))


def cropped(pixels: np.ndarray, most: int) -> np.ndarray:
    """Return the middle of images, at most `most` pixels wide and high, cut at multiples of 24."""
    height, width = pixels.shape[2:]
    top, left = (max(0, side - most) // 2 // PERIOD * PERIOD for side in (height, width))
    return pixels[:, :, top : top + most, left : left + most]


def products(segments: np.ndarray, num_levels: int) -> np.ndarray:
    """Return the sums of the products of (1, pixels): of the segments (...,16) without end levels, and of all."""
    flat = segments.reshape(-1, SEGMENT)
    inner = (flat.min(axis=1) > 0) & (flat.max(axis=1) < num_levels - 1)
    rows = np.concatenate([np.ones((len(flat), 1)), flat], axis=1)
    unsaturated = rows[inner]
    return np.stack([unsaturated.T @ unsaturated, rows.T @ rows])


def lost_detail(space: Space) -> float:
    """Return the larger share of directions with nothing but rounding, along rows or columns; 0 for few segments.

    Segments with end levels, where clipping added detail, are left out if there are enough others.
    """
    shares = [0.0]
    for inner, every in space.moments.swapaxes(0, 1):
        moments = inner if inner[0, 0] >= FEWEST_SEGMENTS else every
        if moments[0, 0] >= FEWEST_SEGMENTS:
            shares.append(lost(moments))
    return max(shares)


def lost(moments: np.ndarray) -> float:
    """Return the share of directions without detail among the pixels of a segment that vary."""
    mean = moments[0, 1:] / moments[0, 0]
    covariance = moments[1:, 1:] / moments[0, 0] - np.outer(mean, mean)
    varies = np.diag(covariance) > ROUNDING
    if varies.sum() < FEWEST_POSITIONS:
        return 0.0
    variances = np.linalg.eigvalsh(covariance[varies][:, varies])
    return float((variances < ROUNDING).mean())


def cosine_transform() -> np.ndarray:
    """Return the matrix that maps the pixels of a block to its 64 coefficients, (64,64) float32."""
    frequency, place = np.arange(BLOCK)[:, None], np.arange(BLOCK)
    basis = np.cos(np.pi * frequency * (2 * place + 1) / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    basis[0] /= np.sqrt(2)
    return np.kron(basis, basis).astype(np.float32)


def coefficients(pixels: np.ndarray) -> np.ndarray:
    """Return the cosine coefficients (B,64) of the brightness in blocks of 8x8 without saturated pixels."""
    inner = np.all((pixels > 0) & (pixels < 255), axis=1)
    values = pixels[:, :3].astype(np.float32)
    gray = np.tensordot(values, LUMA, (1, 0)) if pixels.shape[1] == 3 else values[:, 0]
    count, height, width = gray.shape
    down, across = height // BLOCK, width // BLOCK

    def blocks(plane: np.ndarray) -> np.ndarray:
        cut = plane[:, : down * BLOCK, : across * BLOCK]
        return cut.reshape(count, down, BLOCK, across, BLOCK).swapaxes(2, 3).reshape(-1, BLOCK**2)

    usable = blocks(inner).all(axis=1)
    return np.asarray((blocks(gray)[usable] - 128) @ cosine_transform().T)


def grid_sums(found: np.ndarray) -> np.ndarray:
    """Return what (B,64) coefficients add to `Space.grid` (2,64,S)."""
    sums = np.zeros((2, BLOCK**2, len(STEPS)))
    for number, step in enumerate(STEPS):
        outside = np.abs(found) > step / 2
        sums[0, :, number] = np.where(outside, np.cos(found * np.float32(2 * np.pi / step)), 0).sum(axis=0)
        sums[1, :, number] = outside.sum(axis=0)
    return sums


def jpeg_grid(space: Space) -> float:
    """Return how much the coefficients lie on a grid: 0 for unprocessed images, up to 1 after JPEG; 0 for few blocks.

    It is the median over the frequencies of the largest mean of cos(2 pi c / step) of any step.
    """
    cosines, counts = space.grid
    means = np.where(counts >= FEWEST_COEFFICIENTS, cosines / np.maximum(counts, 1), -1)
    judged = (counts >= FEWEST_COEFFICIENTS).any(axis=1)
    if judged.sum() < FEWEST_FREQUENCIES:
        return 0.0
    return max(0.0, float(np.median(means.max(axis=1)[judged])))
