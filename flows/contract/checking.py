"""Check an image set against the contract: tables of what was measured, which Great Expectations judges."""

import logging
import math
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flows.contract.checks import Check, Measurements
from flows.contract.drift import REFERENCE
from flows.contract.findings import Difference, Result
from flows.contract.limits import Limit, is_beyond
from flows.images.image_set import SPLITS, ImageSet


class Table(NamedTuple):
    """The rows that some checks are about; `keys` names the columns that identify a row."""

    name: str
    rows: pd.DataFrame
    keys: list[str]
    unit: str
    """What a row is, in the plural."""


def fill_tables(known: Measurements, checks: list[Check]) -> Iterator[Table]:
    """Yield the tables of what the checks measure; those of differences only if there are some."""
    of_splits = ("images", "image", "images"), ("splits", "", "splits"), ("histogram", "level", "levels")
    for name, number, unit in of_splits:
        parts = []
        for split, facts in known.facts.items():
            count = {"images": len(facts.digest), "splits": 1, "histogram": len(facts.histogram)}[name]
            columns = {"split": split, **({number: np.arange(count)} if number else {})}
            for check in checks:
                if check.table == name and check.column and check.measure:
                    columns[check.column] = apply_limit(check, check.measure(known, split))
            parts.append(pd.DataFrame(columns, index=range(count)))
        yield Table(name, pd.concat(parts, ignore_index=True), ["split", number] if number else ["split"], unit)
    for name, of_reference in (("differences", False), ("drift", True)):
        if some := [each for each in known.differences if (each.first == REFERENCE) == of_reference]:
            yield Table(name, difference_rows(some), ["splits", "statistic", "difference"], "statistics")


def apply_limit(check: Check, values: Any) -> Any:
    """Return what Great Expectations is to judge: the values, or whether shares of levels are beyond the limit."""
    limit = check.expects
    return is_beyond(values, limit.most) if isinstance(limit, Limit) and limit.of == "levels" else values


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


def name_files(rows: list[dict[str, Any]], images: ImageSet) -> list[dict[str, Any]]:
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

    def judge(self, table: Table, checks: list[Check]) -> None:
        """Judge what those of the checks that are about this table measured."""
        import great_expectations as gx

        by_column = {check.column: check for check in checks if check.table == table.name}
        suite = gx.ExpectationSuite(name=table.name, expectations=[as_expectation(each) for each in by_column.values()])
        batch = self.source.add_dataframe_asset(table.name).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=table.name, data=batch, suite=self.context.suites.add(suite))
        form = {
            "result_format": "SUMMARY",
            "partial_unexpected_count": MOST_SHOWN,
            "unexpected_index_column_names": table.keys,
        }
        judged = definition.run(batch_parameters={"dataframe": table.rows}, result_format=form)
        for each in judged.to_json_dict()["results"]:
            check = by_column[each["expectation_config"]["kwargs"].get("column")]
            self.results.append(as_result(check, each, table))

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


def as_expectation(check: Check) -> Any:
    """Return a check as an expectation of Great Expectations."""
    from great_expectations import expectations

    column = {} if check.column is None else {"column": check.column}
    about = {"description": check.meaning, "notes": check.reason, "severity": check.severity}
    return getattr(expectations, check.rule.expectation)(**column, **check.rule.arguments, **about)


def as_result(check: Check, judged: dict[str, Any], table: Table) -> Result:
    """Return what Great Expectations says of a check, without times, ids or paths.

    Raises RuntimeError if it was not checked.
    """
    config, result = judged["expectation_config"], judged["result"]
    # If a metric fails, the library gives the exceptions by metric, without this key.
    if judged["exception_info"].get("raised_exception", True):
        raise RuntimeError(f"{config['type']} failed: {judged['exception_info']}")
    observed = summarize(result, table.unit)
    accepted: dict[str, float] = {}
    if isinstance(check.expects, Limit) and not judged["success"]:
        accepted["accepted_by"] = limit = accepting_limit(check, table.rows)
        observed += f", which contract.max_{check.column}: {limit} would accept"
    rows = result.get("partial_unexpected_index_list") or []
    return Result(
        table=table.name,
        expectation=config["type"],
        arguments={key: value for key, value in config["kwargs"].items() if key != "batch_id"},
        meaning=check.meaning,
        severity=check.severity,
        success=judged["success"],
        observed=observed,
        rows=[{column: row[column] for column in table.keys} for row in rows],
        is_judged=check.is_judged,
        **accepted,
    )


def accepting_limit(check: Check, rows: pd.DataFrame) -> float:
    """Return a limit with which these rows would pass, in thousandths."""
    column = rows[check.column]
    of_rows = isinstance(check.expects, Limit) and check.expects.of == "rows"
    needed = float(column.mean() if of_rows else column.groupby(rows["split"]).mean().max())
    return math.ceil(1000 * needed) / 1000


def summarize(result: dict[str, Any], unit: str) -> Any:
    """Return the observed value, or how many rows break the expectation, with examples.  `unit` says what a row is."""
    if result.get("observed_value") is not None:
        return result["observed_value"]
    if not result.get("unexpected_count"):
        return "as expected"
    count = f"{result['unexpected_count']} of {result['element_count']} {unit}"
    values = result["partial_unexpected_list"]
    if all(value is True for value in values):  # a flag needs no example
        return count
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return f"{count}, such as {', '.join(list(dict.fromkeys(texts))[:5])}"
