"""Check tables with Great Expectations.  The results and the Data Docs site contain no times and no random ids."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from flows.core.files import write_whole
from flows.validation.report import Result

MOST_SHOWN = 20
RUN_TIME = datetime(2000, 1, 1, tzinfo=UTC)
"""The time of the first run, not the clock's.  Each run is a second later, since the index is sorted by time."""


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
        self.run_time = RUN_TIME

    def check(
        self, name: str, tables: Iterable[pd.DataFrame], expectations: list[Any], index: list[str], unit: str
    ) -> None:
        """Check tables of the same columns against the expectations.

        Each table gets a page in the site, and the results are those of all tables together.  `index` names the columns
        that identify a row, and `unit` what the rows are, such as images.
        """
        import great_expectations as gx

        asset = self.source.add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("whole")
        suite = self.context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
        entries = []
        for number, table in enumerate(tables):
            title = name if number == 0 else f"{name} {number + 1}"
            definition = gx.ValidationDefinition(name=title, data=batch, suite=suite)
            entries.append(self.run(definition, table, index))
        self.results += [canonical(name, index, unit, list(parts)) for parts in zip(*entries, strict=True)]

    def run(self, definition: Any, table: pd.DataFrame, index: list[str]) -> list[dict[str, Any]]:
        """Check one table and return the library's results, with the first rows that break each expectation."""
        from great_expectations.core.run_identifier import RunIdentifier

        wanted = {
            "result_format": "SUMMARY",
            "partial_unexpected_count": MOST_SHOWN,
            "unexpected_index_column_names": index,
        }
        self.run_time += timedelta(seconds=1)
        run_id = RunIdentifier(run_name="validate", run_time=self.run_time)
        result = definition.run(batch_parameters={"dataframe": table}, result_format=wanted, run_id=run_id)
        return list(result.to_json_dict()["results"])

    def build_site(self, folder: Path) -> None:
        """Write the site of all results into a folder."""
        place = str(folder.absolute()).replace("$", r"\$")  # Great Expectations would fill in variables
        backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": place}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        site = {"class_name": "SiteBuilder", "site_index_builder": index, "store_backend": backend}
        self.context.add_data_docs_site("site", site)
        self.context.build_data_docs()
        for page in sorted(folder.rglob("*.html")):
            write_whole(page, canonical_page(page.read_text(encoding="utf-8")))


def canonical_page(page: str) -> str:
    """Return a page of the site without the time of its build, times in the local zone and random ids of elements."""
    page = re.sub(r"\?d=\d{8}T\d{6}\.\d{6}Z", "", page)
    page = re.sub(rf"(?!{RUN_TIME:%Y%m%d})\d{{8}}T\d{{6}}\.\d{{6}}Z", "not recorded", page)
    page = re.sub(r"(?:1999-12-31|2000-01-01)[T ]\d\d:\d\d:\d\d(?:Z| [+\w-]+)", "not recorded", page)
    uuid = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
    numbers = {found: str(number) for number, found in enumerate(dict.fromkeys(uuid.findall(page)))}
    return uuid.sub(lambda match: numbers[match[0]], page)


def canonical(table: str, index: list[str], unit: str, parts: list[dict[str, Any]]) -> Result:
    """Return the result of one expectation over all tables, without times, ids or paths."""
    for part in parts:
        # If a metric fails, the library gives the exceptions by metric, without this key.
        if part["exception_info"].get("raised_exception", True):
            raise RuntimeError(f"{part['expectation_config']['type']} failed: {part['exception_info']}")
    config, results = parts[0]["expectation_config"], [part["result"] for part in parts]
    rows = [row for result in results for row in result.get("partial_unexpected_index_list") or []]
    return Result(
        table=table,
        expectation=config["type"],
        arguments={key: value for key, value in config["kwargs"].items() if key != "batch_id"},
        meaning=config["meta"]["meaning"],
        severity=config.get("severity", "critical"),
        success=holds(parts, allowed=1 - config["kwargs"].get("mostly", 1.0)),
        observed=observed(results, unit),
        rows=[{column: row[column] for column in index} for row in rows[:MOST_SHOWN]],
    )


def holds(parts: list[dict[str, Any]], allowed: float) -> bool:
    """Whether an expectation holds over all tables, for all rows but a share of `allowed`."""
    results = [part["result"] for part in parts]
    if len(parts) > 1 and "unexpected_count" in results[0]:
        return total(results, "unexpected_count") <= allowed * total(results, "element_count")
    return all(part["success"] for part in parts)


def observed(results: list[dict[str, Any]], unit: str) -> Any:
    """Return the observed value, or how many rows break the expectation, with examples.  `unit` says what a row is."""
    if results[0].get("observed_value") is not None:
        return results[0]["observed_value"]
    if not total(results, "unexpected_count"):
        return "as expected"
    values = [value for result in results for value in result["partial_unexpected_list"]]
    found = f"{total(results, 'unexpected_count')} of {total(results, 'element_count')} {unit}"
    if all(value is True for value in values):  # a flag needs no example
        return found
    examples = list(dict.fromkeys(map(str, values)))[:5]
    return f"{found}, such as {', '.join(examples)}"


def total(results: list[dict[str, Any]], key: str) -> int:
    """Return the sum of a count over all tables."""
    return int(sum(result.get(key) or 0 for result in results))
