"""Find images that are equal, and rank those that look like one of another split, compared with what chance gives.

Equal images have the same digest.  The others are searched as gray thumbnails, as they are and mirrored, and the pairs
found are ranked by the difference of their pixels relative to their contrast, since plain images are close to many.

What chance gives is estimated from the first split: with splits drawn at random, an image of the second split has as
many similar images in the first as an image of the first has.  A power law is fitted to the closest 5% of the pairs
within the first split.  It says how many images would be as close by chance, even where no such pair is.
"""

from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from scipy.stats import poisson

from flows.contract.facts import Facts, is_image, pick
from flows.images.image_set import ImageSet, rows_per_chunk
from vdm.choices import Split

PROBES = 2000
"""Images of a split that are compared with the other images of the same split, evenly spread."""
QUERIES = 10_000
"""Images of a split that are compared with those of another one, at most, evenly spread."""
TAIL, FEWEST_IN_TAIL = 0.05, 10
LEAST_CONTRAST = 0.03
"""Added to the standard deviation of the pixels, as a share of the range, for images that are almost plain."""
NEAREST = 1e-3
"""Relative differences below this are treated as equal."""
SURE = 1e-6
"""Probability below which chance does not explain so many similar images."""
COMPARED = 100
COLUMNS = ["image", "of_image", "moved", "distance", "relative"]
Pairs = dict[tuple[Split, Split], pd.DataFrame]


def repeats(digests: np.ndarray) -> np.ndarray:
    """Return whether an earlier image has the same digest (N,)."""
    return np.asarray(pd.Series(digests).duplicated())


def search(image_set: ImageSet, facts: dict[Split, Facts]) -> Pairs:
    """Return the most similar image of the first split for each image of the second, by pair of splits.

    A pair is in the order of the splits.  Of more than `QUERIES` images of the second, as many are searched for.  A
    split is also compared with itself: `PROBES` images of it.  Images that are equal to one of the first split are left
    out.  `distance` is the mean absolute difference of the pixels as a share
    of the range, and `relative` that distance relative to the contrast of the image found.  Frames are empty for splits
    without images, or with images of different shapes.
    """
    found: Pairs = {}
    for first, second in combinations_with_replacement(facts, 2):
        images, others = image_set[first], image_set[second]
        known = np.flatnonzero(~repeats(facts[first].digest))
        queries, most = (known, PROBES) if first == second else (others_of(facts, first, second), QUERIES)
        queries = queries[np.linspace(0, len(queries) - 1, min(len(queries), most)).astype(int)]
        comparable = is_image(images) and is_image(others) and images.shape[1:] == others.shape[1:]
        found[first, second] = pd.DataFrame(columns=COLUMNS, dtype=float)
        if comparable and len(known) > 1 and len(queries):
            of, mirrored = find_nearest(facts[first], known, facts[second], queries)
            distance = pixel_distances(images, of, others, queries, mirrored) / (image_set.num_levels - 1)
            contrast = facts[first].statistics["image deviation"][of] / (image_set.num_levels - 1) + LEAST_CONTRAST
            moved = np.where(mirrored, "mirrored", "as it is")
            found[first, second] = pd.DataFrame(
                dict(zip(COLUMNS, (queries, of, moved, distance, distance / contrast), strict=True))
            )
    return found


def others_of(facts: dict[Split, Facts], first: Split, second: Split) -> np.ndarray:
    """Return the numbers of the images of the second split that equal none of the first (n,)."""
    return np.flatnonzero(~np.isin(facts[second].digest, facts[first].digest))


def count_searched(facts: dict[Split, Facts], found: Pairs) -> dict[tuple[Split, Split], int]:
    """Return how many images `search` compared, by pair of splits of which it compared only a part."""
    return {
        (first, second): len(pairs)
        for (first, second), pairs in found.items()
        if first != second and 0 < len(pairs) < len(others_of(facts, first, second))
    }


