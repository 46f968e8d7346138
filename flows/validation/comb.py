"""The comb test: do the levels of an image set look like the levels that a camera or a renderer gave?

Pixels that were quantised to fewer levels and spread out again, or stretched in contrast, leave gaps in the histogram;
pixels that were squeezed after quantisation pile up where two levels fell on one.  Both come at regular distances and
in great number, where the histogram of untouched pixels is smooth: it may be steep, as around a plain background, but
no level is almost empty right beside a full one.  The two end levels are left out: saturated pixels gather there in
untouched images too.
"""

from typing import NamedTuple

import numpy as np

# A level is judged where chance cannot explain it: 200 expected pixels and 1.4 times as many are nearly four sigmas
# apart, 40 and a tenth of that nearly six.
FEWEST_FOR_PEAK = 200
FEWEST_FOR_GAP = 40
# Mean pixels per level from which on a level that none has was skipped.
FEWEST_PER_LEVEL = 100
# With fewer, neighbouring levels differ too much for a smooth histogram; only skipped levels are judged.
FEWEST_LEVELS = 32
# Beyond these the window no longer grows with the levels, nor memory with their square.
MOST_LEVELS = 1024
GAP = 0.1
PEAK = 1.4


class Comb(NamedTuple):
    """For every level, whether it is a tooth of a comb (K,) bool."""

    gaps: np.ndarray
    """Almost empty between full neighbours, with a sharp edge on both sides."""
    peaks: np.ndarray
    """Much fuller than the levels beside it."""
    skipped: np.ndarray
    """Empty, the next levels in use on both sides full, in a set with pixels enough for every level."""


def comb(histogram: np.ndarray) -> Comb:
    """Judge the (K,) counts of the levels."""
    num_levels = len(histogram)
    many = histogram.sum() >= FEWEST_PER_LEVEL * num_levels
    skipped = (histogram == 0) & (enclosing(histogram) >= FEWEST_FOR_GAP) & many
    if num_levels < FEWEST_LEVELS:
        none = np.zeros(num_levels, dtype=bool)
        return Comb(none, none, skipped)
    counts, reach = histogram.astype(float), max(4, min(num_levels, MOST_LEVELS) // 16)
    counts[[0, -1]] = np.nan
    padded = np.pad(counts, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    expected = np.nanmean(np.delete(windows, reach, axis=1), axis=1)
    edges = falls(windows[:, : reach + 1]) & falls(windows[:, : reach - 1 : -1])
    beside = np.fmax(windows[:, reach - 1], windows[:, reach + 1])
    return Comb(
        gaps=(expected >= FEWEST_FOR_GAP) & (counts < GAP * expected) & edges,
        peaks=(beside >= FEWEST_FOR_PEAK) & (counts > PEAK * beside),
        skipped=skipped,
    )


def enclosing(histogram: np.ndarray) -> np.ndarray:
    """(K,) of the nearest levels in use below and above an empty one, the smaller count; 0 beyond the outermost."""
    used = np.flatnonzero(histogram)
    counts = np.concatenate([[0], histogram[used], [0]])
    place = np.searchsorted(used, np.arange(len(histogram)))
    return np.asarray(np.minimum(counts[place], counts[place + 1]))


def falls(counts: np.ndarray) -> np.ndarray:
    """(K,) whether a full level comes right before an almost empty one in (K, n) counts."""
    before, after = counts[:, :-1], counts[:, 1:]
    return np.asarray(np.any((before >= FEWEST_FOR_GAP) & (after < GAP * before), axis=1))
