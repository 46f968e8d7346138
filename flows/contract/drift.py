"""Measure how far splits, or training images and a reference, differ, and whether chance alone may be the cause.

| what is compared | distance | test of chance |
|---|---|---|
| statistics of images | mean distance of equal quantiles, in standard deviations | Kolmogorov-Smirnov, t test |
| levels of a reference | share of pixels that would change level | limit by number of images |
| levels that stand out from their neighbours | number of levels of another height | t test of each level |
| labels | share of images that would change label | chi-squared |
| labels of the most similar images | difference of the share that is the same | chi-squared |

A difference is reported if it is beyond what the contract allows, and chance makes it with less than `CHANCE`.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from flows.contract.duplicates import search
from flows.contract.facts import GROUPS, Facts, measure_facts
from flows.contract.findings import FINDINGS, Difference, Profile, Reference
from flows.contract.limits import is_beyond
from flows.contract.traces import MOST_COMB_LEVELS, heights
from flows.core.documents import read_document
from flows.images.image_set import is_image_set, open_images
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Contract


REFERENCE = "reference"
QUANTILES = np.linspace(0, 1, 101)
CHANCE = 1e-4
FEWEST_IMAGES = 10
"""Statistics of fewer images on a side are not compared."""
CHANCE_OF_LEVELS = 1.7
"""Chance moves a smaller share of pixels than this many standard errors: mostly 1.1 in photographs, 0.4 in clothes."""
STEEP = 1e-3
"""Probability with which chance gives a level so different a height."""
FEWEST_PER_LABEL = 5
"""Labels of which fewer images are expected on a side count as one: with fewer, chi-squared is no good estimate."""
GROWTH = 0.05
"""Up to this difference, labels of similar images may agree more in a set than in a smaller one."""


class Shift(NamedTuple):
    """How far two sides are apart in a statistic, what is allowed, and the probability of it by chance."""

    statistic: str
    distance: float
    limit: float
    by_chance: float
    unit: str


def agreement(pairs: pd.DataFrame, first: np.ndarray | None, second: np.ndarray | None) -> list[int]:
    """Return how many images have the label of the most similar one, and how many do not, given pairs and labels.

    Both are 0 without labels, and if there are not as many labels as images.
    """
    if pairs.empty or first is None or second is None:
        return [0, 0]
    image, of_image = pairs["image"].to_numpy(), pairs["of_image"].to_numpy()
    if image.max() >= len(second) or of_image.max() >= len(first):
        return [0, 0]
    same = int((second[image] == first[of_image]).sum())
    return [same, len(pairs) - same]


def profile(facts: Facts, labels: np.ndarray | None, label_agreement: list[int]) -> Profile:
    """Return the profile of a split, which is compared with those of others."""
    height, error = heights(facts.histograms.sum(axis=1))
    values, counts = np.unique([] if labels is None else labels, return_counts=True)
    quantiles = {name: np.quantile(column, QUANTILES) for name, column in facts.statistics.items()}
    num_levels = len(facts.histogram)
    each = -(-num_levels // MOST_COMB_LEVELS)
    if each > 1:  # no height is known
        height, error = height[:0], error[:0]
    return Profile(
        num_images=len(facts.digest),
        image_shape=list(facts.image_shape),
        histogram=np.add.reduceat(facts.histogram, range(0, num_levels, each)).tolist(),
        **({"levels_each": each} if each > 1 else {}),
        height=height.round(6).tolist(),
        height_error=np.where(np.isfinite(error), error, -1).round(6).tolist(),
        statistics={name: values.astype(float).round(4).tolist() for name, values in quantiles.items()},
        labels=dict(zip(map(str, values.tolist()), counts.tolist(), strict=True)),
        label_agreement=label_agreement,
    )


def read_reference(path: Path) -> Profile:
    """Return the profile of a reference: a findings.json, a folder with one, or an image set (its training images).

    Raises UserError (exit 5).
    """
    if is_image_set(path):
        images = open_images(path)
        facts, labels = measure_facts(images["train"], images.num_levels), images.labels("train")
        pairs = search(images, {"train": facts})["train", "train"]
        return profile(facts, labels, agreement(pairs, labels, labels))
    wanted = "a reference is an image set, or a findings.json as `vdmctl validate PATH --out FOLDER` writes it"
    return read_document(Reference, path / FINDINGS if path.is_dir() else path, wanted).profile


def compare_profiles(
    profiles: dict[Split, Profile],
    agreements: dict[tuple[Split, Split], list[int]],
    reference: Profile | None,
    settings: "Contract",
) -> list[Difference]:
    """Return the differences of each pair of splits, and those of the training images from a reference.

    `agreements` are those of the labels of similar images, by pair of splits.
    """
    found = []
    for first, second in combinations(profiles, 2):
        some = shifts(profiles[first], profiles[second], agreements[first, second], settings)
        found += [as_difference(first, second, shift) for shift in some]
    if reference:
        some = shifts_from_reference(reference, profiles["train"], settings)
        found += [as_difference(REFERENCE, "train", shift) for shift in some]
    return found


def as_difference(first: str, second: str, shift: Shift) -> Difference:
    """Return a shift as the report gives it, with rounded numbers."""
    return Difference(
        first=first,
        second=second,
        statistic=shift.statistic,
        distance=float(f"{shift.distance:.6g}"),
        limit=float(f"{shift.limit:.6g}"),
        by_chance=float(f"{shift.by_chance:.3g}"),
        unit=shift.unit,
        reported=bool(is_beyond(shift.distance, shift.limit) and shift.by_chance < CHANCE),
    )


def shifts_from_reference(reference: Profile, ours: Profile, settings: "Contract") -> Iterator[Shift]:
    """Yield all shifts from a reference: that of the levels' shares, and those of `shifts`.

    If the numbers of levels or the shapes differ, that is the only one.
    """
    if (len(ours.histogram), ours.levels_each) != (len(reference.histogram), reference.levels_each):
        yield Shift("number of levels", 1.0, 0.0, 0.0, "")
    elif ours.image_shape != reference.image_shape:
        yield Shift("shape of images", 1.0, 0.0, 0.0, "")
    else:
        yield shift_of_shares(reference, ours, settings.max_drift)
        yield from shifts(reference, ours, ours.label_agreement, settings)


def shifts(first: Profile, second: Profile, label_agreement: list[int], settings: "Contract") -> Iterator[Shift]:
    """Yield the shifts of statistics of images, of the levels' heights, and of labels.

    `label_agreement` is that of images of the second side, and is compared with that within the first.
    """
    yield from shifts_of_statistics(first, second, settings.max_shift)
    yield shift_of_heights(first, second)
    labels = sorted(first.labels.keys() | second.labels.keys())
    counts = [[side.labels.get(label, 0) for label in labels] for side in (first, second)]
    yield from shift_of_labels("shares of labels", counts, 0.0)
    yield from shift_of_labels("labels of similar images", [first.label_agreement, label_agreement], GROWTH)


def shift_of_shares(first: Profile, second: Profile, allowed: float) -> Shift:
    """Return the shift of the shares of the levels."""
    limit = allowed  # 0 allows nothing
    if limit and first.num_images and second.num_images:
        limit = max(limit, CHANCE_OF_LEVELS * float(np.sqrt(1 / first.num_images + 1 / second.num_images)))
    moved = total_variation(np.array(first.histogram), np.array(second.histogram))
    return Shift("pixel histogram", moved, limit, 0.0, "of the pixels")


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Return half the summed absolute difference of two distributions, given counts: the share that would move."""
    one, other = (counts / max(counts.sum(), 1) for counts in (first, second))
    return float(np.abs(one - other).sum() / 2)


