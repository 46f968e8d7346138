"""The tables that are checked against the contract: images, splits, levels, statistics of drift."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.images.store import SPLITS, ImageSet, load_labels, read_file_names
from flows.validation.comb import comb
from flows.validation.duplicates import leaked, lookalikes, repeats
from flows.validation.facts import Facts

if TYPE_CHECKING:
    import pandas as pd

ROWS = 100_000


def image_rows(image_set: ImageSet, facts: dict[str, Facts], distance: float) -> "Iterator[pd.DataFrame]":
    """Yield tables with one row per image, at most `ROWS` rows each, so that memory stays bounded."""
    import pandas as pd

    train, test = facts["train"], facts["test"]
    alike = lookalikes(image_set.train, image_set.test, train, test, num_levels=image_set.num_levels, distance=distance)
    of_train = np.zeros(len(train.mean), dtype=bool)
    also_in_train = {"train": of_train, "test": leaked(train.digest, test.digest)}
    looks_like_train = {"train": of_train, "test": alike}
    for split in SPLITS:
        images, known, again = getattr(image_set, split), facts[split], repeats(facts[split].digest)
        for first in range(0, len(images), ROWS):
            rows = slice(first, first + ROWS)
            yield pd.DataFrame(
                {
                    "split": split,
                    "image": np.arange(len(images))[rows],
                    "shape": "x".join(map(str, images.shape[1:])),
                    "dtype": str(images.dtype),
                    "num_nan": known.num_nan[rows],
                    "lowest": known.lowest[rows].astype(float),
                    "highest": known.highest[rows].astype(float),
                    "constant": (known.lowest == known.highest)[rows],
                    "repeats": again[rows],
                    "also_in_train": also_in_train[split][rows],
                    "looks_like_train": looks_like_train[split][rows],
                }
            )


def split_rows(image_set: ImageSet, folder: Path) -> "pd.DataFrame":
    """Return one row per split: see `split_row`."""
    import pandas as pd

    return pd.DataFrame([split_row(image_set, folder, split) for split in SPLITS])


def split_row(image_set: ImageSet, folder: Path, split: str) -> dict[str, Any]:
    """Return the counts of one split: images, how many more than were published, labels, JPEG files."""
    num_images, labels = len(getattr(image_set, split)), load_labels(folder, split)
    frequencies = [1]
    if labels is not None and len(labels) == num_images > 0:
        frequencies = np.unique(labels, return_counts=True)[1].tolist()
    return {
        "split": split,
        "num_images": num_images,
        "more_than_published": num_images - image_set.description.get(f"published_{split}", num_images),
        "labels_without_images": 0 if labels is None else len(labels) - num_images,
        "jpeg": "JPEG" in image_set.description.get("formats", ""),
        "label_ratio": max(frequencies) / min(frequencies),
    }


def histogram_rows(facts: dict[str, Facts]) -> "pd.DataFrame":
    """Return one row per split and level: its pixels in the split, and the comb test's result for the whole set."""
    import pandas as pd

    both = facts["train"].histogram + facts["test"].histogram
    levels, teeth = np.arange(len(both)), comb(both)
    table = {
        "level_in_use": np.where(both > 0, levels, 0),
        "gap": teeth.gaps,
        "peak": teeth.peaks,
        "skipped": teeth.skipped,
        "unused": both == 0,
    }
    parts = [
        pd.DataFrame({"split": split, "level": levels, "count": facts[split].histogram, **table}) for split in SPLITS
    ]
    return pd.concat(parts, ignore_index=True)


def drift_rows(distances: dict[str, float]) -> "pd.DataFrame":
    """Return one row per statistic."""
    import pandas as pd

    return pd.DataFrame({"statistic": list(distances), "distance": list(distances.values())})


def with_files(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the rows, those about images with the name of the file if the set was made of files."""
    named = [dict(row) for row in rows]
    for split in SPLITS:
        wanted = {row["image"]: row for row in named if "image" in row and row["split"] == split}
        for number, name in read_file_names(folder, split, wanted).items():
            wanted[number]["file"] = name
    return named
