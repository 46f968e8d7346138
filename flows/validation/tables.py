"""The tables that are checked against the contract: images, splits, levels, differences."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flows.images.store import SPLITS, ImageSet, read_file_names
from flows.validation.comb import Comb, comb, unjudged
from flows.validation.contract import from_lossy_files
from flows.validation.duplicates import Pairs, repeats
from flows.validation.facts import Facts, num_redundant
from flows.validation.report import Difference

if TYPE_CHECKING:
    from flows.core.params import Contract


def image_rows(image_set: ImageSet, facts: dict[str, Facts], alike: Pairs) -> pd.DataFrame:
    """Return one row per image; `leaked` says nothing of training images."""
    parts, earlier = [], np.zeros(0, dtype=np.uint64)
    for split, known in facts.items():
        images = getattr(image_set, split)
        similar = [pairs["image"][pairs["excess"]] for (_, second), pairs in alike.items() if second == split]
        columns = {
            "split": split,
            "image": np.arange(len(images)),
            "shape": "x".join(map(str, images.shape[1:])),
            "dtype": str(images.dtype),
            "num_nan": known.num_nan,
            "lowest": known.lowest,
            "highest": known.highest,
            "constant": known.lowest == known.highest,
            "duplicates": repeats(known.digest),
            "leaked": np.isin(known.digest, earlier) if split != "train" else None,
            "looks_like_earlier_split": np.isin(np.arange(len(images)), np.concatenate([[], *similar])),
        }
        parts.append(pd.DataFrame(columns))
        earlier = np.concatenate([earlier, known.digest])
    return pd.concat(parts, ignore_index=True)


def split_rows(image_set: ImageSet, facts: dict[str, Facts], labels: dict[str, np.ndarray | None]) -> pd.DataFrame:
    """Return one row per split: its numbers of images and labels, and its detail.

    `more_than_stated` and `more_than_published` count images, `labels_without_images` labels, and `redundant_channels`
    the channels of the whole set that hold nothing new.  A negative number says how many are missing.
    """
    about, rows = image_set.description, []
    labelled = any(each is not None for each in labels.values())
    for split, known in facts.items():
        count, of_split = len(known.digest), labels[split]
        num_labels = 0 if of_split is None else len(of_split)
        frequencies = pd.Series(of_split).value_counts()
        # The validation images are part of the published training images.
        with_validation = count + (len(image_set.validation) if split == "train" else 0)
        rows.append(
            {
                "split": split,
                "num_images": count,
                "more_than_stated": count - about[f"num_{split}"],
                "more_than_published": with_validation - about.get(f"published_{split}", with_validation),
                "labels_without_images": num_labels - count if labelled else 0,
                "redundant_channels": num_redundant(facts.values()),
                "lossy_files": from_lossy_files(image_set),
                "label_ratio": frequencies.max() / frequencies.min() if num_labels else 1.0,
                "lost_detail": known.lost_detail,
                "jpeg_grid": known.jpeg_grid,
            }
        )
    return pd.DataFrame(rows)


def histogram_rows(facts: dict[str, Facts], settings: "Contract") -> tuple[pd.DataFrame, list[str]]:
    """Return one row per split and level: its pixels in the split, and the comb test's result; and what is not judged.

    A level is flagged if the split or the whole set has more such levels than the contract allows.
    """
    whole = np.sum([known.histogram for known in facts.values()], axis=0)
    textured = np.sum([known.textured for known in facts.values()], axis=0)
    levels, of_whole, parts = np.arange(len(whole)), broken(comb(whole, textured), settings), []
    ignored = unjudged(whole, textured)
    for split, known in facts.items():
        teeth = broken(comb(known.histogram, known.textured), settings)
        columns = {
            "split": split,
            "level": levels,
            "count": known.histogram,
            "level_in_use": np.where(whole > 0, levels, 0),
            "gaps": teeth.gaps | of_whole.gaps,
            "peaks": teeth.peaks | of_whole.peaks,
            "skipped": teeth.skipped | of_whole.skipped,
            "unused": whole == 0,
        }
        parts.append(pd.DataFrame(columns | dict.fromkeys(ignored, False)))
    return pd.concat(parts, ignore_index=True), ignored


def broken(teeth: Comb, settings: "Contract") -> Comb:
    """Return the levels that look wrong, or none of them if the contract allows that many."""
    limits = (settings.max_gaps, settings.max_peaks, settings.max_skipped)
    return Comb(*(flags & (flags.mean() > limit + 1e-9) for flags, limit in zip(teeth, limits, strict=True)))


def difference_rows(found: list[Difference]) -> pd.DataFrame:
    """Return one row per difference, in words, those that are reported first."""
    rows = [
        {
            "splits": f"{entry.first}/{entry.second}",
            "statistic": entry.statistic,
            "difference": f"by {entry.distance:.3g} {entry.unit}",
            "reported": entry.reported,
        }
        for entry in sorted(found, key=lambda entry: not entry.reported)
    ]
    return pd.DataFrame(rows, columns=["splits", "statistic", "difference", "reported"])


def with_files(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the rows, those about images with the name of the file if the set was made of files."""
    named = [dict(row) for row in rows]
    for prefix, split in product(("", "of_"), SPLITS):
        wanted = [row for row in named if f"{prefix}image" in row and row[f"{prefix}split"] == split]
        names = read_file_names(folder, split, {row[f"{prefix}image"] for row in wanted})
        for row in wanted:
            if row[f"{prefix}image"] in names:
                row[f"{prefix}file"] = names[row[f"{prefix}image"]]
    return named
