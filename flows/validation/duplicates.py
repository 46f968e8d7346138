"""Find images that are equal, and rank those that look like one of another split, compared with what chance gives.

Images are ranked by their difference relative to their contrast, since plain images are close to many.  What chance
gives is estimated from the first split: with splits drawn at random, an image of the second split has as many similar
images in the first as an image of the first has.  Each image of the first split is paired with the most similar other
one, and a power law is fitted to the closest 5% of these pairs.  It says how many images would be as close by chance,
even at distances that no such pair has.
"""

from typing import Any, NamedTuple

import numpy as np

from flows.images.store import ImageSet
from flows.validation.facts import Facts, is_image
from flows.validation.moved import UNMOVED, VARIANTS, Found, Index, index_of, search

PROBES = 10_000
FEWEST_PROBES = 10
TAIL = 0.05
LEAST_CONTRAST = 0.03
"""Added to the standard deviation of the pixels, as a share of the range, for images that are almost plain."""
NEAREST = 1e-3
"""Relative differences below this are treated as equal."""
SURE = -np.log(1e-4)
LONGEST_LIST = 500


class Lookalikes(NamedTuple):
    """The images of a split that are within the distance of one of an earlier split, most similar first (n,)."""

    image: np.ndarray
    of: np.ndarray
    """The image of the earlier split."""
    variant: np.ndarray
    distance: np.ndarray
    """Mean absolute difference of the pixels, as a share of the range."""
    by_chance: np.ndarray
    """How many images would be as close, or closer, by chance alone."""
    excess: int
    """How many of the closest images chance does not explain."""


def repeats(digests: np.ndarray) -> np.ndarray:
    """Return whether an earlier image has the same digest (N,); digests are (N,2) uint64."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equals, the first comes first
    again = np.zeros(len(digests), dtype=bool)
    again[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return again


def leaked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether each digest (N,2) uint64 of the second split is one of the first split (N,)."""
    pair = np.dtype([("high", np.uint64), ("low", np.uint64)])
    return np.isin(second.view(pair)[:, 0], first.view(pair)[:, 0])


class Usual(NamedTuple):
    """The searchable images of a split, and how similar they are to one another, from which chance is estimated."""

    known: Index
    relative: np.ndarray
    """The relative differences, of at most 10,000 images."""
    distance: np.ndarray


def all_lookalikes(image_set: ImageSet, facts: dict[str, Facts], limit: float) -> dict[tuple[str, str], Lookalikes]:
    """Return the images that look alike in each pair of splits, the earlier split (training, validation) first."""
    splits, found = list(facts), {}
    for place, first in enumerate(splits[:-1]):
        usual = usual_of(image_set, facts[first], first)
        for second in splits[place + 1 :]:
            found[first, second] = lookalikes(image_set, facts, (first, second), usual, limit)
    return found


def usual_of(image_set: ImageSet, facts: Facts, split: str) -> Usual | None:
    """Return how similar the images of a split are among one another; None if it has no images."""
    images, numbers = getattr(image_set, split), np.flatnonzero(~repeats(facts.digest))
    if not is_image(images) or not len(numbers):
        return None
    index = index_of(facts.thumbnails, numbers)
    probes = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), PROBES)).astype(int)]
    return Usual(index, *differences(image_set, facts, search(images, index, images, probes, image_set.num_levels)))


def differences(image_set: ImageSet, facts: Facts, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences from the images found, relative to their contrast, and as shares of the range (n,)."""
    highest = image_set.num_levels - 1
    distance = found.distance / highest
    contrast = facts.statistics["image deviation"] / highest
    return distance / (contrast[found.number] + LEAST_CONTRAST), distance


def lookalikes(
    image_set: ImageSet, facts: dict[str, Facts], pair: tuple[str, str], usual: Usual | None, limit: float
) -> Lookalikes:
    """Rank the images of the second split that are within `limit` of one of the first without being equal to it."""
    first, second = pair
    images, others = getattr(image_set, first), getattr(image_set, second)
    queries = np.flatnonzero(~leaked(facts[first].digest, facts[second].digest))
    if not usual or not is_image(others) or images.shape[1:] != others.shape[1:] or not len(queries):
        nothing = np.zeros(0, dtype=np.int64)
        return Lookalikes(nothing, nothing, nothing, np.zeros(0), np.zeros(0), 0)
    found = search(images, usual.known, others, queries, image_set.num_levels)
    relative, distance = differences(image_set, facts[first], found)
    order = np.argsort(relative, kind="stable")
    order = order[distance[order] <= limit]
    by_chance = len(queries) * shares_by_chance(usual.relative, usual.distance <= limit, relative[order])
    closest = (queries[order], found.number[order], found.variant[order], distance[order])
    return Lookalikes(*closest, by_chance, excess=beyond(by_chance))


def shares_by_chance(usual: np.ndarray, within: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Return an upper estimate of the share of images that are as similar as each relative difference (n,) by chance.

    `usual` are the relative differences of the first split's images from one another, and `within` says which of these
    pairs are close enough to be counted.  All shares are 1 if there are too few to say.
    """
    order = np.argsort(usual, kind="stable")
    usual, difference = np.maximum(usual[order], NEAREST), np.maximum(difference, NEAREST)
    tail = max(FEWEST_PROBES, round(TAIL * len(usual)))
    if len(usual) <= tail or not np.isfinite(usual[tail]):
        return np.ones(len(difference))
    steepness = tail / max(1e-9, np.log(usual[tail] / usual[:tail]).sum())
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
    """Return the last rank that is too high to be chance, for the (n,) expected numbers up to each rank; 0 for none.

    A rank is too high if a Poisson variable reaches it with a probability below 1e-4, by Chernoff's bound.
    """
    rank = np.arange(1, len(by_chance) + 1)
    mean = np.maximum(by_chance, 1e-300)
    surprise = rank * np.log(rank / mean) - rank + mean
    return int(max(rank[(rank > mean) & (surprise > SURE)], default=0))


def kind(variant: int) -> str:
    """Return in words how an image was moved: as it is, mirrored, shifted, or mirrored and shifted."""
    words = [("mirrored", variant >= VARIANTS // 2), ("shifted", variant not in UNMOVED)]
    return " and ".join(word for word, holds in words if holds) or "as it is"


def ranked(first: str, second: str, found: Lookalikes) -> list[dict[str, Any]]:
    """Return the closest pairs as rows, at most 500."""
    columns = (found.image, found.of, found.variant, found.distance, found.by_chance)
    return [
        {
            "split": second,
            "image": int(image),
            "of_split": first,
            "of_image": int(of),
            "moved": kind(int(variant)),
            "distance": round(float(distance), 6),
            "by_chance": round(float(by_chance), 4),
        }
        for image, of, variant, distance, by_chance in zip(*(column[:LONGEST_LIST] for column in columns), strict=True)
    ]
