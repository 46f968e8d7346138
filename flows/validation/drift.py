"""Measure how far splits, or training images and a reference, differ, and how far chance alone makes them differ.

Images are drawn one by one, so the differences of two splits that were drawn alike shrink with the number of images.
A difference is reported if it is beyond both what chance does and what the contract allows.
"""

import shlex
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flows.core.documents import read
from flows.core.errors import Exit, UserError
from flows.images.store import DESCRIPTION, load_images, load_labels
from flows.validation.comb import heights
from flows.validation.facts import Facts, measure
from flows.validation.labels import label_facts
from flows.validation.report import REPORT, Difference, Profile, Reference

if TYPE_CHECKING:
    from flows.core.params import Contract

QUANTILES = np.linspace(0, 1, 101)
CHANCE = 5.0
"""Standard errors by which chance alone moves none of about ten statistics, in sets of `FEWEST_IMAGES` or more."""
FEWEST_IMAGES = 10
"""With fewer on a side, the standard deviation, in which distances are measured, is too uncertain."""
CHANCE_OF_LEVELS = 1.7
"""Chance moves a smaller share of pixels than this many standard errors: mostly 1.1 in photographs, 0.4 in clothes."""
STEEP = 4.0
"""Standard errors beyond which a level's height counts as different; chance seldom gives such a level."""
MOST_STEEP = 2
"""Up to this many levels of different height are not reported."""
REFERENCE = "reference"
RARE = np.log(1e-6)
"""The logarithm of the probability below which a label is not missing by chance."""
MOST_BY_CHANCE = 2**22


class Shift(NamedTuple):
    """The difference of a statistic, and the limit up to which it is not reported."""

    statistic: str
    distance: float
    limit: float


def profile(facts: Facts, labels: np.ndarray | None) -> Profile:
    """Return the profile of a split, which is compared with those of others."""
    height, error = heights(facts.histograms.sum(axis=1))
    known, statistics = np.isfinite(error), {name: quantiles(values) for name, values in facts.statistics.items()}
    channels = facts.histograms.sum(axis=0)
    return Profile(
        histogram=facts.histogram.tolist(),
        mean=statistics.pop("image mean", []),
        deviation=statistics.pop("image deviation", []),
        num_images=len(facts.digest),
        image_shape=list(facts.image_shape),
        statistics=statistics,
        channels=channels.tolist() if len(channels) > 1 else [],
        height=height.round(6).tolist() if known.any() else [],
        height_error=np.where(known, error, -1).round(6).tolist() if known.any() else [],
        **label_facts(labels, facts.thumbnails),
    )


def quantiles(values: np.ndarray) -> list[float]:
    """Return 101 quantiles of the finite values; none if no value is finite."""
    finite = values[np.isfinite(values)]
    return [float(value) for value in np.quantile(finite, QUANTILES).round(4)] if len(finite) else []


def read_reference(path: Path) -> Profile:
    """Return the profile of a reference: a validation.json, a folder with one, or an image set (its training images).

    Raises UserError (exit 5).
    """
    if (path / DESCRIPTION).exists():
        image_set = load_images(path)
        return profile(measure(image_set.train, image_set.num_levels), load_labels(path, "train"))
    wanted = "a reference is a validation.json with a profile, or an image set"
    if path.is_dir():
        report = path / REPORT
        if not report.is_file():
            command = f"vdmctl validate {shlex.quote(str(path))} --out FOLDER"
            advice = f"`{command}` writes FOLDER/validation.json about images"
            raise UserError(f"{path} has no {DESCRIPTION}; {wanted}; {advice}", Exit.MISSING)
        path = report
    return read(Reference, path, wanted).profile


def from_reference(reference: Profile, ours: Profile, settings: "Contract") -> list[Shift]:
    """Return all differences from a reference: those of the levels' shares, and those of `shifts`.

    The distance of two histograms is the share of pixels that would have to change level (total variation).  Its limit
    is the larger of `max_drift` and of what chance does; if `max_drift` is 0, so is the limit.  If the numbers of
    levels or the shapes differ, that is the only difference.
    """
    if len(ours.histogram) != len(reference.histogram):
        return [Shift("number of levels", 1.0, settings.max_drift)]
    if reference.image_shape and ours.image_shape != reference.image_shape:
        return [Shift("shape of images", 1.0, settings.max_drift)]
    pairs = {"pixel histogram": (ours.histogram, reference.histogram)}
    if len(ours.channels) == len(reference.channels):
        for number, pair in enumerate(zip(ours.channels, reference.channels, strict=True)):
            pairs[f"histogram of channel {number}"] = pair
    limit = max(settings.max_drift, CHANCE_OF_LEVELS * standard_error(reference, ours)) if settings.max_drift else 0.0
    levels = [
        Shift(name, float(np.abs(shares(first) - shares(second)).sum() / 2), limit)
        for name, (first, second) in pairs.items()
        if len(first) == len(second)
    ]
    return levels + shifts(reference, ours, settings.max_shift)


def shifts(ours: Profile, theirs: Profile, allowed: float) -> list[Shift]:
    """Return the differences of all that both profiles have: statistics of images, levels' heights, and labels.

    The distance of a statistic is the mean distance of equal quantiles (Wasserstein) in its standard deviations.  A
    distance up to `allowed` is not reported, whatever chance does.  Nor is one of which 1% of the images make half, if
    both sides have such images.  Statistics of few images are not compared.
    """
    if not ours.mean or not theirs.mean:
        return []
    found = []
    if min(ours.num_images, theirs.num_images) >= FEWEST_IMAGES:
        limit = max(allowed, CHANCE * standard_error(ours, theirs))
        first = {"image mean": ours.mean, "image deviation": ours.deviation, **ours.statistics}
        second = {"image mean": theirs.mean, "image deviation": theirs.deviation, **theirs.statistics}
        for name in [name for name in first if name in second]:
            distance, part_by_chance = apart(first[name], second[name])
            found.append(Shift(name, distance, max(limit, 2 * part_by_chance)))
    return found + shifts_of_levels(ours, theirs) + shifts_of_labels(ours.labels, theirs.labels) + link(ours, theirs)


