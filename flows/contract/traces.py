"""The traces that processing leaves in images: a comb in the histogram of the levels, missing detail, JPEG's grid.

The comb test finds levels that were spread or squeezed after quantisation.  Quantising to fewer levels and spreading
them again, or stretching the contrast, leaves gaps in the histogram.
Squeezing the levels leaves peaks where two levels were mapped to one.  The histogram of unprocessed pixels is smooth:
it may be steep, as around a plain background, but no level is almost empty right next to a full one.  The two end
levels are not judged, since saturated pixels gather there in unprocessed images too.  Flat colours make peaks, but not
among the pixels that differ from their neighbours, the textured ones.  Where these are few, or few levels hold most of
the pixels, as in drawings, nothing is judged.

An image that was enlarged or blurred has less detail than pixels: in segments of 16 neighbouring pixels, some
directions (eigenvectors of their covariance) carry nothing but the rounding to whole levels, whatever the kernel was.
JPEG rounds the cosine coefficients of blocks of 8x8 pixels to multiples of a step for every frequency.  After decoding
they still lie around these multiples, so that the mean of cos(2 pi c / step) over coefficients c is near 1.  For the
coefficients of unprocessed images, which have a falling density beyond half a step, it is about 0 or negative.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.fft import dctn
from scipy.ndimage import convolve1d

# Below these a difference may be chance: 200 and 280 pixels are 3.7 standard deviations apart, 40 and 4 are 5.4.
FEWEST_FOR_PEAK = 200
FEWEST_FOR_GAP = 40
# Plain areas of a few images make one or two peaks.  So `MANY_PEAKS` peaks count at once, while fewer need this many
# pixels in a level beside them, and a bend this many times the median one.
MANY_PEAKS = 3
FEWEST_FOR_LONE_PEAK = 600
SHARP = 10
# With fewer pixels the error of a height, from 20 groups, is not certain enough.
FEWEST_FOR_HEIGHT = 1000
# Mean number of pixels per level from which an empty level counts as skipped.
FEWEST_PER_LEVEL = 100
# With fewer levels the histogram is not smooth, and only skipped levels are judged.
FEWEST_LEVELS = 32
# With more levels the window stops growing; memory would grow with the square of the levels.
MOST_COMB_LEVELS = 1024
# Share of textured pixels: 0.4 to 0.8 in photographs, mostly below 0.15 in drawings of flat colours.
LEAST_TEXTURE = 1 / 6
# Share of pixels in the fullest tenth of the levels: 0.2 to 0.46 in photographs, above 0.55 in drawings of few colours.
MOST_IN_TENTH = 0.5
NEIGHBOURS = np.array([1, 2, 0, 2, 1]) / 6
GAP = 0.1
PEAK, TEXTURED_PEAK = 1.4, 1.1


class Comb(NamedTuple):
    """What is wrong with each level, (K,) bool."""

    gaps: np.ndarray
    """Whether it is almost empty between full neighbours, with a sharp edge on both sides."""
    peaks: np.ndarray
    """Whether it is much fuller than the levels beside it."""
    skipped: np.ndarray
    """Whether it is empty between full levels, in a set with enough pixels for every level."""


def unjudged_fields(histogram: np.ndarray, textured: np.ndarray) -> list[str]:
    """Return the fields of `Comb` for which too few levels are in use, given all and the textured pixels (K,).

    Above 256 levels there may also be too few pixels of each.
    """
    inner = np.sort(histogram[1:-1][histogram[1:-1] > 0])[::-1]
    in_tenth = inner[: -(-len(inner) // 10)].sum()
    sparse = len(histogram) > 256 and inner.sum() < FEWEST_FOR_GAP * len(inner)
    if sparse or textured.sum() < LEAST_TEXTURE * histogram.sum() or in_tenth > MOST_IN_TENTH * inner.sum():
        return [*Comb._fields]
    return ["gaps", "peaks"] if len(histogram) < FEWEST_LEVELS else []


def comb(histogram: np.ndarray, textured: np.ndarray) -> Comb:
    """Return the gaps, peaks and skipped levels, given the histograms of all and of the textured pixels (K,)."""
    num_levels = len(histogram)
    used = pd.Series(histogram).where(histogram > 0)
    # The smaller count of the nearest used levels below and above.
    enclosing = np.minimum(used.ffill(), used.bfill()).to_numpy()
    # Levels of pictures of more than 8 bits are rarely all used, and one between full ones is not empty by chance.
    many = num_levels > 256 or histogram.sum() >= FEWEST_PER_LEVEL * num_levels
    skipped = (histogram == 0) & (enclosing >= FEWEST_FOR_GAP) & many
    if num_levels < FEWEST_LEVELS:
        none = np.zeros(num_levels, dtype=bool)
        return Comb(none, none, skipped)
    counts = histogram.astype(float)
    reach = max(4, min(num_levels, MOST_COMB_LEVELS) // 16)
    counts[[0, -1]] = np.nan
    padded = np.pad(counts, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    expected = np.nanmean(np.delete(windows, reach, axis=1), axis=1)
    edges = falls(windows[:, : reach + 1]) & falls(windows[:, : reach - 1 : -1])
    beside = np.fmax(windows[:, reach - 1], windows[:, reach + 1])
    inner = np.pad(textured[1:-1], 1)
    lumps = inner <= TEXTURED_PEAK * np.maximum(np.roll(inner, 1), np.roll(inner, -1))
    return Comb(
        gaps=(expected >= FEWEST_FOR_GAP) & (counts < GAP * expected) & edges,
        peaks=are_certain((beside >= FEWEST_FOR_PEAK) & (counts > PEAK * beside) & ~lumps, histogram, beside),
        skipped=skipped,
    )


def are_certain(peaks: np.ndarray, histogram: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Return the peaks (K,) if there are many, and otherwise those that are full and sharp."""
    if peaks.sum() >= MANY_PEAKS:
        return peaks
    logs = np.log(np.maximum(histogram, 1))
    bend = convolve1d(logs, [-0.5, 1, -0.5])
    typical = np.median(np.abs(bend[2:-2]))  # without the end levels and those beside them
    bend[[0, 1, -2, -1]] = 0
    return np.asarray(peaks & (beside >= FEWEST_FOR_LONE_PEAK) & (bend > SHARP * typical))


