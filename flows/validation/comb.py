"""The comb test: find levels that were spread or squeezed after quantisation.

Quantising to fewer levels and spreading them again, or stretching the contrast, leaves gaps in the histogram.
Squeezing the levels leaves peaks where two levels were mapped to one.  The histogram of unprocessed pixels is smooth:
it may be steep, as around a plain background, but no level is almost empty right next to a full one.  The two end
levels are not judged, since saturated pixels gather there in unprocessed images too.  Flat colours make peaks, but not
among the pixels that differ from their neighbours, the textured ones.  Where these are few, or few levels hold most of
the pixels, as in drawings, nothing is judged.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
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
MOST_LEVELS = 1024
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


def unjudged(histogram: np.ndarray, textured: np.ndarray) -> list[str]:
    """Return the fields of `Comb` for which too few levels are in use, given all and the textured pixels (K,)."""
    inner = np.sort(histogram[1:-1][histogram[1:-1] > 0])[::-1]
    in_tenth = inner[: -(-len(inner) // 10)].sum()
    if textured.sum() < LEAST_TEXTURE * histogram.sum() or in_tenth > MOST_IN_TENTH * inner.sum():
        return [*Comb._fields]
    return ["gaps", "peaks"] if len(histogram) < FEWEST_LEVELS else []


def comb(histogram: np.ndarray, textured: np.ndarray) -> Comb:
    """Return the gaps, peaks and skipped levels, given the histograms of all and of the textured pixels (K,)."""
    num_levels = len(histogram)
    used = pd.Series(histogram).where(histogram > 0)
    # The smaller count of the nearest used levels below and above.
    enclosing = np.minimum(used.ffill(), used.bfill()).to_numpy()
    many = histogram.sum() >= FEWEST_PER_LEVEL * num_levels
    skipped = (histogram == 0) & (enclosing >= FEWEST_FOR_GAP) & many
    if num_levels < FEWEST_LEVELS:
        none = np.zeros(num_levels, dtype=bool)
        return Comb(none, none, skipped)
    counts = histogram.astype(float)
    reach = max(4, min(num_levels, MOST_LEVELS) // 16)
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
        peaks=certain((beside >= FEWEST_FOR_PEAK) & (counts > PEAK * beside) & ~lumps, histogram, beside),
        skipped=skipped,
    )


def certain(peaks: np.ndarray, histogram: np.ndarray, beside: np.ndarray) -> np.ndarray:
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
    if not FEWEST_LEVELS <= num_levels <= MOST_LEVELS:
        return np.zeros(num_levels), np.full(num_levels, np.inf)
    without = above_neighbours(total - histograms)
    spread = np.sqrt((groups - 1) * without.var(axis=0))
    full = convolve1d(total.astype(float), NEIGHBOURS) >= FEWEST_FOR_HEIGHT
    full[[0, 1, -2, -1]] = False
    return np.where(full, above_neighbours(total), 0), np.where(full & (spread > 0), spread, np.inf)


def above_neighbours(counts: np.ndarray) -> np.ndarray:
    """Return the share by which each level is fuller than the weighted mean of the four levels around it (...,K)."""
    return np.asarray(counts / np.maximum(convolve1d(counts.astype(float), NEIGHBOURS), 1) - 1)
