"""What a check expects of the rows of its table, and the rule by which limits are applied.

A limit is what the contract allows at most, and there is one rule for all: what is larger by more than rounding is
beyond it.  `is_beyond` says so of shares of levels and of differences, `Limit.rule` tells Great Expectations to say it
of the values of rows and of shares of rows.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

# One row of seventy passes if the limit is a share of 1/70.
ROUNDING = 1e-9


class Rule(NamedTuple):
    """A type of expectation of Great Expectations, and its arguments."""

    expectation: str
    arguments: dict[str, Any]


class Limit(NamedTuple):
    """What a check allows at most."""

    most: float
    of: Literal["value", "rows", "levels"]
    """What it limits: the value of every row, the share of rows, or the share of levels in a split and in the set."""
    usual: float | None = None
    """That of presets/digits.yaml.  A limit above it is named as relaxed; None for what only warns."""

    @property
    def rule(self) -> Rule:
        """What is expected of the rows."""
        match self.of:
            case "value":
                return expect_between(None, self.most)
            case "rows":
                return expect_never(self.most)
            case "levels":
                return expect_never()


def is_beyond(value: np.ndarray | float, limit: float) -> np.ndarray:
    """Return whether values are larger than a limit allows."""
    return np.asarray(value > limit + ROUNDING)


def expect_value(value: Any) -> Rule:
    """Expect this value in every row."""
    return Rule("ExpectColumnValuesToBeInSet", {"value_set": [value]})


def expect_never(exceptions: float = 0.0) -> Rule:
    """Expect a flag to be false in all rows but a share of `exceptions`."""
    return Rule("ExpectColumnValuesToBeInSet", {"value_set": [False], "mostly": max(0.0, 1 - exceptions - ROUNDING)})


def expect_between(lowest: float | None, highest: float | None, of: str = "ColumnValues") -> Rule:
    """Expect the values of all rows, or another figure of the table, to be within the limits; None for no limit."""
    limits = {"min_value": lowest, "max_value": highest}
    return Rule(f"Expect{of}ToBeBetween", {key: limit for key, limit in limits.items() if limit is not None})
