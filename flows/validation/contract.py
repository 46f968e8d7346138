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
    from great_expectations import expectations as gxe

    highest, shape = image_set.num_levels - 1, "x".join(map(str, image_set.image_shape))
    held_out = len(image_set.validation) + len(image_set.test)
    share_held_out = held_out / max(1, len(image_set.train) + held_out)
    similar = "images look like one of an earlier split no more often than by chance"
    return [
        expect(gxe.ExpectColumnValuesToBeInSet, "shape of every image", column="shape", value_set=[shape]),
        expect(gxe.ExpectColumnValuesToBeInSet, "pixels are uint8 integers", column="dtype", value_set=["uint8"]),
        expect(gxe.ExpectColumnValuesToBeInSet, "no pixel is NaN", column="num_nan", value_set=[0]),
        expect(gxe.ExpectColumnValuesToBeBetween, "no level below 0", column="lowest", min_value=0),
        expect(gxe.ExpectColumnValuesToBeBetween, f"no level above {highest}", column="highest", max_value=highest),
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
    labelled = "a label for every image, or none for any"
    redundant = "no channel is of one level or repeats another (gray images in colour: set data.grayscale)"
    stated = "as many images in every split as stated"
    published = "as many images as were published"
    frequent = "images of the most frequent label, per image of the least frequent"
    limit = settings.max_label_ratio
    return [
        expect(
            gxe.ExpectColumnSumToBeBetween, "number of images", column="num_images", min_value=total, max_value=total
        ),
        expect(gxe.ExpectColumnValuesToBeBetween, "no empty split", column="num_images", min_value=1),
        expect(gxe.ExpectColumnValuesToBeInSet, stated, column="more_than_stated", value_set=[0]),
        expect(gxe.ExpectColumnValuesToBeInSet, published, column="more_than_published", value_set=[0]),
        expect(gxe.ExpectColumnValuesToBeInSet, labelled, column="labels_without_images", value_set=[0]),
        expect(gxe.ExpectColumnValuesToBeInSet, redundant, column="redundant_channels", value_set=[0]),
        *detail_expectations(image_set, settings),
        never("jpeg", 0.0, f"no image comes from a {kind} file, whose pixels are the decoder's", "warning"),
        expect(gxe.ExpectColumnValuesToBeBetween, frequent, "warning", column="label_ratio", max_value=limit),
    ]


def detail_expectations(image_set: ImageSet, settings: "Contract") -> list[Any]:
    """Return the expectations of the detail of each split.

    It is an error if images were enlarged or went through JPEG, unless the transforms or lossy files explain it.
    Pixels of few levels have little detail, too.
    """
    from great_expectations import expectations as gxe

    explained = "resized" in image_set.transforms or image_set.num_levels <= FEW_LEVELS
    severity = "warning" if explained else "critical"
    lossy = "warning" if from_lossy_files(image_set) else "critical"
    detail = "images were not enlarged or blurred (share without detail)"
    grid = "images did not go through JPEG (how much they lie on its grid)"
    return [
        expect(
            gxe.ExpectColumnValuesToBeBetween,
            detail,
            severity,
            column="lost_detail",
            max_value=settings.max_lost_detail,
        ),
        expect(gxe.ExpectColumnValuesToBeBetween, grid, lossy, column="jpeg_grid", max_value=settings.max_jpeg_grid),
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
    return [
        expect(gxe.ExpectTableRowCountToEqual, "one row per split and level", value=num_rows),
        expect(gxe.ExpectColumnValuesToBeBetween, "counts of levels", column="count", min_value=0),
        expect(gxe.ExpectColumnSumToBeBetween, counted, column="count", min_value=pixels, max_value=pixels),
        expect(
            gxe.ExpectColumnMaxToBeBetween, bits, column="level_in_use", min_value=(image_set.num_levels - 1) // 2 + 1
        ),
        never("gap", 0.0, "levels are not spread: almost empty between full ones"),
        never("peak", 0.0, "levels are not squeezed: much fuller than their neighbours"),
        never("skipped", 0.0, "levels are used: empty between the lowest and the highest"),
        never("unused", 0.0, "every level is used", "warning"),
    ]


def difference_expectations(severity: str, text: str) -> list[Any]:
    """Return the expectation of a table with one row per difference."""
    from great_expectations import expectations as gxe

    return [expect(gxe.ExpectColumnValuesToBeBetween, text, severity, column="times_the_limit", max_value=1)]


def never(column: str, exceptions: float, text: str, severity: str = "critical") -> Any:
    """Expect the flag in `column` to be false for all rows but a share of `exceptions`."""
    from great_expectations import expectations as gxe

    # 1e-9 absorbs rounding: one row of seventy passes if the share is 1/70.
    mostly = max(0.0, 1 - exceptions - 1e-9)
    return expect(gxe.ExpectColumnValuesToBeInSet, text, severity, column=column, value_set=[False], mostly=mostly)


def expect(kind: Any, text: str, severity: str = "critical", **arguments: Any) -> Any:
    """Return an expectation of Great Expectations, with a text for the site and for error messages."""
    return kind(**arguments, meta={"meaning": text}, description=text, severity=severity)