def shifts_of_statistics(first: Profile, second: Profile, allowed: float) -> Iterator[Shift]:
    """Yield the shifts of the statistics of images that both sides have, in their common standard deviation.

    Their shape is tested by Kolmogorov and Smirnov's test, and their mean by Welch's.
    """
    counts = (first.num_images, second.num_images)
    if min(counts) < FEWEST_IMAGES:
        return
    for name in [name for name in first.statistics if name in second.statistics]:
        both = np.array([first.statistics[name], second.statistics[name]])
        inner = both[:, 1:-1]
        (mean, other_mean), (spread, other_spread) = inner.mean(axis=1), inner.std(axis=1)
        distance = np.abs(inner[0] - inner[1]).mean() / max(np.hypot(spread, other_spread) / np.sqrt(2), 1e-9)
        statistic = stats.ks_2samp(*both, method="asymp").statistic
        of_shape = stats.kstwo.sf(statistic, round(counts[0] * counts[1] / sum(counts)))
        with np.errstate(all="ignore"):  # statistics of one value
            of_mean = stats.ttest_ind_from_stats(
                mean, spread, counts[0], other_mean, other_spread, counts[1], equal_var=False
            ).pvalue
        yield Shift(name, distance, allowed, float(np.nanmin([of_shape, of_mean])), "standard deviations")


def shift_of_heights(first: Profile, second: Profile) -> Shift:
    """Return how many levels stand out from their neighbours on one side and less so on the other.

    If the contrast of a share of the images was changed, the heights of some levels change by as much as this share.
    This stays with its jackknife, since nothing else notices that: of photographs of which a tenth has 0.97 times the
    contrast, a reference tells by this statistic alone.
    """
    values = np.array([first.height, second.height, first.height_error, second.height_error])
    height, other_height, *errors = values[:, (values[2:] > 0).all(axis=0)]
    spread, other_spread = (error * np.sqrt(GROUPS) for error in errors)
    test = stats.ttest_ind_from_stats(height, spread, GROUPS, other_height, other_spread, GROUPS, equal_var=False)
    steep = int((test.pvalue < STEEP).sum())
    return Shift("levels that stand out", steep, 0.0, float(stats.binom.sf(steep - 1, len(height), STEEP)), "levels")


def shift_of_labels(statistic: str, sides: Sequence[Sequence[int]], limit: float) -> Iterator[Shift]:
    """Yield the shift of shares of images, given the counts (2,L); nothing if a side has no images."""
    counts = np.array(sides, dtype=float)
    if counts.any(axis=1).all():
        rare = (stats.contingency.expected_freq(counts) < FEWEST_PER_LABEL).any(axis=0)
        counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
        used = counts[:, counts.any(axis=0)]
        by_chance = float(stats.chi2_contingency(used).pvalue) if used.shape[1] > 1 else 1.0
        yield Shift(statistic, total_variation(*counts), limit, by_chance, "of the images")
