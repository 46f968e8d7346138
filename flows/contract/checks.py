"""The discretization contract: everything that is expected of a set of images, one check each.

A likelihood is comparable only if the pixels are integers 0..K-1 of the stated K that were never rescaled, resampled or
compressed with loss, and if no image is in two splits.  `flows.contract.checking` makes tables of what the checks
measure, which Great Expectations judges.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from flows.contract.duplicates import Pairs, repeats
from flows.contract.facts import Facts, num_redundant
from flows.contract.findings import Difference, Severity
from flows.contract.limits import Limit, Rule, expect_between, expect_never, expect_value
from flows.contract.traces import Comb, comb
from flows.images.depth import shift_of
from flows.images.image_set import ImageSet
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Contract


ERROR: Severity = "critical"
WARNING: Severity = "warning"
FEW_LEVELS = 16
UNJUDGED = " (cannot be judged: too few levels are in use)"
UNJUDGED_DEEP = " (cannot be judged: too few pixels of each level)"
EXPECTED_UNUSED = " (not judged above 256 levels, of which few images use all)"


@dataclass(frozen=True)
class Measurements:
    """An image set, and what was measured in one pass over it."""

    images: ImageSet
    facts: dict[Split, Facts]
    labels: dict[Split, np.ndarray | None]
    alike: Pairs
    """From `flows.contract.duplicates.lookalikes`."""
    differences: list[Difference]

    @cached_property
    def histogram(self) -> np.ndarray:
        """(K,) number of pixels of each level, in all splits."""
        return np.asarray(np.sum([facts.histogram for facts in self.facts.values()], axis=0))

    @cached_property
    def textured(self) -> np.ndarray:
        """(K,) number of those that differ from their neighbours."""
        return np.asarray(np.sum([facts.textured for facts in self.facts.values()], axis=0))

    @cached_property
    def combs(self) -> dict[Split | None, Comb]:
        """What is wrong with each level of a split, and, at None, of the whole set."""
        combs: dict[Split | None, Comb] = {None: comb(self.histogram, self.textured)}
        return combs | {split: comb(facts.histogram, facts.textured) for split, facts in self.facts.items()}


Measure = Callable[[Measurements, Split], Any]


class Check(NamedTuple):
    """What is expected of a set of images, and why."""

    table: Literal["images", "splits", "histogram", "differences", "drift"]
    """What a row is: an image, a split, a level of a split, or a difference, of splits or from a reference."""
    column: str | None
    """Its name; with `max_` before it that of its limit in `contract:`.  None for the number of rows."""
    measure: Measure | None
    """Returns the column for a split: a value, or one for each image or level.  None if the table has it anyway."""
    expects: Rule | Limit
    severity: Severity
    """A critical check stops the pipeline, a warning is reported."""
    meaning: str
    """What holds, in words."""
    reason: str
    is_judged: bool = True
    """Whether it says something of these images; why it does not stands in the meaning."""

    @property
    def rule(self) -> Rule:
        """What is expected of the column."""
        return self.expects.rule if isinstance(self.expects, Limit) else self.expects

    @property
    def relaxed(self) -> str | None:
        """The limit if it is above the usual one, such as "max_gaps 1.0 instead of 0.015"."""
        limit = self.expects
        if not isinstance(limit, Limit) or limit.usual is None or limit.most <= limit.usual:
            return None
        return f"max_{self.column} {limit.most} instead of {limit.usual}"


def list_checks(
    images: ImageSet,
    settings: "Contract",
    unjudged: Collection[str] = (),
    searched: Mapping[tuple[Split, Split], int] | None = None,
    advice: str = "",
) -> list[Check]:
    """Return the checks of a set of images: `settings` are the limits, `unjudged` columns say nothing.

    `searched` says of how many images similar ones were searched for, by pair of splits, where not of all.  `advice` is
    that of `flows.images.depth.advice` about the levels in use.
    """
    splits, num_levels = images.splits, images.num_levels
    num_images = sum(getattr(images.description, f"num_{split}") for split in splits)
    num_pixels = sum(images[split].size for split in splits)
    num_cells = len(splits) * num_levels
    shape = "x".join(map(str, images.image_shape))
    # Transforms, few levels and lossy files explain what would otherwise be an error.
    smooth = WARNING if images.description.is_resized or num_levels <= FEW_LEVELS else ERROR
    lossy = WARNING if images.description.is_lossy else ERROR
    drift = WARNING if settings.on_drift == "warn" else ERROR
    parts = [
        f"{count:,} of {second} were searched for in {first}" for (first, second), count in (searched or {}).items()
    ]
    fewer_bits = f" ({advice})" if advice else ""
    deep = num_levels > 256
    sample = f" (of a sample: {'; '.join(parts)})" if parts else ""
    # fmt: off
    checks = [
        # One row per image.
        Check("images", None, None, expect_between(num_images, num_images, of="TableRowCount"), ERROR,
              "number of images", "an empty table passes all that is expected of its rows"),
        Check("images", "shape", lambda known, split: "x".join(map(str, known.images[split].shape[1:])),
              expect_value(shape), ERROR, "shape of every image", "bits/dim divide by the number of dimensions"),
        Check("images", "dtype", lambda known, split: str(known.images[split].dtype), expect_value(str(images.dtype)),
              ERROR, f"pixels are {images.dtype} integers", "floats have a density, not a probability"),
        Check("images", "num_nan", lambda known, split: known.facts[split].num_nan, expect_value(0), ERROR,
              "no pixel is NaN", "it has no likelihood"),
        Check("images", "lowest", lambda known, split: known.facts[split].lowest, expect_between(0, None), ERROR,
              "no level below 0", "it has no likelihood"),
        Check("images", "highest", lambda known, split: known.facts[split].highest,
              expect_between(None, num_levels - 1), ERROR, f"no level above {num_levels - 1}", "it has no likelihood"),
        Check("images", "leaked", flag_leaked, Limit(settings.max_leaked, "rows", usual=0.0), ERROR,
              "no image is in two splits", "the model may know it by heart"),
        Check("images", "duplicates", lambda known, split: repeats(known.facts[split].digest),
              Limit(settings.max_duplicates, "rows", usual=0.01), ERROR,
              "no image is twice in a split", "it counts twice, and errors of means are understated"),
        # `near_duplicate_distance` says which images are compared with chance at all.
        Check("images", "looks_like_earlier_split", flag_lookalikes, expect_never(), WARNING,
              f"images look like one of an earlier split no more often than by chance{sample}",
              "the model may know them"),
        Check("images", "constant", lambda known, split: known.facts[split].lowest == known.facts[split].highest,
              Limit(settings.max_constant, "rows", usual=0.001), ERROR,
              "no image is of one level", "it holds no picture, and costs hardly any bits"),
        # One row per split.  A negative number says how many are missing.
        Check("splits", "num_images", lambda known, split: len(known.images[split]), expect_between(1, None), ERROR,
              "no empty split", "nothing is trained or measured on it"),
        Check("splits", "more_than_stated", count_above_stated, expect_value(0), ERROR,
              "as many images in every split as stated", "a part of the set is missing"),
        Check("splits", "more_than_published", count_above_published, expect_value(0), ERROR,
              "as many images as were published", "a figure of a part of the set is not comparable"),
        Check("splits", "labels_without_images", count_labels_above_images, expect_value(0), ERROR,
              "a label for every image, or none for any", "labels would be those of other images"),
        Check("splits", "redundant_channels", lambda known, split: num_redundant(known.facts.values()),
              expect_value(0), ERROR,
              "no channel is of one level or repeats another (gray images in colour: set data.grayscale)",
              "its pixels cost no bits, and still divide them"),
        Check("splits", "lost_detail", lambda known, split: known.facts[split].lost_detail,
              Limit(settings.max_lost_detail, "value", usual=0.15), smooth,
              "images were not enlarged or blurred (share without detail)", "pixels between others cost no bits"),
        Check("splits", "jpeg_grid", lambda known, split: known.facts[split].jpeg_grid,
              Limit(settings.max_jpeg_grid, "value", usual=0.3), lossy,
              "images did not go through JPEG (how much they lie on its grid)", "what JPEG rounded away costs no bits"),
        Check("splits", "lossy_files", lambda known, split: known.images.description.is_lossy, expect_never(), WARNING,
              "no image comes from a lossy file, whose pixels are the decoder's", "what was lost costs no bits"),
        *([Check("splits", "empty_low_bits", lambda known, split: shift_of(np.flatnonzero(known.histogram)),
                 expect_value(0),
                 ERROR, f"the lowest bit of the levels is used{fewer_bits}", "an unused bit costs nothing")]
          if deep else []),
        Check("splits", "label_ratio", compare_labels, Limit(settings.max_label_ratio, "value"), WARNING,
              "images of the most frequent label, per image of the least frequent", "the mean is that of one label"),
        # One row per split and level.
        Check("histogram", None, None, expect_between(num_cells, num_cells, of="TableRowCount"), ERROR,
              "one row per split and level", "an empty table passes all that is expected of its rows"),
        Check("histogram", "count", lambda known, split: known.facts[split].histogram,
              expect_between(num_pixels, num_pixels, of="ColumnSum"), ERROR,
              "every pixel has one of the levels", "others have no likelihood"),
        Check("histogram", "level_in_use", lambda known, split: np.arange(num_levels) * (known.histogram > 0),
              expect_between((num_levels - 1) // 2 + 1, None, of="ColumnMax"), ERROR,
              f"levels of the upper half are used: the set has no fewer bits than stated{fewer_bits}",
              "an unused bit costs nothing"),
        Check("histogram", "gaps", measure_shares("gaps"), Limit(settings.max_gaps, "levels", usual=0.015), ERROR,
              "levels are not spread: almost empty between full ones", "levels that cannot occur cost no bits"),
        Check("histogram", "peaks", measure_shares("peaks"), Limit(settings.max_peaks, "levels", usual=0.02), ERROR,
              "levels are not squeezed: much fuller than their neighbours", "two levels became one"),
        Check("histogram", "skipped", measure_shares("skipped"), Limit(settings.max_skipped, "levels", usual=0.25),
              ERROR, "levels are used: empty between the lowest and the highest",
              "the set has fewer levels than stated"),
        Check("histogram", "unused", lambda known, split: (known.histogram == 0) & (not deep), expect_never(), WARNING,
              "every level is used", "the darkest or brightest ones may have been cut off"),
        # One row per statistic of two splits, or of the training images and a reference's.
        # `flows.contract.drift` applies `max_shift` and `max_drift`, beyond which a difference is reported.
        Check("differences", "reported", None, expect_never(), WARNING,
              "splits differ by chance alone", "a figure of one split says little about another"),
        Check("drift", "reported", None, expect_never(), drift,
              "images are like the reference's", "its model was made for other images"),
    ]
    # fmt: on
    remarks = {check.column: f" (relaxed: {check.relaxed})" for check in checks if check.relaxed}
    remarks |= dict.fromkeys(unjudged, UNJUDGED_DEEP if deep else UNJUDGED)
    if deep:
        remarks["unused"] = EXPECTED_UNUSED
    left_out = {*unjudged, *(["unused"] if deep else [])}
    checks = [
        check._replace(meaning=check.meaning + remarks.get(check.column, ""), is_judged=check.column not in left_out)
        for check in checks
    ]
    return [check._replace(measure=never_flag) if check.column in unjudged else check for check in checks]


def never_flag(known: Measurements, split: Split) -> bool:
    """Return that nothing is wrong with a split."""
    return False


def flag_leaked(known: Measurements, split: Split) -> np.ndarray | None:
    """Return whether images equal one of an earlier split (N,); of training images this says nothing."""
    earlier = [known.facts[each].digest for each in takewhile(lambda each: each != split, known.facts)]
    return np.isin(known.facts[split].digest, np.concatenate(earlier)) if earlier else None


def flag_lookalikes(known: Measurements, split: Split) -> np.ndarray:
    """Return whether images look like one of an earlier split, among more than by chance (N,)."""
    similar = [pairs["image"][pairs["excess"]] for (_, second), pairs in known.alike.items() if second == split]
    return np.isin(np.arange(len(known.images[split])), np.concatenate([[], *similar]))


def count_above_stated(known: Measurements, split: Split) -> int:
    """Return how many images there are beyond those that the set states."""
    return len(known.images[split]) - int(getattr(known.images.description, f"num_{split}"))


def count_above_published(known: Measurements, split: Split) -> int:
    """Return how many images there are beyond those that were published; 0 if that is not known."""
    # The validation images are part of the published training images.
    count = len(known.images[split]) + (len(known.images["validation"]) if split == "train" else 0)
    return count - int(getattr(known.images.description, f"published_{split}") or count)


def count_labels_above_images(known: Measurements, split: Split) -> int:
    """Return how many labels there are beyond one for each image; 0 if no split has labels."""
    if all(labels is None for labels in known.labels.values()):
        return 0
    labels = known.labels[split]
    return (0 if labels is None else len(labels)) - len(known.images[split])


def compare_labels(known: Measurements, split: Split) -> float:
    """Return how many images the most frequent label has for each of the least frequent; 1 without labels."""
    frequencies = pd.Series(known.labels[split]).value_counts()
    return float(frequencies.max() / frequencies.min()) if len(frequencies) else 1.0


def measure_shares(kind: str) -> Measure:
    """Return what measures the share of the levels that look wrong in this way, for each level that does (K,).

    It is the share of all levels, in the split or in the whole set, whichever is larger.  It is 0 for other levels.
    """

    def measure(known: Measurements, split: Split) -> np.ndarray:
        of_split, of_set = (getattr(known.combs[part], kind) for part in (split, None))
        return np.asarray(np.maximum(of_split * of_split.mean(), of_set * of_set.mean()))

    return measure
