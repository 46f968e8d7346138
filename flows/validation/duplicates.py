"""Find images that are equal, and rank those that look like one of another split beside what chance alone gives.

Chance is what the images of the first split look like among one another: with splits drawn at random, an image of the
second split has as many similar images in the first as any image of the first has.  The distances below the closest
5% of these follow a power law (their number falls with the power of the distance that is fitted to them), which tells
how many images would be as close by chance even where none of the first split's are.
"""

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from flows.images.store import ImageSet
from flows.validation.facts import Facts
from flows.validation.moved import UNMOVED, VARIANTS, index_of, search
from flows.validation.statistics import is_image

PROBES = 10_000
FEWEST_PROBES = 10
TAIL = 0.05
NEAREST = 1e-4
"""Distances are not told apart below this share of the range."""
SURE = -np.log(1e-5)
LONGEST_LIST = 500


class Lookalikes(NamedTuple):
    """The images of a split that are within the distance of one of an earlier split, closest first (n,)."""

    image: np.ndarray
    of: np.ndarray
    """The image of the earlier split."""
    variant: np.ndarray
    distance: np.ndarray
    """Mean absolute difference of the pixels, as a share of the range."""
    by_chance: np.ndarray
    """How many images would be as close, or closer, by chance alone."""
    excess: int
    """How many of the first are more than chance explains."""


def repeats(digests: np.ndarray) -> np.ndarray:
    """Return whether an earlier image has the same digest (N,); digests are (N,2) uint64."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equals, the first comes first
    again = np.zeros(len(digests), dtype=bool)
    again[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return again


def leaked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether each image of the second split has the digest of one of the first (N,).

    Digests are (...,2) uint64.
    """
    pair = np.dtype([("high", np.uint64), ("low", np.uint64)])
    return np.isin(second.view(pair)[:, 0], first.view(pair)[:, 0])


def all_lookalikes(image_set: ImageSet, facts: dict[str, Facts], limit: float) -> dict[tuple[str, str], Lookalikes]:
    """Return the images that look alike in each pair of splits, the earlier split (training, validation) first."""
    return {pair: lookalikes(image_set, facts, *pair, limit) for pair in combinations(facts, 2)}


def lookalikes(image_set: ImageSet, facts: dict[str, Facts], first: str, second: str, limit: float) -> Lookalikes:
    """Rank the images of the split `second` that are within `limit` of one of `first` without being equal to it."""
    known, images, others = facts[first], getattr(image_set, first), getattr(image_set, second)
    numbers = np.flatnonzero(~repeats(known.digest))
    queries = np.flatnonzero(~leaked(known.digest, facts[second].digest))
    alike = is_image(images) and is_image(others) and images.shape[1:] == others.shape[1:]
    if not alike or not len(numbers) or not len(queries):
        nothing = np.zeros(0, dtype=np.int64)
        return Lookalikes(nothing, nothing, nothing, np.zeros(0), np.zeros(0), 0)
    highest, index = image_set.num_levels - 1, index_of(known.thumbnails, numbers)
    found = search(images, index, others, queries, image_set.num_levels)
    probes = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), PROBES)).astype(int)]
    usual = np.sort(search(images, index, images, probes, image_set.num_levels).distance) / highest
    distance = found.distance / highest
    order = np.argsort(distance, kind="stable")
    order = order[distance[order] <= limit]
    by_chance = len(queries) * shares_by_chance(usual, distance[order])
    ranked = (queries[order], found.number[order], found.variant[order], distance[order])
    return Lookalikes(*ranked, by_chance, excess=beyond(by_chance))


def shares_by_chance(usual: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Return an upper estimate of the share of images as close as each distance (n,), given sorted usual distances."""
    usual, distance = np.maximum(usual, NEAREST), np.maximum(distance, NEAREST)
    tail = max(FEWEST_PROBES, round(TAIL * len(usual)))
    if len(usual) <= tail or not np.isfinite(usual[tail]):
        return np.ones(len(distance))
    closer = np.searchsorted(usual, distance, side="right")
    counted = (closer + 2 * np.sqrt(closer)) / len(usual)
    steepness = tail / max(1e-9, np.log(usual[tail] / usual[:tail]).sum())
    power = steepness * (1 - 2 / np.sqrt(tail))
    fitted = tail / len(usual) * np.minimum(1, distance / usual[tail]) ** power
    return np.asarray(np.minimum(1, np.maximum(counted, fitted)))


def beyond(by_chance: np.ndarray) -> int:
    """Return the largest rank at which chance alone gives as many images with a probability below 1e-5, or 0.

    The probability that a Poisson variable with the mean `by_chance` reaches the rank is bounded by Chernoff's bound.
    """
    rank = np.arange(1, len(by_chance) + 1)
    mean = np.maximum(by_chance, 1e-300)
    surprise = rank * np.log(rank / mean) - rank + mean
    return int(max(rank[(rank > mean) & (surprise > SURE)], default=0))


def kind(variant: int) -> str:
    """Return in words how an image was moved: as it is, mirrored, shifted, or mirrored and shifted."""
    words = ["mirrored"] * (variant >= VARIANTS // 2) + ["shifted"] * (variant not in UNMOVED)
    return " and ".join(words) or "as it is"


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
