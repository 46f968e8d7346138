"""The models of the report validation.json, and the check that the report found an image set valid."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from flows.core.documents import Document, Sha256, read
from flows.core.errors import Exit, UserError
from flows.images.store import data_sha256, load_images, require_levels

REPORT = "validation.json"


class Profile(Document):
    """What `flows.validation.drift` compares of two image sets."""

    num_images: int
    image_shape: list[int]
    """Channels, height and width."""
    histogram: list[int]
    """Number of pixels by level."""
    height: list[float]
    """How much fuller each level is than its neighbours."""
    height_error: list[float]
    """Its standard error; -1 where the height says nothing."""
    statistics: dict[str, list[float]]
    """Quantiles of `flows.validation.facts.statistics`, by name."""
    labels: dict[str, int]
    """Number of images by label."""
    label_agreement: list[int]
    """How many images have the label of the image most similar to them, and how many do not."""


class Result(Document):
    """The result of one expectation."""

    table: str
    expectation: str
    """Its type in Great Expectations."""
    arguments: dict[str, Any]
    meaning: str
    severity: Literal["warning", "critical"]
    success: bool
    observed: Any
    """The observed value, or how many rows break the expectation."""
    rows: list[dict[str, Any]]
    """The first rows that break it."""


class Alike(Document):
    """The images of a split that look like one of an earlier split."""

    first: str
    second: str
    found: int
    """How many are within `near_duplicate_distance`."""
    excess: int
    """How many of the closest ones chance does not explain."""
    pairs: list[dict[str, Any]]
    """The closest ones, with how many would be as close by chance."""


class Difference(Document):
    """The difference of two splits, or of the training images and a reference, in one statistic."""

    first: str
    second: str
    statistic: str
    distance: float
    limit: float
    """The distance that the contract allows."""
    by_chance: float
    """The probability that sets that were drawn alike differ as much; 0 where the limit allows for chance."""
    unit: str
    """The unit of the distance, in words."""
    reported: bool
    """Whether the distance is beyond both the limit and chance."""


class Validation(Document):
    """The verdict on an image set: the part of a report that training and the registry read."""

    success: bool
    data_sha256: Sha256
    relaxed: list[str] = Field(default=[])
    """The limits that are above the usual ones, such as "max_gaps 1.0 instead of 0.015"."""

    @property
    def verdict(self) -> str:
        """Whether the images are valid, and by which relaxed limits, in words."""
        limits = f" with relaxed limits: {', '.join(self.relaxed)}" if self.relaxed else ""
        return f"valid{limits}" if self.success else "not valid"


class Reference(Document):
    """The part of a report that a reference for drift needs."""

    profile: Profile


class Report(Validation):
    """The whole report, as it is written."""

    transforms: str
    expectations: list[Result]
    profile: Profile
    alike: list[Alike]
    differences: list[Difference]

    def failed(self, severity: Literal["warning", "critical"]) -> list[Result]:
        """Return the results of this severity that do not hold."""
        return [result for result in self.expectations if result.severity == severity and not result.success]


def require_validated(images: Path, report: Path, *, needs_validation_images: bool) -> None:
    """Raise UserError (exit 4) unless the validation report says that exactly these bytes are valid.

    Raises UserError (exit 5) if there is no readable report, and (exit 2) if validation images are needed and there are
    none.
    """
    written = read(Validation, report, "run `vdmctl validate`")
    if not written.success:
        raise UserError(f"{report} says that {images} is not valid; run `vdmctl validate`", Exit.INVALID_DATA)
    actual = data_sha256(images)
    if written.data_sha256 != actual:
        reason = f"{report} is about data {written.data_sha256}, but {images} is {actual}"
        raise UserError(f"{reason}; run `vdmctl validate`", Exit.INVALID_DATA)
    image_set = load_images(images)
    if needs_validation_images and not len(image_set.validation):
        settings = "train.images: train, train.validate_every_steps: null, train.patience: null and train.keep: last"
        advice = f"set data.validation_fraction and run `dvc repro`, or train without them by {settings}"
        raise UserError(f"{images} has no validation images; {advice}", Exit.USAGE)
    for split in ("train", "validation") if needs_validation_images else ("train",):
        require_levels(image_set, images, split)
