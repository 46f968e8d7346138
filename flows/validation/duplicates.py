"""Find images that are equal, and rank those that look like one of another split, compared with what chance gives.

Equal images have the same digest.  The others are searched as gray thumbnails, as they are and mirrored, and the pairs
found are ranked by the difference of their pixels relative to their contrast, since plain images are close to many.

What chance gives is estimated from the first split: with splits drawn at random, an image of the second split has as
many similar images in the first as an image of the first has.  A power law is fitted to the closest 5% of the pairs
within the first split.  It says how many images would be as close by chance, even where no such pair is.
"""

from itertools import combinations, combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flows.images.store import ImageSet, fitting
from flows.validation.facts import Facts, is_image

PROBES = 4000
"""Images of a split that are compared with the other images of the same split, evenly spread."""
FEWEST_PROBES = 10
TAIL = 0.05
LEAST_CONTRAST = 0.03
"""Added to the standard deviation of the pixels, as a share of the range, for images that are almost plain."""
NEAREST = 1e-3
"""Relative differences below this are treated as equal."""
SURE = 1e-4
"""Probability below which chance does not explain so many similar images."""
LONGEST_LIST = 500
COMPARED = 500


class Nearest(NamedTuple):
    """The image of one split that is most similar to each image of another, both by number (n,)."""

    image: np.ndarray
    of: np.ndarray
    mirrored: np.ndarray
    distance: np.ndarray
    """Mean absolute difference of the pixels, as a share of the range."""
    relative: np.ndarray
    """The distance relative to the contrast of the image found."""


class Lookalikes(NamedTuple):
    """The images of a split that are within the distance of one of an earlier split, most similar first (n,)."""

    image: np.ndarray
    of: np.ndarray
    """The image of the earlier split."""
    mirrored: np.ndarray
    distance: np.ndarray
    """Mean absolute difference of the pixels, as a share of the range."""
    by_chance: np.ndarray
    """How many images would be as close, or closer, by chance alone."""
    excess: int
    """How many of the closest images chance does not explain."""


def repeats(digests: np.ndarray) -> np.ndarray:
    """Return whether an earlier image has the same digest (N,)."""
    return np.asarray(pd.Series(digests).duplicated())


def leaked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether each digest (N,) of the second split is one of the first split."""
    return np.isin(second, first)


def search(image_set: ImageSet, facts: dict[str, Facts]) -> dict[tuple[str, str], Nearest]:
    """Return the most similar images for each pair of splits, the earlier split (training, validation) first.

    The pair of a split with itself has `PROBES` of its images; the last split has none.  Images that are equal to one
    of the first split are left out, and so are pairs of splits without images, or with images of different shapes.
    """
    found = {}
    for first, second in list(combinations_with_replacement(facts, 2))[:-1]:
        digests, shapes = facts[first].digest, {getattr(image_set, split).shape[1:] for split in (first, second)}
        known = np.flatnonzero(~repeats(digests))
        if first == second:
            queries = known[np.linspace(0, len(known) - 1, min(len(known), PROBES)).astype(int)]
        else:
            queries = np.flatnonzero(~leaked(digests, facts[second].digest))
        comparable = all(is_image(getattr(image_set, split)) for split in (first, second)) and len(shapes) == 1
        if comparable and len(known) > 1 and len(queries):
            found[first, second] = nearest(image_set, facts, (first, second), known, queries)
    return found


def nearest(
    image_set: ImageSet, facts: dict[str, Facts], pair: tuple[str, str], known: np.ndarray, queries: np.ndarray
) -> Nearest:
    """Return the most similar one of the images `known` of the first split for each of `queries` in the second.

    No image is compared with itself.
    """
    from sklearn.neighbors import NearestNeighbors

    first, second = pair
    thumbnails = facts[second].thumbnails[queries]
    both = np.concatenate([thumbnails, thumbnails[:, :, ::-1]]).reshape(2 * len(queries), -1)
    index = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(facts[first].thumbnails[known].reshape(len(known), -1))
    # Two, since one may be the image itself: (variant, query, neighbour) to (query, variant and neighbour).
    apart, place = (
        np.asarray(found).reshape(2, len(queries), 2).swapaxes(0, 1).reshape(-1, 4) for found in index.kneighbors(both)
    )
    numbers = known[place]
    if first == second:
        apart[numbers == queries[:, None]] = np.inf
    every, best = np.arange(len(queries)), apart.argmin(axis=1)
    of, mirrored = numbers[every, best], best >= 2
    distance = pixel_distances(getattr(image_set, first), of, getattr(image_set, second), queries, mirrored)
    highest = image_set.num_levels - 1
    contrast = facts[first].statistics["image deviation"][of] / highest + LEAST_CONTRAST
    return Nearest(queries, of, mirrored, distance / highest, distance / highest / contrast)


def pixel_distances(
    images: np.ndarray, of: np.ndarray, others: np.ndarray, queries: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """Return the mean absolute difference in levels of each pair of images (n,), the least of shifts by up to a pixel."""
    distance, step = np.empty(len(of)), fitting(COMPARED, 8 * images[0].nbytes)
    height, width = images.shape[2] - 2, images.shape[3] - 2
    for first in range(0, len(of), step):
        some = slice(first, first + step)
        theirs, ours = pick(images, of[some]).astype(np.int32), pick(others, queries[some]).astype(np.int32)
        ours = np.where(mirrored[some, None, None, None], ours[..., ::-1], ours)
        inner = theirs[:, :, 1:-1, 1:-1]
        shifted = (ours[:, :, down : down + height, across : across + width] for down in range(3) for across in range(3))
        distance[some] = np.min([np.abs(each - inner).mean(axis=(1, 2, 3)) for each in shifted], axis=0)
    return distance


def pick(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return a copy of some images.  A mapped file is mapped anew, so that its pages do not stay in memory."""
    mapped = np.load(str(images.filename), mmap_mode="r") if isinstance(images, np.memmap) else images
    return np.asarray(mapped[numbers])


