"""Check tables with Great Expectations, and write its site, the Data Docs."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from flows.validation.contract import LIMITS, Expected
from flows.validation.report import Result

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
    if column in (*LIMITS, "label_ratio") and not found["success"]:
        share = table[column].mean() if name == "images" else table.groupby("split")[column].mean().max()
        seen += f", which contract.max_{column}: {math.ceil(1000 * share) / 1000} would accept"
    return Result(
        table=name,
        expectation=config["type"],
        arguments={key: value for key, value in config["kwargs"].items() if key != "batch_id"},
        meaning=config["description"],
        severity=config["severity"],
        success=found["success"],
        observed=seen,
        rows=[{column: row[column] for column in index} for row in result.get("partial_unexpected_index_list") or []],
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
    return f"{found}, such as {', '.join(list(dict.fromkeys(map(str, values)))[:5])}"
