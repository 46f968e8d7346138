"""Read results in CSV files: a header, then rows of numbers."""

from collections.abc import Collection, Iterator
from io import BytesIO, TextIOWrapper
from itertools import chain
from pathlib import Path

import numpy as np

from flows.core.errors import Exit, UserError, brief
from flows.core.files import read_bounded

Columns = dict[str, np.ndarray]
"""Columns by name, (N,) float64 each; NaN where a value is not finite or beyond LARGEST."""

MOST_BYTES = 2**28
"""The largest table that is read: a million rows of the training log take 170 MB."""
LARGEST = 1e12
"""The largest absolute value of a number.  Larger ones, which only a broken model has, would overflow in a chart."""


def read_table(path: Path, names: Collection[str]) -> Columns:
    """Return all columns of a table, which must have those in `names` and at least one row.

    Raises UserError (exit 5) that names the file and what is wrong.
    """
    try:
        return parsed(TextIOWrapper(BytesIO(read_bounded(path, MOST_BYTES)), "utf-8"), names)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", Exit.MISSING) from error
    except ValueError as error:
        raise UserError(f"{path}: damaged: {brief(error)}", Exit.MISSING) from error


def parsed(lines: Iterator[str], names: Collection[str]) -> Columns:
    """Return the columns of a table in CSV.  Raises ValueError that says what is wrong.

    The lines are read one by one: a list of short ones would take twenty times as much memory as the file.
    """
    header = next(lines, "").rstrip("\n").split(",")
    rows = filter(str.strip, lines)
    if not (first := next(rows, "")):
        raise ValueError("no rows")
    if missing := [name for name in names if name not in header]:
        raise ValueError(f"no column {missing[0]}")
    numbers = np.loadtxt(chain([first], rows), delimiter=",", comments=None, ndmin=2)
    if numbers.shape[1] != len(header):
        raise ValueError(f"{numbers.shape[1]} columns under {len(header)} names")
    numbers[~(np.abs(numbers) <= LARGEST)] = np.nan
    return dict(zip(header, numbers.T, strict=True))


def integers(path: Path, table: Columns, name: str, size: int) -> list[int]:
    """Return a column of indices below `size`.  Raises UserError (exit 5) for another number."""
    found = table[name]
    wrong = found[~((found == np.floor(found)) & (found >= 0) & (found < size))]
    if len(wrong):
        raise UserError(f"{path}: damaged: there is no {name} {wrong[0]:g}", Exit.MISSING)
    return [int(value) for value in found]


def finite_rows(*columns: np.ndarray) -> list[np.ndarray]:
    """Return the rows of columns (N,) in which all values are finite."""
    kept = np.logical_and.reduce([np.isfinite(column) for column in columns])
    return [column[kept] for column in columns]