def all_lookalikes(
    found: dict[tuple[str, str], Nearest], facts: dict[str, Facts], limit: float
) -> dict[tuple[str, str], Lookalikes]:
    """Return the images that look alike in each pair of different splits, given the result of `search`."""
    none = np.zeros(0, dtype=int)
    empty = Nearest(none, none, none, np.zeros(0), np.zeros(0))
    return {
        (first, second): lookalikes(found.get((first, second), empty), found.get((first, first), empty), limit)
        for first, second in combinations(facts, 2)
    }


def lookalikes(found: Nearest, usual: Nearest, limit: float) -> Lookalikes:
    """Rank the images that are within `limit` of one of the first split; `usual` are pairs within that split."""
    order = np.argsort(found.relative, kind="stable")
    order = order[found.distance[order] <= limit]
    shares = shares_by_chance(usual.relative, usual.distance <= limit, found.relative[order])
    by_chance = len(found.image) * shares
    closest = (found.image[order], found.of[order], found.mirrored[order], found.distance[order])
    return Lookalikes(*closest, by_chance, excess=beyond(by_chance))


def shares_by_chance(usual: np.ndarray, within: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Return an upper estimate of the share of images that are as similar as each relative difference (n,) by chance.

    `usual` are the relative differences of the first split's images from one another, and `within` says which of these
    pairs are close enough to be counted.  All shares are 1 if there are too few to say.
    """
    order = np.argsort(usual, kind="stable")
    usual, difference = np.maximum(usual[order], NEAREST), np.maximum(difference, NEAREST)
    tail = max(FEWEST_PROBES, round(TAIL * len(usual)))
    if len(usual) <= tail:
        return np.ones(len(difference))
    steepness = tail / max(1e-9, np.log(usual[tail] / usual[:tail]).sum())  # Hill's estimator
    power = steepness * (1 - 2 / np.sqrt(tail))
    counted = usual[within[order]]
    closer = np.searchsorted(counted, difference, side="right")
    in_tail = np.searchsorted(counted, usual[tail], side="right")
    fitted = upper(np.maximum(in_tail, 1)) * np.minimum(1, difference / usual[tail]) ** power
    return np.asarray(np.minimum(1, np.maximum(upper(closer), fitted) / len(usual)))


def upper(count: np.ndarray) -> np.ndarray:
    """Return a count and two of its standard errors."""
    return np.asarray(count + 2 * np.sqrt(count))


def beyond(by_chance: np.ndarray) -> int:
    """Return the last rank that is too high to be chance, for the (n,) expected numbers up to each rank; 0 for none."""
    from scipy.stats import poisson

    rank = np.arange(1, len(by_chance) + 1)
    return int(rank[poisson.sf(rank - 1, by_chance) < SURE].max(initial=0))


def ranked(first: str, second: str, found: Lookalikes) -> list[dict[str, Any]]:
    """Return the closest pairs as rows, at most 500."""
    columns = (found.image, found.of, found.mirrored, found.distance, found.by_chance)
    return [
        {
            "split": second,
            "image": int(image),
            "of_split": first,
            "of_image": int(of),
            "moved": "mirrored" if mirrored else "as it is",
            "distance": round(float(distance), 6),
            "by_chance": round(float(by_chance), 4),
        }
        for image, of, mirrored, distance, by_chance in zip(*(column[:LONGEST_LIST] for column in columns), strict=True)
    ]
