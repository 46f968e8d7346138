"""Read results in CSV files: a header, then rows of numbers."""

import csv
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from flows.core.documents import shown
from flows.core.errors import Exit, UserError
from flows.core.files import read_bounded

Columns = dict[str, np.ndarray]
"""Columns by name, (N,) float64 each; NaN where a value is not finite."""

MOST = 1e12
"""The largest absolute value of a number, far above that of any result; larger ones would overflow in a chart."""


def read_table(path: Path, names: Collection[str]) -> Columns:
    """Return all columns of a table, which must have those in `names` and at least one row.

    Raises UserError (exit 5) that names the file and what is wrong.
    """
    try:
        header, *rows = csv.reader(read_bounded(path).decode().splitlines())
        if missing := [name for name in names if name not in header]:
            raise ValueError(f"no column {missing[0]}")
        if not rows:
            raise ValueError("no rows")
        numbers = np.array([row_of(line, row, header) for line, row in enumerate(rows, 2)])
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", Exit.MISSING) from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: damaged: {error}", Exit.MISSING) from error
    return dict(zip(header, numbers.T, strict=True))


def row_of(line: int, row: list[str], header: list[str]) -> list[float]:
    """Return the numbers in a row.  Raises ValueError that names the line."""
    if len(row) != len(header):
        raise ValueError(f"line {line} has {len(row)} values, the header {len(header)}")
    return [number(line, text) for text in row]


def number(line: int, text: str) -> float:
    """Return a number, NaN for infinity.  Raises ValueError that names the line."""
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"line {line}: {shown(repr(text))} is not a number") from error
    if not math.isfinite(value):
        return math.nan
    if abs(value) > MOST:
        raise ValueError(f"line {line}: {value:g} is larger than {MOST:g}")
    return value


def integers(path: Path, table: Columns, name: str, size: int) -> list[int]:
    """Return a column of indices below `size`.  Raises UserError (exit 5) for another number."""
    found = table[name]
    wrong = np.flatnonzero(~((found == np.floor(found)) & (found >= 0) & (found < size)))
    if len(wrong):
        raise UserError(f"{path}: damaged: line {wrong[0] + 2}: there is no {name} {found[wrong[0]]:g}", Exit.MISSING)
    return [int(value) for value in found]


def finite(*columns: np.ndarray) -> list[np.ndarray]:
    """Return the rows of columns (N,) in which all values are finite."""
    kept = np.logical_and.reduce([np.isfinite(column) for column in columns])
    return [column[kept] for column in columns]
