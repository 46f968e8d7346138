"""Tables and arrays among the results of a model, which must be whole."""

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from flows.core.errors import FileError, brief
from flows.evaluation.results import BoundMetrics
from flows.images.image_set import ImageSet, load_array

LARGEST = 1e12
"""The largest absolute value of a number in a table.  Larger ones, which only a broken model has, count as missing."""


def read_table(path: Path, names: Collection[str]) -> pd.DataFrame:
    """Return a table of numbers in CSV, which must have the columns `names` and a row.

    Values that are not finite or beyond `LARGEST` are NaN.  Raises FileError (exit 5) that says what is wrong.
    """
    try:
        table = pd.read_csv(path, dtype=float, index_col=False, usecols=lambda name: name != "file")
    except (OSError, ValueError) as error:
        raise FileError(path, f"damaged: {brief(error)}") from error
    if missing := [name for name in names if name not in table]:
        raise FileError(path, f"damaged: no column {missing[0]}")
    if table.empty:
        raise FileError(path, "damaged: no rows")
    return table.where(table.abs() <= LARGEST)


def read_per_image(path: Path, metrics: BoundMetrics, images: ImageSet | None) -> pd.DataFrame:
    """Return the bits/dim of every image.  Raises FileError (exit 5) unless it has a row for each."""
    table = read_table(path, ("image", "bpd"))
    if len(table) != metrics.num_images:
        rows = f"{len(table)} rows, but the metrics are about {metrics.num_images} images"
        raise FileError(path, f"damaged: {rows}")
    size = len(images[metrics.split]) if images and metrics.split != "other" else math.inf
    require_indices(path, table["image"], size)
    return table


def read_neighbours(path: Path, samples: np.ndarray | None, images: ImageSet | None) -> pd.DataFrame:
    """Return the samples with their nearest training images.  Raises FileError (exit 5) for one that is not there."""
    table = read_table(path, ("sample", "train_image", "distance"))
    if samples is not None and images is not None:
        require_indices(path, table["sample"], len(samples))
        require_indices(path, table["train_image"], len(images["train"]))
    return table


def require_indices(path: Path, column: "pd.Series[float]", size: float) -> None:
    """Raise FileError (exit 5) unless all values are whole numbers from 0 and below `size`."""
    wrong = column[~(column.between(0, size, inclusive="left") & (column % 1 == 0))]
    if len(wrong):
        raise FileError(path, f"damaged: there is no {column.name} {wrong.iloc[0]:g}")


def read_samples(path: Path, images: ImageSet | None) -> np.ndarray:
    """Return the samples (N,C,H,W).  Raises FileError (exit 5) unless they are images like those of the set."""
    samples = load_array(path)
    expected = images.image_shape if images else samples.shape[1:]
    if samples.ndim != 4 or samples.shape[1:] != expected or not samples.size or samples.dtype.kind not in "ui":
        found = f"{samples.dtype} of shape {samples.shape}"
        raise FileError(path, f"damaged: {found}, not samples of images of shape {expected}")
    return samples
