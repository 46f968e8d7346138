"""Check images, splits, levels and differences against the contract: the tables, and Great Expectations."""

import logging
import math
import shutil
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flows.contract.duplicates import Pairs, repeats
from flows.contract.expected import LIMITS, Expected, from_lossy_files
from flows.contract.facts import Facts, num_redundant
from flows.contract.findings import Difference, Result
from flows.contract.traces import Comb, comb, unjudged
from flows.images.depth import shift_of
from flows.images.image_set import SPLITS, ImageSet
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Contract


def image_rows(image_set: ImageSet, facts: dict[Split, Facts], alike: Pairs) -> pd.DataFrame:
    """Return one row per image; `leaked` says nothing of training images."""
    parts, earlier = [], np.zeros(0, dtype=np.uint64)
    for split, known in facts.items():
        images = image_set[split]
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


def split_rows(image_set: ImageSet, facts: dict[Split, Facts], labels: dict[Split, np.ndarray | None]) -> pd.DataFrame:
    """Return one row per split: its numbers of images and labels, and its detail.

    `more_than_stated` and `more_than_published` count images, `labels_without_images` labels, and `redundant_channels`
    the channels of the whole set that hold nothing new, `empty_low_bits` the lowest bits that are 0 in all its levels.
    A negative number says how many are missing.
    """
    about, rows = image_set.description, []
    empty_low_bits = shift_of(np.flatnonzero(np.sum([known.histogram for known in facts.values()], axis=0)))
    labelled = any(each is not None for each in labels.values())
    for split, known in facts.items():
        count, of_split = len(known.digest), labels[split]
        num_labels = 0 if of_split is None else len(of_split)
        frequencies = pd.Series(of_split).value_counts()
        # The validation images are part of the published training images.
        with_validation = count + (len(image_set["validation"]) if split == "train" else 0)
        rows.append(
            {
                "split": split,
                "num_images": count,
                "more_than_stated": count - getattr(about, f"num_{split}"),
                "more_than_published": with_validation - (getattr(about, f"published_{split}") or with_validation),
                "labels_without_images": num_labels - count if labelled else 0,
                "redundant_channels": num_redundant(facts.values()),
                "lossy_files": from_lossy_files(image_set),
                "label_ratio": frequencies.max() / frequencies.min() if num_labels else 1.0,
                "empty_low_bits": empty_low_bits,
                "lost_detail": known.lost_detail,
                "jpeg_grid": known.jpeg_grid,
            }
        )
    return pd.DataFrame(rows)


def histogram_rows(facts: dict[Split, Facts], settings: "Contract") -> tuple[pd.DataFrame, list[str]]:
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
            "unused": (whole == 0) & (len(whole) <= 256),
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


def with_files(rows: list[dict[str, Any]], images: ImageSet) -> list[dict[str, Any]]:
    """Return the rows, those about images with the name of the file if the set was made of files."""
    named = [dict(row) for row in rows]
    for prefix, split in product(("", "of_"), SPLITS):
        wanted = [row for row in named if f"{prefix}image" in row and row[f"{prefix}split"] == split]
        names = images.file_names(split, {row[f"{prefix}image"] for row in wanted})
        for row in wanted:
            if row[f"{prefix}image"] in names:
                row[f"{prefix}file"] = names[row[f"{prefix}image"]]
    return named


MOST_SHOWN = 20


class Checker:
    """Run one suite after the other and collect their `results`."""

    def __init__(self) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        self.context = gx.get_context(
            mode="ephemeral",
            project_config=DataContextConfig(
                store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
                data_docs_sites={},
                progress_bars=ProgressBarsConfig(globally=False),
                analytics_enabled=False,
            ),
        )
        self.source = self.context.data_sources.add_pandas("pandas")
        self.results: list[Result] = []

    def check(self, name: str, table: pd.DataFrame, expected: list[Expected], index: list[str], unit: str) -> None:
        """Check a table; `index` names the columns that identify a row, and `unit` says what a row is."""
        import great_expectations as gx

        suite = gx.ExpectationSuite(name=name, expectations=[expectation(each) for each in expected])
        batch = self.source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=self.context.suites.add(suite))
        wanted = {
            "result_format": "SUMMARY",
            "partial_unexpected_count": MOST_SHOWN,
            "unexpected_index_column_names": index,
        }
        found = definition.run(batch_parameters={"dataframe": table}, result_format=wanted)
        self.results += [canonical(name, index, unit, each, table) for each in found.to_json_dict()["results"]]

    def build_site(self, folder: Path) -> None:
        """Write the site of all results into a folder, without the results of an earlier site.  Raises OSError."""
        logging.getLogger("great_expectations").setLevel(logging.CRITICAL)  # pages of text on a full disk
        shutil.rmtree(folder / "validations", ignore_errors=True)
        backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        site = {"class_name": "SiteBuilder", "site_index_builder": index, "store_backend": backend}
        self.context.add_data_docs_site("site", site)
        try:
            self.context.build_data_docs()
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error


def expectation(row: Expected) -> Any:
    """Return a row of the contract as an expectation of Great Expectations."""
    from great_expectations import expectations

    column = {} if row.column is None else {"column": row.column}
    about = {"description": row.meaning, "notes": row.reason, "severity": row.level}
    return getattr(expectations, row.rule.expectation)(**column, **row.rule.arguments, **about)


def canonical(name: str, index: list[str], unit: str, found: dict[str, Any], table: pd.DataFrame) -> Result:
    """Return the result of one expectation without times, ids or paths.  Raises RuntimeError if it was not checked."""
    config, result = found["expectation_config"], found["result"]
    # If a metric fails, the library gives the exceptions by metric, without this key.
    if found["exception_info"].get("raised_exception", True):
        raise RuntimeError(f"{config['type']} failed: {found['exception_info']}")
    seen, column = observed(result, unit), config["kwargs"].get("column")
    accepted: dict[str, float] = {}
    if column in (*LIMITS, "label_ratio") and not found["success"]:
        share = table[column].mean() if name == "images" else table.groupby("split")[column].mean().max()
        accepted["accepted_by"] = math.ceil(1000 * share) / 1000
        seen += f", which contract.max_{column}: {accepted['accepted_by']} would accept"
    return Result(
        table=name,
        expectation=config["type"],
        arguments={key: value for key, value in config["kwargs"].items() if key != "batch_id"},
        meaning=config["description"],
        severity=config["severity"],
        success=found["success"],
        observed=seen,
        rows=[{column: row[column] for column in index} for row in result.get("partial_unexpected_index_list") or []],
        **accepted,
    )


def observed(result: dict[str, Any], unit: str) -> Any:
    """Return the observed value, or how many rows break the expectation, with examples.  `unit` says what a row is."""
    if result.get("observed_value") is not None:
        return result["observed_value"]
    if not result.get("unexpected_count"):
        return "as expected"
    found = f"{result['unexpected_count']} of {result['element_count']} {unit}"
    values = result["partial_unexpected_list"]
    if all(value is True for value in values):  # a flag needs no example
        return found
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return f"{found}, such as {', '.join(list(dict.fromkeys(texts))[:5])}"
