"""What the contract found: the document findings.json, and the check that it found an image set valid."""

import json
from typing import Any, Literal

from pydantic import Field

from flows.core import layout
from flows.core.documents import Document, Sha256
from flows.core.errors import Exit, UserError
from flows.images.image_set import ImageSet

FINDINGS = "findings.json"
"""The name of the document, which begins with that of its stage."""


Severity = Literal["warning", "critical"]


class Profile(Document):
    """What `flows.contract.drift` compares of two image sets."""

    num_images: int
    image_shape: list[int]
    """Channels, height and width."""
    histogram: list[int]
    """Number of pixels by level; above 1,024 levels, of some neighbouring ones together."""
    levels_each: int = 1
    """How many levels are counted together."""
    height: list[float]
    """How much fuller each level is than its neighbours."""
    height_error: list[float]
    """Its standard error; -1 where the height says nothing."""
    statistics: dict[str, list[float]]
    """Quantiles of `flows.contract.facts.image_statistics`, by name."""
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
    severity: Severity
    success: bool
    observed: Any
    """The observed value, or how many rows break the expectation."""
    rows: list[dict[str, Any]]
    """The first rows that break it."""
    accepted_by: float | None = None
    """The limit in `contract:`, that of the column with `max_` before it, that would accept what was observed."""

    is_judged: bool = Field(default=True, exclude=True)
    """Whether it says something of these images.  It is in no file: there, the meaning says why it does not."""

    @property
    def column(self) -> str | None:
        """The column of the table that it is about; None for the table as a whole."""
        return self.arguments.get("column")

    @property
    def words(self) -> str:
        """The meaning of an expectation that fails, what was observed, and the first rows that break it."""
        rows = f" ({', '.join(map(row_in_words, self.rows[:3]))})" if self.rows else ""
        return f"broken expectation: {self.meaning}: {self.observed}{rows}"


def row_in_words(row: dict[str, Any]) -> str:
    """Return the values of a row, such as `test 5 "cat/1.png"`: the name of a file is in quotes."""
    return " ".join(
        json.dumps(value, ensure_ascii=False) if key == "file" else str(value) for key, value in row.items()
    )


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
    searched: int | None = None
    """How many images of the second split were searched for, if these are a sample.  `found` and `excess` are of it."""


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


class Verdict(Document):
    """The verdict on an image set: the part of the findings that training and the registry read."""

    success: bool
    data_sha256: Sha256
    relaxed: list[str] = Field(default=[])
    """The limits that are above the usual ones, such as "max_gaps 1.0 instead of 0.015"."""

    @property
    def words(self) -> str:
        """Whether the images are valid, and by which relaxed limits, in words."""
        limits = f" with relaxed limits: {', '.join(self.relaxed)}" if self.relaxed else ""
        return f"valid{limits}" if self.success else "not valid"


class Reference(Document):
    """The part of the findings that a reference for drift needs."""

    profile: Profile


class Findings(Verdict):
    """All findings, as they are written."""

    transforms: str
    expectations: list[Result]
    profile: Profile
    alike: list[Alike]
    differences: list[Difference]

    def failed(self, severity: Severity) -> list[Result]:
        """Return the results of this severity that do not hold."""
        return [result for result in self.expectations if result.severity == severity and not result.success]


def require_valid(images: ImageSet, verdict: Verdict, *, needs_validation_images: bool) -> None:
    """Raise UserError (exit 4) unless the verdict says that exactly these bytes are valid.

    Raises UserError (exit 2) if validation images are needed and there are none.
    """
    said = str(layout.FINDINGS)
    if not verdict.success:
        raise UserError(f"{said} says that {images.name} is not valid; run `vdmctl validate`", Exit.INVALID_DATA)
    if verdict.data_sha256 != images.data_sha256:
        reason = f"{said} is about data {verdict.data_sha256}, but {images.name} is {images.data_sha256}"
        raise UserError(f"{reason}; run `vdmctl validate`", Exit.INVALID_DATA)
    if needs_validation_images and not len(images["validation"]):
        settings = "train.images: train, train.validate_every_steps: null, train.patience: null and train.keep: last"
        advice = f"set data.validation_fraction and run `dvc repro`, or train without them by {settings}"
        raise UserError(f"{images.name} has no validation images; {advice}", Exit.USAGE)
