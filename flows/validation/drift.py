"""Measure how far splits, or training images and a reference, differ, and whether chance alone may be the cause.

| what is compared | distance | test of chance |
|---|---|---|
| statistics of the images | mean distance of equal quantiles, in standard deviations | Kolmogorov-Smirnov |
| levels, of a reference only | share of pixels that would have to change level (total variation) | limit by the numbers of images |
| levels that stand out from their neighbours | number of levels of another height | t test of each level |
| labels | share of images that would have to change label (total variation) | chi-squared |
| labels of the nearest image | difference of the share that is the same | chi-squared |

A difference is reported if it is beyond what the contract allows, and chance makes it with less than `CHANCE`.
"""

import shlex
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from flows.core.documents import read
from flows.core.errors import Exit, UserError
from flows.images.store import DESCRIPTION, ImageSet, load_images, load_labels
from flows.validation.comb import heights
from flows.validation.duplicates import Nearest, search
from flows.validation.facts import GROUPS, Facts, measure
from flows.validation.report import REPORT, Difference, Profile, Reference

if TYPE_CHECKING:
    from flows.core.params import Contract

REFERENCE = "reference"
QUANTILES = np.linspace(0, 1, 101)
CHANCE = 1e-5
FEWEST_IMAGES = 10
"""Statistics of fewer images on a side are not compared."""
CHANCE_OF_LEVELS = 1.7
"""Chance moves a smaller share of pixels than this many standard errors: mostly 1.1 in photographs, 0.4 in clothes."""
STEEP = 1e-4
"""Probability below which chance does not give a level another height."""
FEWEST_PER_LABEL = 5
"""Labels of which fewer images are expected on a side count as one: with fewer, chi-squared is no good estimate."""
MOST_LABELS = 2000
LEAST_AGREEMENT = 0.05
"""Up to this difference, the labels of nearest images may agree more in a set than in a smaller one."""


class Shift(NamedTuple):
    """The difference of a statistic, the limit up to which it is allowed, and the probability that chance makes it."""

    statistic: str
    distance: float
    limit: float
    by_chance: float
    unit: str

    @property
    def reported(self) -> bool:
        """Whether the difference is beyond both the limit and chance."""
        return self.distance > self.limit and self.by_chance < CHANCE


class Agreement(NamedTuple):
    """How many images have the label of the image nearest to them, and how many were compared."""

    same: int
    compared: int


def agreement(found: Nearest | None, first: np.ndarray | None, second: np.ndarray | None) -> Agreement:
    """Return how many images of the second split have the label of the nearest one in the first, given both labels."""
    if found is None or first is None or second is None:
        return Agreement(0, 0)
    if found.of.max() >= len(first) or found.image.max() >= len(second):  # the contract names wrong numbers of labels
        return Agreement(0, 0)
    return Agreement(int((first[found.of] == second[found.image]).sum()), len(found.of))


def profile(facts: Facts, labels: np.ndarray | None, nearest: Nearest | None) -> Profile:
    """Return the profile of a split, which is compared with those of others; `nearest` are pairs within the split."""
    height, error = heights(facts.histograms.sum(axis=1))
    known, statistics = np.isfinite(error), {name: quantiles(values) for name, values in facts.statistics.items()}
    channels = facts.histograms.sum(axis=0)
    values, counts = np.unique([] if labels is None else labels, return_counts=True)
    few = len(values) <= MOST_LABELS
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
        labels=dict(zip(map(str, values.tolist()), counts.tolist(), strict=True)) if few else {},
        label_agreement=list(agreement(nearest, labels, labels)) if few else [0, 0],
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
        facts = {"train": measure(image_set.train, image_set.num_levels)}
        return profile(facts["train"], load_labels(path, "train"), search(image_set, facts).get(("train", "train")))
    wanted = "a reference is a validation.json with a profile, or an image set"
    if path.is_dir():
        report = path / REPORT
        if not report.is_file():
            command = f"vdmctl validate {shlex.quote(str(path))} --out FOLDER"
            advice = f"`{command}` writes FOLDER/validation.json about images"
            raise UserError(f"{path} has no {DESCRIPTION}; {wanted}; {advice}", Exit.MISSING)
        path = report
    return read(Reference, path, wanted).profile


def differences(
    profiles: dict[str, Profile],
    reference: Profile | None,
    settings: "Contract",
    agreements: dict[tuple[str, str], Agreement] | None = None,
) -> list[Difference]:
    """Return the differences of each pair of splits, and those of the training images from a reference.

    `agreements` are those of pairs of splits: how many images have the label of the nearest one in the first split.
    """
    found = {}
    for first, second in combinations(profiles, 2):
        found[first, second] = shifts(profiles[first], profiles[second], settings.max_shift)
        same, compared = profiles[first].label_agreement, (agreements or {}).get((first, second), Agreement(0, 0))
        found[first, second] += shifts_of_agreement(Agreement(*same), compared)
    if reference:
        found[REFERENCE, "train"] = from_reference(reference, profiles["train"], settings)
    return [
        Difference(
            first=first,
            second=second,
            statistic=shift.statistic,
            distance=round(shift.distance, 6) or float(f"{shift.distance:.6g}"),  # the limit may be 0
            limit=round(shift.limit, 6),
            by_chance=float(f"{shift.by_chance:.3g}"),
            unit=shift.unit,
            reported=shift.reported,
        )
        for (first, second), all_shifts in found.items()
        for shift in all_shifts
    ]