def differences(profiles: dict[str, Profile], reference: Profile | None, settings: "Contract") -> list[Difference]:
    """Return the differences of each pair of splits, and those of the training images from a reference."""
    found = {
        (first, second): shifts(profiles[first], profiles[second], settings.max_shift)
        for first, second in combinations(profiles, 2)
    }
    if reference:
        found[REFERENCE, "train"] = from_reference(reference, profiles["train"], settings)
    return [
        Difference(
            first=first,
            second=second,
            statistic=shift.statistic,
            distance=round(shift.distance, 6) or float(f"{shift.distance:.6g}"),  # the limit may be 0
            limit=round(shift.limit, 6),
        )
        for (first, second), all_shifts in found.items()
        for shift in all_shifts
    ]


def standard_error(ours: Profile, theirs: Profile) -> float:
    """Return the error of the difference of two means, in standard deviations of images; 0 if a number is unknown."""
    counts = ours.num_images, theirs.num_images
    return float(np.sqrt(sum(1 / count for count in counts))) if all(counts) else 0.0


def shares(histogram: list[int]) -> np.ndarray:
    """Return the share of pixels of each level (K,)."""
    counts = np.asarray(histogram, dtype=float)
    return np.asarray(counts / max(counts.sum(), 1))


def apart(first: list[float], second: list[float]) -> tuple[float, float]:
    """Return the mean distance of equal quantiles without the extremes, and the largest part of it by chance.

    If about 1% of the images on both sides are far from the others, chance decides which side of them a quantile takes.
    It then lies between the neighbours of the other profile's quantile.  Both results are in standard deviations.
    """
    if len(first) != len(QUANTILES) or len(second) != len(QUANTILES):
        return 0.0, 0.0
    both = np.array([first, second])
    inner, other = both[:, 1:-1], both[::-1]
    distances = np.abs(inner[0] - inner[1])
    by_chance = ((other[:, :-2] <= inner) & (inner <= other[:, 2:])).all(axis=0)
    spread = max(np.sqrt(inner.var(axis=1).mean()), 1e-9)
    return float(distances.mean() / spread), float((distances * by_chance).max() / distances.size / spread)


def shifts_of_levels(ours: Profile, theirs: Profile) -> list[Shift]:
    """Return how many levels stand out from their neighbours in one profile and less so in the other."""
    columns = (ours.height, theirs.height, ours.height_error, theirs.height_error)
    if not ours.height or len(set(map(len, columns))) > 1:
        return []
    errors = np.array([ours.height_error, theirs.height_error])
    known = (errors > 0).all(axis=0)
    difference = np.subtract(ours.height, theirs.height)[known]
    steep = np.abs(difference) > STEEP * np.sqrt((errors[:, known] ** 2).sum(axis=0))
    return [Shift("levels that stand out", float(steep.sum()), float(MOST_STEEP))]


def shifts_of_labels(ours: dict[str, int], theirs: dict[str, int]) -> list[Shift]:
    """Return the difference of the labels' shares, and for each side the share of the most frequent label it lacks.

    The difference is chi-squared per degree of freedom.  All limits are those of chance.
    """
    names = sorted(ours.keys() | theirs.keys())
    counts = np.array([[side.get(name, 0) for name in names] for side in (ours, theirs)], dtype=float)
    totals = counts.sum(axis=1)
    if not ours or not theirs or not totals.all() or len(names) < 2:
        return []
    expected = totals[:, None] * counts.sum(axis=0) / totals.sum()
    freedom = len(names) - 1
    chi_squared = float(((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum() / freedom)
    spread = 2 / (9 * freedom)
    found = [Shift("shares of labels", chi_squared, float((1 - spread + CHANCE * np.sqrt(spread)) ** 3))]
    for place, missing, other in (("first", 0, 1), ("second", 1, 0)):
        lacking = np.where(counts[missing] == 0, counts[other] / totals[other], 0)
        label = f"label {names[lacking.argmax()]}" if lacking.any() else "no label"
        limit = largest_by_chance(totals[other], totals[missing]) / totals[other]
        found.append(Shift(f"{label} missing in the {place}", float(lacking.max()), float(limit)))
    return found


def largest_by_chance(num_here: float, num_there: float) -> int:
    """Return how many images of a label may be in the first of two sets and none in the second, by chance.

    The sets have `num_here` and `num_there` images.  It is at most `MOST_BY_CHANCE`, which bounds time and memory.
    """
    number = np.arange(min(num_here, MOST_BY_CHANCE))
    # Entry m-1: the logarithm of the probability that all m images of a label are here (hypergeometric distribution).
    logarithm = np.log((num_here - number) / (num_here + num_there - number)).cumsum()
    return int((logarithm >= RARE).sum())


def link(ours: Profile, theirs: Profile) -> list[Shift]:
    """Return the difference of how much of the images' variance the labels explain."""
    values = (ours.label_link, theirs.label_link, ours.label_link_error, theirs.label_link_error)
    if None in values:
        return []
    first, second, first_error, second_error = map(float, values)  # type: ignore[arg-type]
    limit = CHANCE * float(np.hypot(first_error, second_error))
    return [Shift("link of labels and images", abs(first - second), limit)]
