"""The validation report, validation.json, as models."""

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field

from flows.core.documents import Document, Sha256

Level = Annotated[int, Field(ge=0, lt=2**63)]
# Means and deviations are those of float32 pixels: the difference of any two is finite in float64.
Statistic = Annotated[float, Field(ge=-3.5e38, le=3.5e38)]


class Profile(Document):
    """What `flows.validation.drift` compares of two image sets."""

    histogram: Annotated[list[Level], FailFast(), Field(min_length=1, max_length=2**16)]
    """Number of pixels by level."""
    mean: Annotated[list[Statistic], FailFast(), Field(max_length=2**16)]
    """Quantiles of the images' means; empty when no mean is finite."""
    deviation: Annotated[list[Statistic], FailFast(), Field(max_length=2**16)]
    """Quantiles of the images' standard deviations."""


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


class Validation(Document):
    """The verdict on an image set, which is all that training and the registry read of a report."""

    success: bool
    data_sha256: Sha256


class Reference(Document):
    """What a reference for drift must hold of a report."""

    profile: Profile


class Report(Validation):
    """The whole report, as it is written."""

    transforms: str
    expectations: list[Result]
    profile: Profile

    def failed(self, severity: Literal["warning", "critical"]) -> list[Result]:
        """Return the results of this severity that do not hold."""
        return [result for result in self.expectations if result.severity == severity and not result.success]
