"""The discretization contract: the suite of expectations, kept as code.

A likelihood is meaningful only if the pixels are integers 0..K-1 of the stated K that were never rescaled, resampled or
compressed with loss, and if no image is in two splits.  An expectation of severity `warning` is reported and does not
stop the pipeline.
"""

from typing import TYPE_CHECKING, Any

from flows.images.store import ImageSet, present

if TYPE_CHECKING:
    from flows.core.params import Contract

FEW_LEVELS = 16


def image_expectations(image_set: ImageSet, settings: "Contract") -> list[Any]:
    """Return the expectations of the table with one row per image."""
    highest, shape = image_set.num_levels - 1, "x".join(map(str, image_set.image_shape))
    held_out = len(image_set.validation) + len(image_set.test)
    share_held_out = held_out / max(1, len(image_set.train) + held_out)
    similar = "images look like one of an earlier split no more often than by chance"
    return [
        among("shape", [shape], "shape of every image"),
        among("dtype", ["uint8"], "pixels are uint8 integers"),
        among("num_nan", [0], "no pixel is NaN"),
        between("lowest", "no level below 0", min_value=0),
        between("highest", f"no level above {highest}", max_value=highest),
        never("in_earlier_split", settings.max_leaked * share_held_out, "no image is in two splits"),
        never("repeats", settings.max_duplicates, "no image is twice in a split"),
        never("looks_like_earlier_split", 0.0, similar, "warning"),
        never("constant", settings.max_constant, "no image is of one level"),
    ]


def split_expectations(image_set: ImageSet, settings: "Contract") -> list[Any]:
    """Return the expectations of the table with one row per split.

    They include the number of images, since an empty table of images passes every row-wise check.
    """
    from great_expectations import expectations as gxe

    total = sum(image_set.description[f"num_{split}"] for split in present(image_set.description))
    kind = "lossy" if "lossy" in image_set.description.get("formats", "") else "JPEG"
    redundant = "no channel is of one level or repeats another (gray images in colour: set data.grayscale)"
    frequent = "images of the most frequent label, per image of the least frequent"
    return [
        expect(
            gxe.ExpectColumnSumToBeBetween, "number of images", column="num_images", min_value=total, max_value=total
        ),
        between("num_images", "no empty split", min_value=1),
        among("more_than_stated", [0], "as many images in every split as stated"),
        among("more_than_published", [0], "as many images as were published"),
        among("labels_without_images", [0], "a label for every image, or none for any"),
        among("redundant_channels", [0], redundant),
        *detail_expectations(image_set, settings),
        never("jpeg", 0.0, f"no image comes from a {kind} file, whose pixels are the decoder's", "warning"),
        between("label_ratio", frequent, "warning", max_value=settings.max_label_ratio),
    ]


def detail_expectations(image_set: ImageSet, settings: "Contract") -> list[Any]:
    """Return the expectations of the detail of each split.

    It is an error if images were enlarged or went through JPEG, unless the transforms or lossy files explain it.
    Pixels of few levels have little detail, too.
    """
    explained = "resized" in image_set.transforms or image_set.num_levels <= FEW_LEVELS
    severity = "warning" if explained else "critical"
    lossy = "warning" if from_lossy_files(image_set) else "critical"
    detail = "images were not enlarged or blurred (share without detail)"
    grid = "images did not go through JPEG (how much they lie on its grid)"
    return [
        between("lost_detail", detail, severity, max_value=settings.max_lost_detail),
        between("jpeg_grid", grid, lossy, max_value=settings.max_jpeg_grid),
    ]


def from_lossy_files(image_set: ImageSet) -> bool:
    """Whether the description of the set says that files were compressed with loss."""
    formats = image_set.description.get("formats", "")
    return "JPEG" in formats or "lossy" in formats


def histogram_expectations(image_set: ImageSet) -> list[Any]:
    """Return the expectations of the table with one row per split and level."""
    from great_expectations import expectations as gxe

    splits = present(image_set.description)
    num_rows, pixels = len(splits) * image_set.num_levels, sum(getattr(image_set, split).size for split in splits)
    counted = "every pixel has one of the levels"
    bits = "levels of the upper half are used: the set has no fewer bits than stated"
    half = (image_set.num_levels - 1) // 2 + 1
    return [
        expect(gxe.ExpectTableRowCountToEqual, "one row per split and level", value=num_rows),
        between("count", "counts of levels", min_value=0),
        expect(gxe.ExpectColumnSumToBeBetween, counted, column="count", min_value=pixels, max_value=pixels),
        expect(gxe.ExpectColumnMaxToBeBetween, bits, column="level_in_use", min_value=half),
        never("gap", 0.0, "levels are not spread: almost empty between full ones"),
        never("peak", 0.0, "levels are not squeezed: much fuller than their neighbours"),
        never("skipped", 0.0, "levels are used: empty between the lowest and the highest"),
        never("unused", 0.0, "every level is used", "warning"),
    ]


def never(column: str, exceptions: float, text: str, severity: str = "critical") -> Any:
    """Expect the flag in `column` to be false for all rows but a share of `exceptions`."""
    # 1e-9 absorbs rounding: one row of seventy passes if the share is 1/70.
    return among(column, [False], text, severity, mostly=max(0.0, 1 - exceptions - 1e-9))


def among(column: str, values: list[Any], text: str, severity: str = "critical", **options: float) -> Any:
    """Expect the values in `column` to be among `values`, or with the option `mostly` that share of them."""
    from great_expectations.expectations import ExpectColumnValuesToBeInSet

    return expect(ExpectColumnValuesToBeInSet, text, severity, column=column, value_set=values, **options)


def between(column: str, text: str, severity: str = "critical", **limits: float) -> Any:
    """Expect the values in `column` to be within the limits, `min_value` or `max_value`."""
    from great_expectations.expectations import ExpectColumnValuesToBeBetween

    return expect(ExpectColumnValuesToBeBetween, text, severity, column=column, **limits)


def expect(kind: Any, text: str, severity: str = "critical", **arguments: Any) -> Any:
    """Return an expectation of Great Expectations, with a text for the site and for error messages."""
    return kind(**arguments, meta={"meaning": text}, description=text, severity=severity)
