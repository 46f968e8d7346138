"""Measure how far splits, or training images and a reference, differ, and whether chance alone may be the cause.

| what is compared | distance | test of chance |
|---|---|---|
| statistics of images | mean distance of equal quantiles, in standard deviations | Kolmogorov-Smirnov, t test |
| levels of a reference | share of pixels that would change level (total variation) | limit by number of images |
| levels that stand out from their neighbours | number of levels of another height | t test of each level |
| labels | share of images that would change label (total variation) | chi-squared |
| labels of the most similar images | difference of the share that is the same | chi-squared |

A difference is reported if it is beyond what the contract allows, and chance makes it with less than `CHANCE`.
"""

import shlex
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from flows.core.documents import read
from flows.core.errors import Exit, UserError
from flows.images.store import DESCRIPTION, load_images, load_labels
from flows.validation.comb import heights
from flows.validation.duplicates import search
from flows.validation.facts import GROUPS, Facts, measure
from flows.validation.report import REPORT, Difference, Profile, Reference

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
MOST_LABELS = 2000
GROWTH = 0.05
"""Up to this difference, labels of similar images may agree more in a set than in a smaller one."""


def difference(statistic: str, distance: float, limit: float, by_chance: float, unit: str) -> Difference:
    """Return a difference, whose two sides are filled in later, with rounded numbers."""
    return Difference(
        first="",
        second="",
        statistic=statistic,
        distance=float(f"{distance:.6g}"),
        limit=float(f"{limit:.6g}"),
        by_chance=float(f"{by_chance:.3g}"),
        unit=unit,
        reported=bool(distance > limit and by_chance < CHANCE),
    )


def agreement(found: pd.DataFrame | None, first: np.ndarray | None, second: np.ndarray | None) -> list[int]:
    """Return how many images have the label of the most similar one, and how many do not, given pairs and labels.

    Both are 0 without labels, and if there are not as many labels as images.
    """
    if found is None or found.empty or first is None or second is None:
        return [0, 0]
    image, of_image = found["image"].to_numpy(), found["of_image"].to_numpy()
    if image.max() >= len(second) or of_image.max() >= len(first):
        return [0, 0]
    same = int((second[image] == first[of_image]).sum())
    return [same, len(found) - same]


