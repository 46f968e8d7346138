"""The discretization contract: everything that is expected of a set of images, as one table.

A likelihood is comparable only if the pixels are integers 0..K-1 of the stated K that were never rescaled, resampled or
compressed with loss, and if no image is in two splits.  `flows.contract.checking` makes the tables and says what the
columns are.  An expectation of level `warning` is reported and does not stop the pipeline.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from flows.images.image_set import ImageSet
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Contract


Level = Literal["critical", "warning"]
ERROR: Level = "critical"
WARNING: Level = "warning"
FEW_LEVELS = 16
UNJUDGED = " (cannot be judged: too few levels are in use)"
UNJUDGED_DEEP = " (cannot be judged: too few pixels of each level)"
EXPECTED_UNUSED = " (not judged above 256 levels, of which few images use all)"
LIMITS = {"leaked": 0.0, "duplicates": 0.01, "constant": 0.001, "lost_detail": 0.15, "jpeg_grid": 0.3,
          "gaps": 0.015, "peaks": 0.02, "skipped": 0.25}  # fmt: skip
"""The usual limits of what must hold, by column: `max_gaps` limits `gaps`.  presets/digits.yaml has them, too."""


class Rule(NamedTuple):
    """A type of expectation of Great Expectations, and its arguments."""

    expectation: str
    arguments: dict[str, Any]


class Expected(NamedTuple):
    """A row of the contract: what must hold for a column (or for the whole table), at which level, and why."""

    column: str | None
    rule: Rule
    level: Level
    meaning: str
    reason: str


def contract(
    image_set: ImageSet,
    settings: "Contract",
    unjudged: Collection[str] = (),
    searched: Mapping[tuple[Split, Split], int] | None = None,
    advice: str = "",
) -> dict[str, list[Expected]]:
    """Return the contract by table: `settings` are the thresholds in `contract:`, `unjudged` columns say nothing.

    `searched` says of how many images similar ones were searched for, by pair of splits, where not of all.  `advice` is
    that of `flows.images.depth.advice` about the levels in use.
    """
    splits, num_levels = image_set.splits, image_set.num_levels
    num_images = sum(getattr(image_set.description, f"num_{split}") for split in splits)
    num_pixels = sum(image_set[split].size for split in splits)
    num_cells = len(splits) * num_levels
    shape = "x".join(map(str, image_set.image_shape))
    # Transforms, few levels and lossy files explain what would otherwise be an error.
    smooth = WARNING if "resized" in image_set.description.transforms or num_levels <= FEW_LEVELS else ERROR
    lossy = WARNING if from_lossy_files(image_set) else ERROR
    drift = WARNING if settings.on_drift == "warn" else ERROR
    parts = [
        f"{count:,} of {second} were searched for in {first}" for (first, second), count in (searched or {}).items()
    ]
    fewer_bits = f" ({advice})" if advice else ""
    deep = num_levels > 256
    sample = f" (of a sample: {'; '.join(parts)})" if parts else ""
    # fmt: off
    tables: dict[str, list[tuple[str | None, Rule, Level, str, str]]] = {
        # One row per image.
        "images": [
            (None, between(num_images, num_images, of="TableRowCount"), ERROR,
             "number of images", "an empty table passes all that is expected of its rows"),
            ("shape", among(shape), ERROR,
             "shape of every image", "bits/dim divide by the number of dimensions"),
            ("dtype", among(str(image_set.dtype)), ERROR,
             f"pixels are {image_set.dtype} integers", "floats have a density, not a probability"),
            ("num_nan", among(0), ERROR,
             "no pixel is NaN", "it has no likelihood"),
            ("lowest", between(0, None), ERROR,
             "no level below 0", "it has no likelihood"),
            ("highest", between(None, num_levels - 1), ERROR,
             f"no level above {num_levels - 1}", "it has no likelihood"),
            ("leaked", never(settings.max_leaked), ERROR,
             "no image is in two splits", "the model may know it by heart"),
            ("duplicates", never(settings.max_duplicates), ERROR,
             "no image is twice in a split", "it counts twice, and errors of means are understated"),
            ("looks_like_earlier_split", never(), WARNING,
             f"images look like one of an earlier split no more often than by chance{sample}",
             "the model may know them"),
            ("constant", never(settings.max_constant), ERROR,
             "no image is of one level", "it holds no picture, and costs hardly any bits"),
        ],
        # One row per split.
        "splits": [
            ("num_images", between(1, None), ERROR,
             "no empty split", "nothing is trained or measured on it"),
            ("more_than_stated", among(0), ERROR,
             "as many images in every split as stated", "a part of the set is missing"),
            ("more_than_published", among(0), ERROR,
             "as many images as were published", "a figure of a part of the set is not comparable"),
            ("labels_without_images", among(0), ERROR,
             "a label for every image, or none for any", "labels would be those of other images"),
            ("redundant_channels", among(0), ERROR,
             "no channel is of one level or repeats another (gray images in colour: set data.grayscale)",
             "its pixels cost no bits, and still divide them"),
            ("lost_detail", between(None, settings.max_lost_detail), smooth,
             "images were not enlarged or blurred (share without detail)", "pixels between others cost no bits"),
            ("jpeg_grid", between(None, settings.max_jpeg_grid), lossy,
             "images did not go through JPEG (how much they lie on its grid)", "what JPEG rounded away costs no bits"),
            ("lossy_files", never(), WARNING,
             "no image comes from a lossy file, whose pixels are the decoder's", "what was lost costs no bits"),
            *([("empty_low_bits", among(0), ERROR,
                f"the lowest bit of the levels is used{fewer_bits}", "an unused bit costs nothing")] if deep else []),
            ("label_ratio", between(None, settings.max_label_ratio), WARNING,
             "images of the most frequent label, per image of the least frequent", "the mean is that of one label"),
        ],
        # One row per split and level.
        "histogram": [
            (None, between(num_cells, num_cells, of="TableRowCount"), ERROR,
             "one row per split and level", "an empty table passes all that is expected of its rows"),
            ("count", between(num_pixels, num_pixels, of="ColumnSum"), ERROR,
             "every pixel has one of the levels", "others have no likelihood"),
            ("level_in_use", between((num_levels - 1) // 2 + 1, None, of="ColumnMax"), ERROR,
             f"levels of the upper half are used: the set has no fewer bits than stated{fewer_bits}",
             "an unused bit costs nothing"),
            ("gaps", never(), ERROR,
             "levels are not spread: almost empty between full ones", "levels that cannot occur cost no bits"),
            ("peaks", never(), ERROR,
             "levels are not squeezed: much fuller than their neighbours", "two levels became one"),
            ("skipped", never(), ERROR,
             "levels are used: empty between the lowest and the highest", "the set has fewer levels than stated"),
            ("unused", never(), WARNING,
             "every level is used", "the darkest or brightest ones may have been cut off"),
        ],
        # One row per statistic of two splits.
        "differences": [
            ("reported", never(), WARNING,
             "splits differ by chance alone", "a figure of one split says little about another"),
        ],
        # One row per statistic of the training images and a reference's.
        "drift": [
            ("reported", never(), drift,
             "images are like the reference's", "its model was made for other images"),
        ],
    }
    # fmt: on
    remarks = {key: f" (relaxed: {it})" for key, it in relaxed(settings).items()} | dict.fromkeys(
        unjudged, UNJUDGED_DEEP if deep else UNJUDGED
    )
    if deep:
        remarks["unused"] = EXPECTED_UNUSED
    return {
        table: [Expected(*row[:3], row[3] + remarks.get(row[0] or "", ""), row[4]) for row in rows]
        for table, rows in tables.items()
    }


def relaxed(settings: "Contract") -> dict[str, str]:
    """Return the limits that are above the usual ones, by column, such as "max_gaps 1.0 instead of 0.015"."""
    limits = {column: (getattr(settings, f"max_{column}"), usual) for column, usual in LIMITS.items()}
    return {key: f"max_{key} {limit} instead of {usual}" for key, (limit, usual) in limits.items() if limit > usual}


def from_lossy_files(image_set: ImageSet) -> bool:
    """Whether the description of the set says that files were compressed with loss."""
    formats = image_set.description.formats
    return "JPEG" in formats or "lossy" in formats


def among(value: Any) -> Rule:
    """Expect this value in every row."""
    return Rule("ExpectColumnValuesToBeInSet", {"value_set": [value]})


def never(exceptions: float = 0.0) -> Rule:
    """Expect a flag to be false in all rows but a share of `exceptions`."""
    # 1e-9 absorbs rounding: one row of seventy passes if the share is 1/70.
    return Rule("ExpectColumnValuesToBeInSet", {"value_set": [False], "mostly": max(0.0, 1 - exceptions - 1e-9)})


def between(lowest: float | None, highest: float | None, of: str = "ColumnValues") -> Rule:
    """Expect the values of all rows, or another figure of the table, to be within the limits; None for no limit."""
    limits = {"min_value": lowest, "max_value": highest}
    return Rule(f"Expect{of}ToBeBetween", {key: limit for key, limit in limits.items() if limit is not None})
