"""How far the pixels of a set are from those of another, such as the one that a model in use was trained on."""

from pathlib import Path
from typing import Any

import numpy as np

from flows.core.documents import Document, Profile, read
from flows.images.store import load_images
from flows.validation.facts import Facts, measure


class Report(Document):
    """What a reference must hold of a validation.json."""

    profile: Profile


QUANTILES = np.linspace(0, 1, 101)


def profile(facts: Facts) -> dict[str, list[int] | list[float]]:
    """What is kept of a set for comparisons: its histogram, and quantiles of the images' means and deviations."""
    described: dict[str, list[int] | list[float]] = {"histogram": facts.histogram.tolist()}
    for name, values in (("mean", facts.mean), ("deviation", facts.deviation)):
        finite = values[np.isfinite(values)]
        described[name] = np.quantile(finite, QUANTILES).round(4).tolist() if len(finite) else []
    return described


def read_reference(path: Path) -> dict[str, Any]:
    """The profile in a `validation.json`, or of the training images of an image set's folder.

    Raises UserError (exit 5), and ImageSetError for a folder.
    """
    if path.is_dir():
        image_set = load_images(path)
        return profile(measure(image_set.train, image_set.num_levels))
    found = read(Report, path, "a reference is a validation.json with a profile, or an image set").profile
    return {"histogram": found.histogram, "mean": found.mean, "deviation": found.deviation}


def distances(ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """From 0 (alike) to 1: by statistic.

    Of histograms the share of pixels that would have to change level (total variation); of means and deviations the
    mean distance of equal quantiles (Wasserstein) as a share of the range.  1 for other numbers of levels.
    """
    num_levels = len(ours["histogram"])
    if num_levels != len(reference["histogram"]):
        return {"number of levels": 1.0}
    first, second = (np.asarray(side["histogram"], dtype=float) for side in (ours, reference))
    first, second = first / max(first.sum(), 1), second / max(second.sum(), 1)
    found = {"pixel histogram": float(np.abs(first - second).sum() / 2)}
    for name in ("mean", "deviation"):
        same = len(ours[name]) == len(reference[name])
        gap = np.abs(np.subtract(ours[name], reference[name])).mean() / (num_levels - 1) if same and ours[name] else 1.0
        found[f"image {name}"] = float(gap)
    return {name: round(value, 6) for name, value in found.items()}
