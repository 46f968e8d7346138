"""The distance between the pixels of two image sets, such as new images and those that a model was trained on."""

from pathlib import Path

import numpy as np

from flows.core.documents import read
from flows.images.store import load_images
from flows.validation.facts import Facts, measure
from flows.validation.report import Profile, Reference

QUANTILES = np.linspace(0, 1, 101)


def profile(facts: Facts) -> Profile:
    """Return the histogram of a set and the quantiles of its images' means and standard deviations."""
    return Profile(histogram=facts.histogram.tolist(), mean=quantiles(facts.mean), deviation=quantiles(facts.deviation))


def quantiles(values: np.ndarray) -> list[float]:
    """Return 101 quantiles of the finite values; none if no value is finite."""
    finite = values[np.isfinite(values)]
    return [float(value) for value in np.quantile(finite, QUANTILES).round(4)] if len(finite) else []


def read_reference(path: Path) -> Profile:
    """Return the profile in a validation.json, or that of the training images in the folder of an image set.

    Raises UserError (exit 5), and ImageSetError for a folder.
    """
    if path.is_dir():
        image_set = load_images(path)
        return profile(measure(image_set.train, image_set.num_levels))
    return read(Reference, path, "a reference is a validation.json with a profile, or an image set").profile


def distances(ours: Profile, reference: Profile) -> dict[str, float]:
    """Return a distance from 0 (alike) to 1 for each statistic.

    For histograms it is the share of pixels that would have to change level (total variation).  For means and
    deviations it is the mean distance of equal quantiles (Wasserstein), as a share of the range of the levels.
    If the numbers of levels differ, that is the only statistic, at distance 1.
    """
    num_levels = len(ours.histogram)
    if num_levels != len(reference.histogram):
        return {"number of levels": 1.0}
    first, second = shares(ours.histogram), shares(reference.histogram)
    found = {
        "pixel histogram": float(np.abs(first - second).sum() / 2),
        "image mean": quantile_distance(ours.mean, reference.mean, num_levels),
        "image deviation": quantile_distance(ours.deviation, reference.deviation, num_levels),
    }
    return {name: round(value, 6) for name, value in found.items()}


def shares(histogram: list[int]) -> np.ndarray:
    """Return the share of pixels of each level (K,)."""
    counts = np.asarray(histogram, dtype=float)
    return np.asarray(counts / max(counts.sum(), 1))


def quantile_distance(ours: list[float], reference: list[float], num_levels: int) -> float:
    """Return the mean distance of equal quantiles over the range of the levels; 1 if they cannot be compared."""
    if not ours or len(ours) != len(reference):
        return 1.0
    return float(np.abs(np.subtract(ours, reference)).mean() / (num_levels - 1))
