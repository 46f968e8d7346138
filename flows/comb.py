"""The comb test: do the levels of an image set look like the levels that a camera or a renderer gave?

Pixels that were quantised to fewer levels and spread out again, or stretched in contrast, leave gaps in the histogram;
pixels that were squeezed after quantisation pile up where two levels fell on one.  Both come at regular distances and
in great number, where the histogram of untouched pixels is smooth.  The two end levels are left out: saturated pixels
gather there in untouched images too.
"""

from typing import NamedTuple

import numpy as np

# A level is judged where chance cannot explain it: 200 expected pixels and 1.5 times as many are seven sigmas apart,
# 40 and a tenth of that nearly six.
FEWEST_FOR_PEAK = 200
FEWEST_FOR_GAP = 40
# Mean pixels per level from which on a level that none has was skipped.
FEWEST_PER_LEVEL = 100
# With fewer, neighbouring levels differ too much for a smooth histogram; only skipped levels are judged.
FEWEST_LEVELS = 32
GAP = 0.1
PEAK = 1.5


class Comb(NamedTuple):
    """For every level, whether it is a tooth of a comb (K,) bool."""

    gaps: np.ndarray
    """Almost empty between full neighbours."""
    peaks: np.ndarray
    """Much fuller than its neighbours."""
    skipped: np.ndarray
    """Empty between the lowest and the highest level in use, in a set with pixels enough for every level."""


def comb(histogram: np.ndarray) -> Comb:
    """Judge the (K,) counts of the levels."""
    num_levels, used = len(histogram), np.flatnonzero(histogram)
    inner = between(used, num_levels)
    many = histogram.sum() >= FEWEST_PER_LEVEL * num_levels
    if num_levels < FEWEST_LEVELS:
        none = np.zeros(num_levels, dtype=bool)
        return Comb(none, none, inner & (histogram == 0) & many)
    inner[[0, -1]] = False
    expected = np.nanmean(neighbours(histogram, reach=max(4, num_levels // 16)), axis=1)
    typical = np.nanmedian(neighbours(histogram, reach=4), axis=1)
    return Comb(
        gaps=inner & (expected >= FEWEST_FOR_GAP) & (histogram < GAP * expected),
        peaks=inner & (typical >= FEWEST_FOR_PEAK) & (histogram > PEAK * typical),
        skipped=between(used, num_levels) & (histogram == 0) & many,
    )


def neighbours(histogram: np.ndarray, reach: int) -> np.ndarray:
    """(K, 2 reach) counts of the levels around each, NaN beyond the inner levels."""
    inner = histogram.astype(float)
    inner[[0, -1]] = np.nan
    padded = np.pad(inner, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return np.delete(windows, reach, axis=1)


def between(used: np.ndarray, num_levels: int) -> np.ndarray:
    """(K,) the levels from the lowest to the highest in use."""
    levels = np.arange(num_levels)
    return (levels >= used[0]) & (levels <= used[-1]) if len(used) else np.zeros(num_levels, dtype=bool)
