"""Measures between two sets of images, by the features (N,D) of each, and the errors of such measures."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Measure = Callable[[np.ndarray], float]
"""A function of the features (N,D) of images."""
NEIGHBOURS = 3
"""The k of precision and recall, as in Kynkaanniemi et al."""


class Estimate(NamedTuple):
    """A figure with its standard error."""

    value: float
    standard_error: float


def frechet_distance(first: np.ndarray) -> Measure:
    """Return the function from other features to their squared Frechet distance from `first`.

    For Gaussians with the means and covariances of both it is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et
    al. 2017, arXiv 1706.08500, eq. 6).  What depends on `first` is computed once.
    """
    mean, covariance = first.mean(0), np.cov(first, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def measure(second: np.ndarray) -> float:
        shift, other = mean - second.mean(0), np.cov(second, rowvar=False)
        common = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
        return float(shift @ shift + np.trace(covariance) + np.trace(other) - 2 * common)

    return measure


def kernel_distance(first: np.ndarray) -> Measure:
    """Return the function from other features to their kernel distance from `first`.

    It is the unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et
    al. 2018, arXiv 1801.01401, section 4), over all pairs instead of those of random subsets.  What depends on `first`
    is computed once.
    """
    within = mean_of_pairs(kernel(first, first))

    def measure(second: np.ndarray) -> float:
        return float(within + mean_of_pairs(kernel(second, second)) - 2 * kernel(first, second).mean())

    return measure


def kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (x.y / D + 1)^3 of all pairs, (N,M)."""
    return np.asarray((first @ second.T / first.shape[1] + 1) ** 3)


def mean_of_pairs(values: np.ndarray) -> float:
    """Return the mean of a square matrix without its diagonal."""
    size = len(values)
    return float((values.sum() - np.trace(values)) / (size * (size - 1)))


def precision(reference: np.ndarray) -> Measure:
    """Return the function from images to the share that lies within the reference.

    An image does if its distance from an image of the reference is at most the distance of that image from its third
    neighbour there (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 2).  What depends on `reference` is computed once.
    """
    radii = np.partition(squared_distances(reference, reference), NEIGHBOURS, axis=1)[:, NEIGHBOURS]
    return lambda images: float((squared_distances(images, reference) <= radii).any(1).mean())


def recall(reference: np.ndarray) -> Measure:
    """Return the function from images to the share of the reference that lies within them (eq. 2)."""
    return lambda images: precision(images)(reference)


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances of all pairs, (N,M)."""
    squares = np.square(first).sum(1)[:, None] + np.square(second).sum(1)
    return np.asarray((squares - 2 * first @ second.T).clip(0))


def probability_nearer(first: np.ndarray, second: np.ndarray) -> float:
    """Return the probability that a random value of `first` (N,) is below one of `second` (M,); equal counts half.

    For distances to the nearest training image it is the statistic of Meehan et al. 2020, arXiv 2004.05675.
    """
    ordered = np.sort(second)
    below = (np.searchsorted(ordered, first, side="left") + np.searchsorted(ordered, first, side="right")) / 2
    return float((len(second) - below).mean() / len(second))


def estimate_error(measure: Callable[[np.ndarray], float], size: int, resamples: int, seed: int) -> Estimate:
    """Return the measure of all `size` images, and its standard error.

    `measure` takes indices.  The error is the standard deviation over random halves of the images: halves drawn without
    replacement vary as much as whole sets of images do.  There are two exceptions.  For distances near 0, as of images
    of one distribution, halves vary up to twice as much, so the error is too large.  For a share near 0 or 1 it is too
    small, and 0 if no image or every image counts.
    """
    generator = np.random.default_rng(seed)
    half = size // 2
    halves = [measure(generator.permutation(size)[:half]) for _ in range(resamples)]
    of_odd_size = math.sqrt(half / (size - half))  # else 1
    return Estimate(measure(np.arange(size)), of_odd_size * float(np.std(halves, ddof=1)))