def find_nearest(first: Facts, known: np.ndarray, second: Facts, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the images `known` is nearest to each of `queries` (n,), and whether to its mirror image (n,).

    No image is compared with itself.
    """
    from sklearn.neighbors import NearestNeighbors

    some = second.thumbnails[queries].astype(float)
    both = np.concatenate([some, some[:, :, ::-1]]).reshape(2 * len(some), -1)
    # Two neighbours, since one may be the image itself.
    index = NearestNeighbors(n_neighbors=2, algorithm="brute")
    index.fit(first.thumbnails[known].reshape(len(known), -1).astype(float))
    apart, place = (np.asarray(each).reshape(2, len(some), 2).swapaxes(0, 1) for each in index.kneighbors(both))
    numbers = known[place.reshape(-1, 4)]
    apart = np.where((numbers == queries[:, None]) & (first is second), np.inf, apart.reshape(-1, 4))
    best = apart.argmin(axis=1)
    return numbers[np.arange(len(some)), best], best >= 2


def pixel_distances(
    images: np.ndarray, of: np.ndarray, others: np.ndarray, queries: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """Return the mean absolute difference in levels of each pair of images (n,): the least over shifts of a pixel."""
    distance, step = np.empty(len(of)), rows_per_chunk(COMPARED, 8 * images[0].size)
    height, width = images.shape[2] - 2, images.shape[3] - 2
    for first in range(0, len(of), step):
        some = slice(first, first + step)
        theirs, ours = pick(images, of[some]).astype(np.int32), pick(others, queries[some]).astype(np.int32)
        ours = np.where(mirrored[some, None, None, None], ours[..., ::-1], ours)
        inner: np.ndarray = theirs[:, :, 1:-1, 1:-1]
        shifted = (ours[:, :, down : down + height, across : across + width] for down, across in np.ndindex(3, 3))
        distance[some] = np.min([np.abs(each - inner).mean(axis=(1, 2, 3)) for each in shifted], axis=0)
    return distance


def lookalikes(found: Pairs, limit: float) -> Pairs:
    """Return the pairs of images within the distance `limit` in different splits, most similar first.

    `found` is the result of `search`.  `by_chance` says how many images would be as close, or closer, by chance alone,
    and `excess` whether chance does not explain so many.
    """
    return {
        (first, second): rank_by_chance(pairs, found[first, first], limit)
        for (first, second), pairs in found.items()
        if first != second
    }


def rank_by_chance(pairs: pd.DataFrame, usual: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Return what `lookalikes` does, for two splits; `usual` are pairs within the first."""
    alike = pairs[pairs["distance"] <= limit].sort_values("relative", kind="stable", ignore_index=True)
    by_chance = len(pairs) * shares_by_chance(usual, limit, alike["relative"].to_numpy())
    rank = np.arange(1, len(alike) + 1)
    last = rank[poisson.sf(rank - 1, by_chance) < SURE].max(initial=0)
    return alike.assign(by_chance=by_chance, excess=rank <= last)


def shares_by_chance(usual: pd.DataFrame, limit: float, difference: np.ndarray) -> np.ndarray:
    """Return an upper estimate of the share of images that are as similar as each relative difference (n,) by chance.

    It is that of the pairs `usual` within the distance `limit`.  All shares are 1 if there are too few to say.
    """
    tail = max(FEWEST_IN_TAIL, round(TAIL * len(usual)))
    if len(usual) <= tail:
        return np.ones(len(difference))
    relative, difference = np.sort(usual["relative"].to_numpy().clip(NEAREST)), difference.clip(NEAREST)
    within = np.sort(usual.loc[usual["distance"] <= limit, "relative"].to_numpy())
    end = relative[tail]
    steepness = tail / max(1e-9, np.log(end / relative[:tail]).sum())  # Hill's estimator
    # Two standard errors on the safe side, as are the counts.
    fitted = np.minimum(1, difference / end) ** (steepness * (1 - 2 / np.sqrt(tail)))
    below_end = max(1, np.searchsorted(within, end, side="right"))
    counts = np.searchsorted(within, difference, side="right")
    shares = np.maximum(upper(counts), upper(below_end) * fitted) / len(relative)
    return np.asarray(np.minimum(1, shares))


def upper(count: np.ndarray | int) -> np.ndarray:
    """Return a count and two of its standard errors."""
    return np.asarray(count + 2 * np.sqrt(count))