def falls(counts: np.ndarray) -> np.ndarray:
    """Return whether a full level comes right before an almost empty one in each row of (K,n) counts (K,)."""
    before, after = counts[:, :-1], counts[:, 1:]
    return np.asarray(np.any((before >= FEWEST_FOR_GAP) & (after < GAP * before), axis=1))


def heights(histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much fuller each level is than its neighbours, as a share (K,), and its standard error (K,).

    The histograms (G,K) are those of groups of images; their differences give the error (the jackknife).  The error is
    infinite for levels that are not judged: near the ends, or with few pixels around them.
    """
    total = histograms.sum(axis=0)
    groups, num_levels = histograms.shape
    if not FEWEST_LEVELS <= num_levels <= MOST_COMB_LEVELS:
        return np.zeros(num_levels), np.full(num_levels, np.inf)
    without = above_neighbours(total - histograms)
    spread = np.sqrt((groups - 1) * without.var(axis=0))
    full = convolve1d(total.astype(float), NEIGHBOURS) >= FEWEST_FOR_HEIGHT
    full[[0, 1, -2, -1]] = False
    return np.where(full, above_neighbours(total), 0), np.where(full & (spread > 0), spread, np.inf)


def above_neighbours(counts: np.ndarray) -> np.ndarray:
    """Return the share by which each level is fuller than the weighted mean of the four levels around it (...,K)."""
    return np.asarray(counts / np.maximum(convolve1d(counts.astype(float), NEIGHBOURS), 1) - 1)


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


def crop(pixels: np.ndarray, most: int) -> np.ndarray:
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
    middle = crop(pixels, SIDES["detail"])
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
    found = coefficients(crop(pixels, SIDES["grid"]))
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
