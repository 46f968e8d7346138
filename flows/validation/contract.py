"""The discretization contract: the suite of expectations, kept as code.

A likelihood is meaningful only if the pixels are integers 0..K-1 of the stated K that were never rescaled, and if no
test image is a training image.  An expectation of severity `warning` is reported and does not stop the pipeline.
"""

from typing import TYPE_CHECKING, Any

from flows.images.store import ImageSet, present

if TYPE_CHECKING:
    from flows.core.params import Contract


def image_expectations(image_set: ImageSet, settings: "Contract") -> list[Any]:
    """Return the expectations of the table with one row per image."""
    from great_expectations import expectations as gxe

    highest, shape = image_set.num_levels - 1, "x".join(map(str, image_set.image_shape))
    held_out = len(image_set.validation) + len(image_set.test)
    share_held_out = held_out / max(1, len(image_set.train) + held_out)
    return [
        gxe.ExpectColumnValuesToBeInSet(column="shape", value_set=[shape], **meaning("shape of every image")),
        gxe.ExpectColumnValuesToBeInSet(column="dtype", value_set=["uint8"], **meaning("pixels are uint8 integers")),
        gxe.ExpectColumnValuesToBeInSet(column="num_nan", value_set=[0], **meaning("no pixel is NaN")),
        gxe.ExpectColumnValuesToBeBetween(column="lowest", min_value=0, **meaning("no level below 0")),
        gxe.ExpectColumnValuesToBeBetween(column="highest", max_value=highest, **meaning(f"no level above {highest}")),
        never("also_in_train", settings.max_leaked * share_held_out, "no image held out is a training image too"),
        never("repeats", settings.max_duplicates, "no image is twice in a split"),
        never("looks_like_train", 0.0, "no image held out looks like a training image", "warning"),
        never("constant", settings.max_constant, "no image is of one level"),
    ]


def split_expectations(image_set: ImageSet, settings: "Contract") -> list[Any]:
    """Return the expectations of the table with one row per split.

    They include the number of images, since an empty table of images passes every row-wise check.
    """
    from great_expectations import expectations as gxe

    total = sum(image_set.description[f"num_{split}"] for split in present(image_set.description))
    return [
        gxe.ExpectColumnSumToBeBetween(
            column="num_images", min_value=total, max_value=total, **meaning("number of images")
        ),
        gxe.ExpectColumnValuesToBeBetween(column="num_images", min_value=1, **meaning("no empty split")),
        gxe.ExpectColumnValuesToBeInSet(
            column="more_than_published", value_set=[0], **meaning("as many images as were published")
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="labels_without_images", value_set=[0], **meaning("a label for every image, or none for any")
        ),
        never("jpeg", 0.0, "no image comes from a JPEG file, whose pixels are the decoder's", "warning"),
        gxe.ExpectColumnValuesToBeBetween(
            column="label_ratio",
            max_value=settings.max_label_ratio,
            **meaning("images of the most frequent label, per image of the least frequent", "warning"),
        ),
    ]


def histogram_expectations(image_set: ImageSet, settings: "Contract") -> list[Any]:
    """Return the expectations of the table with one row per split and level."""
    from great_expectations import expectations as gxe

    splits = present(image_set.description)
    num_pixels = sum(getattr(image_set, split).size for split in splits)
    return [
        gxe.ExpectTableRowCountToEqual(
            value=len(splits) * image_set.num_levels, **meaning("one row per split and level")
        ),
        gxe.ExpectColumnValuesToBeBetween(column="count", min_value=0, **meaning("counts of levels")),
        gxe.ExpectColumnSumToBeBetween(
            column="count", min_value=num_pixels, max_value=num_pixels, **meaning("every pixel has one of the levels")
        ),
        gxe.ExpectColumnMaxToBeBetween(
            column="level_in_use",
            min_value=(image_set.num_levels - 1) // 2 + 1,
            **meaning("levels of the upper half are used: the set has no fewer bits than stated"),
        ),
        never("gap", settings.max_gaps, "levels are not spread: almost empty between full ones"),
        never("peak", settings.max_peaks, "levels are not squeezed: much fuller than their neighbours"),
        never("skipped", settings.max_skipped, "levels are used: empty between the lowest and the highest"),
        never("unused", 0.0, "every level is used", "warning"),
    ]


def drift_expectations(settings: "Contract") -> list[Any]:
    """Return the expectation of the table with one row per statistic of the distance from the reference."""
    from great_expectations import expectations as gxe

    severity = "warning" if settings.on_drift == "warn" else "critical"
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column="distance",
            max_value=settings.max_drift,
            **meaning("distance of the pixels from the reference's", severity),
        )
    ]


def never(column: str, exceptions: float, text: str, severity: str = "critical") -> Any:
    """Expect the flag in `column` to be false for all rows but a share of `exceptions`."""
    from great_expectations import expectations as gxe

    # 1e-9 absorbs rounding: one row of seventy passes if the share is 1/70.
    return gxe.ExpectColumnValuesToBeInSet(
        column=column, value_set=[False], mostly=max(0.0, 1 - exceptions - 1e-9), **meaning(text, severity)
    )


def meaning(text: str, severity: str = "critical") -> dict[str, Any]:
    """Return the text of an expectation for the site and error messages, and its severity."""
    return {"meta": {"meaning": text}, "description": text, "severity": severity}
