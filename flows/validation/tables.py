"""The tables that are checked against the contract: images, splits, levels, differences."""

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flows.images.store import SPLITS, ImageSet, load_labels, present, read_file_names
from flows.validation.comb import Comb, comb
from flows.validation.contract import from_lossy_files
from flows.validation.duplicates import Lookalikes, leaked, repeats
from flows.validation.facts import Facts, num_redundant
from flows.validation.report import Difference
from flows.validation.space import jpeg_grid, lost_detail

if TYPE_CHECKING:
    from flows.core.params import Contract

ROWS = 100_000
LEAST = 1e-12
"""A limit of 0 counts as this, which rounding does not exceed, but one changed pixel of 10^11 does."""


def image_rows(
    image_set: ImageSet, facts: dict[str, Facts], alike: dict[tuple[str, str], Lookalikes]
) -> Iterator[pd.DataFrame]:
    """Yield tables with one row per image, at most `ROWS` rows each, so that memory stays bounded."""
    for split, known in facts.items():
        images, again = getattr(image_set, split), repeats(known.digest)
        in_earlier, looks_like_earlier = np.zeros((2, len(images)), dtype=bool)
        for (first, second), found in alike.items():
            if second == split:
                in_earlier |= leaked(facts[first].digest, known.digest)
                looks_like_earlier[found.image[: found.excess]] = True
        for first_row in range(0, len(images), ROWS):
            rows = slice(first_row, first_row + ROWS)
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
                    "in_earlier_split": in_earlier[rows],
                    "looks_like_earlier_split": looks_like_earlier[rows],
                }
            )


def split_rows(image_set: ImageSet, folder: Path, facts: dict[str, Facts]) -> pd.DataFrame:
    """Return one row per split: see `split_row`.  Redundant channels are those of the whole set."""
    rows = [split_row(image_set, folder, split, known) for split, known in facts.items()]
    return pd.DataFrame(rows).assign(redundant_channels=num_redundant(facts.values()))


def split_row(image_set: ImageSet, folder: Path, split: str, facts: Facts) -> dict[str, Any]:
    """Return the counts of one split (images, how many more than stated and published, labels) and its detail."""
    num_images, labels = len(getattr(image_set, split)), load_labels(folder, split)
    labelled = any(load_labels(folder, each) is not None for each in present(image_set.description))
    frequencies = [1]
    if labels is not None and len(labels) == num_images > 0:
        frequencies = np.unique(labels, return_counts=True)[1].tolist()
    return {
        "split": split,
        "num_images": num_images,
        "more_than_stated": num_images - image_set.description[f"num_{split}"],
        "more_than_published": num_images - published(image_set, split, num_images),
        "labels_without_images": (0 if labels is None else len(labels)) - num_images if labelled else 0,
        "jpeg": from_lossy_files(image_set),
        "label_ratio": max(frequencies) / min(frequencies),
        "lost_detail": round(lost_detail(facts.space), 4),
        "jpeg_grid": round(jpeg_grid(facts.space), 4),
    }


def published(image_set: ImageSet, split: str, num_images: int) -> int:
    """Return how many images of a split were published, or `num_images` if that is unknown.

    The validation images are part of the published training images.
    """
    count = image_set.description.get(f"published_{split}")
    if count is None:
        return num_images
    return int(count) - (len(image_set.validation) if split == "train" else 0)


def histogram_rows(facts: dict[str, Facts], settings: "Contract") -> pd.DataFrame:
    """Return one row per split and level: its pixels in the split, and the comb test's result.

    A level is flagged if the split or the whole set has more such levels than the contract allows.
    """
    whole = np.sum([known.histogram for known in facts.values()], axis=0)
    levels, of_whole = np.arange(len(whole)), broken(comb(whole), settings)
    parts = []
    for split, known in facts.items():
        teeth = broken(comb(known.histogram), settings)
        parts.append(
            pd.DataFrame(
                {
                    "split": split,
                    "level": levels,
                    "count": known.histogram,
                    "level_in_use": np.where(whole > 0, levels, 0),
                    "gap": teeth.gaps | of_whole.gaps,
                    "peak": teeth.peaks | of_whole.peaks,
                    "skipped": teeth.skipped | of_whole.skipped,
                    "unused": whole == 0,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def broken(teeth: Comb, settings: "Contract") -> Comb:
    """Return the levels that look wrong, or none of them if the contract allows that many."""
    limits = (settings.max_gaps, settings.max_peaks, settings.max_skipped)
    return Comb(*(flags & (flags.mean() > limit + 1e-9) for flags, limit in zip(teeth, limits, strict=True)))


def difference_rows(found: list[Difference]) -> pd.DataFrame:
    """Return one row per difference, with its distance as a multiple of its limit, the largest first."""
    rows = [
        {
            "splits": f"{entry.first}/{entry.second}",
            "statistic": entry.statistic,
            "times_the_limit": round(entry.distance / max(entry.limit, LEAST), 4),
        }
        for entry in found
    ]
    rows.sort(key=itemgetter("times_the_limit"), reverse=True)
    return pd.DataFrame(rows, columns=["splits", "statistic", "times_the_limit"])


def with_files(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the rows, those about images with the name of the file if the set was made of files."""
    named = [dict(row) for row in rows]
    for prefix in ("", "of_"):
        for split in SPLITS:
            wanted = [row for row in named if f"{prefix}image" in row and row[f"{prefix}split"] == split]
            names = read_file_names(folder, split, {row[f"{prefix}image"] for row in wanted})
            for row in wanted:
                if row[f"{prefix}image"] in names:
                    row[f"{prefix}file"] = names[row[f"{prefix}image"]]
    return named