def profile(facts: Facts, labels: np.ndarray | None = None, pairs: pd.DataFrame | None = None) -> Profile:
    """Return the profile of a split, which is compared with those of others; `pairs` are similar images within it."""
    height, error = heights(facts.histograms.sum(axis=1))
    values, counts = np.unique([] if labels is None else labels, return_counts=True)
    few = len(values) <= MOST_LABELS
    return Profile(
        histogram=facts.histogram.tolist(),
        num_images=len(facts.digest),
        image_shape=list(facts.image_shape),
        statistics={name: quantiles(column) for name, column in facts.statistics.items()},
        channels=facts.histograms.sum(axis=0).tolist(),
        height=height.round(6).tolist(),
        height_error=np.where(np.isfinite(error), error, -1).round(6).tolist(),
        labels=dict(zip(map(str, values.tolist()), counts.tolist(), strict=True)) if few else {},
        label_agreement=agreement(pairs, labels, labels),
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
        facts = measure(image_set.train, image_set.num_levels)
        pairs = search(image_set, {"train": facts})["train", "train"]
        return profile(facts, load_labels(path, "train"), pairs)
    wanted = "a reference is a validation.json with a profile, or an image set"
    if path.is_dir() and not (path / REPORT).is_file():
        command = f"vdmctl validate {shlex.quote(str(path))} --out FOLDER"
        advice = f"`{command}` writes FOLDER/validation.json about images"
        raise UserError(f"{path} has no {DESCRIPTION}; {wanted}; {advice}", Exit.MISSING)
    return read(Reference, path / REPORT if path.is_dir() else path, wanted).profile


def differences(
    profiles: dict[str, Profile],
    reference: Profile | None,
    settings: "Contract",
    agreements: dict[tuple[str, str], list[int]] | None = None,
) -> list[Difference]:
    """Return the differences of each pair of splits, and those of the training images from a reference.

    `agreements` are those of the images of pairs of splits.
    """
    found: dict[tuple[str, str], list[Difference]] = {}
    for first, second in combinations(profiles, 2):
        ours, theirs = profiles[first], profiles[second]
        similar = shift_of_agreement(ours.label_agreement, (agreements or {}).get((first, second), [0, 0]))
        found[first, second] = [*shifts(ours, theirs, settings.max_shift), *similar]
    if reference:
        found[REFERENCE, "train"] = from_reference(reference, profiles["train"], settings)
    return [
        each.model_copy(update={"first": first, "second": second})
        for (first, second), some in found.items()
        for each in some
    ]


def from_reference(reference: Profile, ours: Profile, settings: "Contract") -> list[Difference]:
    """Return all differences from a reference: those of the levels' shares, and those of `shifts`.

    If the numbers of levels or the shapes differ, that is the only difference.
    """
    if len(ours.histogram) != len(reference.histogram):
        return [difference("number of levels", 1.0, 0.0, 0.0, "")]
    if reference.image_shape and ours.image_shape != reference.image_shape:
        return [difference("shape of images", 1.0, 0.0, 0.0, "")]
    limit = settings.max_drift  # 0 allows nothing
    if limit and ours.num_images and reference.num_images:
        limit = max(limit, CHANCE_OF_LEVELS * float(np.sqrt(1 / ours.num_images + 1 / reference.num_images)))
    pairs = {"pixel histogram": (ours.histogram, reference.histogram)}
    if len(ours.channels) == len(reference.channels) > 1:
        channels = enumerate(zip(ours.channels, reference.channels, strict=True))
        pairs |= {f"histogram of channel {number}": pair for number, pair in channels if len(pair[0]) == len(pair[1])}
    return [
        *(difference(name, total_variation(*pair), limit, 0.0, "of the pixels") for name, pair in pairs.items()),
        *shifts(reference, ours, settings.max_shift),
        *shift_of_agreement(reference.label_agreement, ours.label_agreement),
    ]


def shifts(ours: Profile, theirs: Profile, allowed: float) -> list[Difference]:
    """Return the differences of all that both profiles have: statistics of images, levels' heights, and labels.

    A distance of statistics up to `allowed` standard deviations is not reported, whatever chance does.
    """
    found, counts = [], (ours.num_images, theirs.num_images)
    for name, first in ours.statistics.items():
        second = theirs.statistics.get(name, [])
        if len(first) == len(second) == len(QUANTILES) and min(counts) >= FEWEST_IMAGES:
            both = np.array([first, second])
            inner = both[:, 1:-1]
            distance = np.abs(inner[0] - inner[1]).mean() / max(np.sqrt(inner.var(axis=1).mean()), 1e-9)
            statistic = stats.ks_2samp(*both, method="asymp").statistic
            of_shape = stats.kstwo.sf(statistic, round(counts[0] * counts[1] / sum(counts)))
            (mean, other_mean), (spread, other_spread) = inner.mean(axis=1), inner.std(axis=1)
            with np.errstate(all="ignore"):  # statistics of one value
                of_mean = stats.ttest_ind_from_stats(
                    mean, spread, counts[0], other_mean, other_spread, counts[1], equal_var=False
                ).pvalue
            by_chance = np.nanmin([of_shape, of_mean])
            found.append(difference(name, distance, allowed, by_chance, "standard deviations"))
    return [*found, *shift_of_levels(ours, theirs), *shift_of_labels(ours.labels, theirs.labels)]


def total_variation(first: list[int] | np.ndarray, second: list[int] | np.ndarray) -> float:
    """Return half the sum of the differences of the shares in two histograms (K,)."""
    shares = [np.asarray(counts, dtype=float) / max(np.sum(counts, dtype=float), 1) for counts in (first, second)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def shift_of_levels(ours: Profile, theirs: Profile) -> list[Difference]:
    """Return how many levels stand out from their neighbours in one profile and less so in the other.

    If the contrast of a share of the images was changed, the heights of some levels change by as much as this share.
    """
    columns = (ours.height, theirs.height, ours.height_error, theirs.height_error)
    if len(set(map(len, columns))) > 1:
        return []
    values = np.array(columns)
    first, second, *errors = values[:, (values[2:] > 0).all(axis=0)]
    spread, other_spread = (error * np.sqrt(GROUPS) for error in errors)
    with np.errstate(all="ignore"):  # a reference may hold any numbers
        test = stats.ttest_ind_from_stats(first, spread, GROUPS, second, other_spread, GROUPS, equal_var=False)
    steep = int((test.pvalue < STEEP).sum())
    by_chance = float(stats.binom.sf(steep - 1, len(first), STEEP))
    return [difference("levels that stand out", float(steep), 0.0, by_chance, "levels")]


def shift_of_labels(ours: dict[str, int], theirs: dict[str, int]) -> list[Difference]:
    """Return the difference of the shares of the labels."""
    names = sorted(ours.keys() | theirs.keys())
    counts = np.array([[side.get(name, 0) for name in names] for side in (ours, theirs)], dtype=float)
    if not counts.any(axis=1).all():
        return []
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    rare = (expected < FEWEST_PER_LABEL).any(axis=0)
    counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    return [difference("shares of labels", total_variation(*counts), 0.0, chi_squared(counts), "of the images")]


def shift_of_agreement(ours: list[int], theirs: list[int]) -> list[Difference]:
    """Return the difference of the shares of images that have the label of the most similar image."""
    counts = np.array([ours, theirs], dtype=float)
    if not counts.any(axis=1).all():
        return []
    by_chance = chi_squared(counts)
    return [difference("labels of similar images", total_variation(*counts), GROWTH, by_chance, "of the images")]


def chi_squared(counts: np.ndarray) -> float:
    """Return the probability that counts (2,L) of two sides that were drawn alike are so different."""
    used = counts[:, counts.any(axis=0)]
    return float(stats.chi2_contingency(used).pvalue) if used.shape[1] > 1 else 1.0