def from_reference(reference: Profile, ours: Profile, settings: "Contract") -> list[Shift]:
    """Return all differences from a reference: those of the levels' shares, and those of `shifts`.

    If the numbers of levels or the shapes differ, that is the only difference.
    """
    if len(ours.histogram) != len(reference.histogram):
        return [Shift("number of levels", 1.0, 0.0, 0.0, "")]
    if reference.image_shape and ours.image_shape != reference.image_shape:
        return [Shift("shape of images", 1.0, 0.0, 0.0, "")]
    pairs = {"pixel histogram": (ours.histogram, reference.histogram)}
    if len(ours.channels) == len(reference.channels):
        for number, pair in enumerate(zip(ours.channels, reference.channels, strict=True)):
            pairs[f"histogram of channel {number}"] = pair
    limit = settings.max_drift  # 0 allows nothing
    if limit and ours.num_images and reference.num_images:
        limit = max(limit, CHANCE_OF_LEVELS * np.sqrt(1 / ours.num_images + 1 / reference.num_images))
    levels = [
        Shift(name, total_variation(first, second), float(limit), 0.0, "of the pixels")
        for name, (first, second) in pairs.items()
        if len(first) == len(second)
    ]
    agreements = Agreement(*reference.label_agreement), Agreement(*ours.label_agreement)
    return levels + shifts(reference, ours, settings.max_shift) + shifts_of_agreement(*agreements)


def shifts(ours: Profile, theirs: Profile, allowed: float) -> list[Shift]:
    """Return the differences of all that both profiles have: statistics of images, levels' heights, and labels.

    A distance of statistics up to `allowed` standard deviations is not reported, whatever chance does.
    """
    found = []
    if min(ours.num_images, theirs.num_images) >= FEWEST_IMAGES:
        first = {"image mean": ours.mean, "image deviation": ours.deviation, **ours.statistics}
        second = {"image mean": theirs.mean, "image deviation": theirs.deviation, **theirs.statistics}
        number = ours.num_images * theirs.num_images / (ours.num_images + theirs.num_images)
        for name in first:
            if len(first[name]) == len(second.get(name, [])) == len(QUANTILES):
                distance, by_chance = apart(first[name], second[name], number)
                found.append(Shift(name, distance, allowed, by_chance, "standard deviations"))
    return found + shifts_of_levels(ours, theirs) + shifts_of_labels(ours.labels, theirs.labels)


def apart(first: list[float], second: list[float], number: float) -> tuple[float, float]:
    """Return the mean distance of equal quantiles without the extremes, and the probability that chance makes it.

    `number` is n m / (n + m) for n and m images.  The distance is in standard deviations.
    """
    both = np.array([first, second])
    inner = both[:, 1:-1]
    spread = max(np.sqrt(inner.var(axis=1).mean()), 1e-9)
    statistic = stats.ks_2samp(*both, method="asymp").statistic
    return float(np.abs(inner[0] - inner[1]).mean() / spread), float(stats.kstwo.sf(statistic, round(number)))


def total_variation(first: list[int] | np.ndarray, second: list[int] | np.ndarray) -> float:
    """Return half the sum of the differences of the shares in two histograms (K,)."""
    shares = [np.asarray(counts) / max(np.sum(counts), 1) for counts in (first, second)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def shifts_of_levels(ours: Profile, theirs: Profile) -> list[Shift]:
    """Return how many levels stand out from their neighbours in one profile and less so in the other.

    If the contrast of a share of the images was changed, the heights of some levels change by as much as this share.
    """
    columns = (ours.height, theirs.height, ours.height_error, theirs.height_error)
    if not ours.height or len(set(map(len, columns))) > 1:
        return []
    mine, other, my_error, other_error = map(np.array, columns)
    known = (my_error > 0) & (other_error > 0)
    spreads = [error[known] * np.sqrt(GROUPS) for error in (my_error, other_error)]
    with np.errstate(all="ignore"):  # a reference may hold any numbers
        test = stats.ttest_ind_from_stats(mine[known], spreads[0], GROUPS, other[known], spreads[1], GROUPS, False)
    steep = int((test.pvalue < STEEP).sum())
    by_chance = float(stats.binom.sf(steep - 1, known.sum(), STEEP))
    return [Shift("levels that stand out", float(steep), 0.0, by_chance, "levels")]


def shifts_of_labels(ours: dict[str, int], theirs: dict[str, int]) -> list[Shift]:
    """Return the difference of the shares of the labels."""
    names = sorted(ours.keys() | theirs.keys())
    counts = np.array([[side.get(name, 0) for name in names] for side in (ours, theirs)], dtype=float)
    totals = counts.sum(axis=1)
    if not totals.all():
        return []
    expected = totals[:, None] * counts.sum(axis=0) / counts.sum()
    rare = (expected < FEWEST_PER_LABEL).any(axis=0)
    counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    distance = total_variation(counts[0], counts[1])
    return [Shift("shares of labels", distance, 0.0, chi_squared(counts), "of the images")]


def shifts_of_agreement(ours: Agreement, theirs: Agreement) -> list[Shift]:
    """Return the difference of the shares of images that have the label of the nearest image."""
    if not ours.compared or not theirs.compared:
        return []
    counts = np.array([[side.same, max(side.compared - side.same, 0)] for side in (ours, theirs)], dtype=float)
    distance = total_variation(counts[0], counts[1])
    return [Shift("label of the nearest image", distance, LEAST_AGREEMENT, chi_squared(counts), "of the images")]


def chi_squared(counts: np.ndarray) -> float:
    """Return the probability that counts (2,L) of two sides that were drawn alike are so different."""
    used = counts[:, counts.any(axis=0)]
    return float(stats.chi2_contingency(used).pvalue) if used.shape[1] > 1 else 1.0
