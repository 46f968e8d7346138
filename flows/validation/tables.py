"""The tables that are checked against the contract: images, splits, levels, statistics of drift."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.images.store import SPLITS, ImageSet, load_labels, present, read_file_names
from flows.validation.comb import comb
from flows.validation.duplicates import leaked, lookalikes, repeats
from flows.validation.facts import Facts

if TYPE_CHECKING:
    import pandas as pd

ROWS = 100_000


def image_rows(image_set: ImageSet, facts: dict[str, Facts], distance: float) -> "Iterator[pd.DataFrame]":
    """Yield tables with one row per image, at most `ROWS` rows each, so that memory stays bounded."""
    import pandas as pd

    train, of_train = facts["train"], np.zeros(len(image_set.train), dtype=bool)
    for split, known in facts.items():
        images, again = getattr(image_set, split), repeats(known.digest)
        also_in_train = looks_like_train = of_train
        if split != "train":
            also_in_train = leaked(train.digest, known.digest)
            looks_like_train = lookalikes(
                image_set.train, images, train, known, num_levels=image_set.num_levels, distance=distance
            )
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
                    "also_in_train": also_in_train[rows],
                    "looks_like_train": looks_like_train[rows],
                }
            )


def split_rows(image_set: ImageSet, folder: Path) -> "pd.DataFrame":
    """Return one row per split: see `split_row`."""
    import pandas as pd

    return pd.DataFrame([split_row(image_set, folder, split) for split in present(image_set.description)])


def split_row(image_set: ImageSet, folder: Path, split: str) -> dict[str, Any]:
    """Return the counts of one split: images, how many more than were published, labels, JPEG files."""
    num_images, labels = len(getattr(image_set, split)), load_labels(folder, split)
    frequencies = [1]
    if labels is not None and len(labels) == num_images > 0:
        frequencies = np.unique(labels, return_counts=True)[1].tolist()
    return {
        "split": split,
        "num_images": num_images,
        "more_than_published": num_images - published(image_set, split, num_images),
        "labels_without_images": 0 if labels is None else len(labels) - num_images,
        "jpeg": "JPEG" in image_set.description.get("formats", ""),
        "label_ratio": max(frequencies) / min(frequencies),
    }


def published(image_set: ImageSet, split: str, num_images: int) -> int:
    """Return how many images of a split were published, and `num_images` if that is unknown.

    The validation images are part of the published training images.
    """
    count = image_set.description.get(f"published_{split}", num_images)
    drawn = len(image_set.validation) if split == "train" and f"published_{split}" in image_set.description else 0
    return int(count - drawn)


def histogram_rows(facts: dict[str, Facts]) -> "pd.DataFrame":
    """Return one row per split and level: its pixels in the split, and the comb test's result for the whole set."""
    import pandas as pd

    whole = np.sum([known.histogram for known in facts.values()], axis=0)
    levels, teeth = np.arange(len(whole)), comb(whole)
    table = {
        "level_in_use": np.where(whole > 0, levels, 0),
        "gap": teeth.gaps,
        "peak": teeth.peaks,
        "skipped": teeth.skipped,
        "unused": whole == 0,
    }
    parts = [
        pd.DataFrame({"split": split, "level": levels, "count": known.histogram, **table})
        for split, known in facts.items()
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
