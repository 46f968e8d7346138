"""Check an image set against the discretization contract, and write the report, its picture and its site."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.files import write_whole
from flows.images.store import ImageSet, data_sha256, load_images, load_labels, present
from flows.validation.contract import UNJUDGED, contract, relaxed
from flows.validation.drift import REFERENCE, agreement, differences, profile, read_reference
from flows.validation.duplicates import lookalikes, search
from flows.validation.expectations import Checker
from flows.validation.facts import measure
from flows.validation.picture import draw
from flows.validation.report import REPORT, Alike, Report, Result
from flows.validation.tables import difference_rows, histogram_rows, image_rows, split_rows, with_files

if TYPE_CHECKING:
    from flows.core.params import Contract

log = logging.getLogger(__name__)

# In the folder of a report.
DATA_DOCS, PICTURE = "data_docs", "validation.png"
MOST_PAIRS = 500


class Inspection(NamedTuple):
    """A report, and the data for its picture and its site."""

    report: Report
    image_set: ImageSet
    histograms: dict[str, np.ndarray]
    checker: Checker


def inspect_images(settings: "Contract", *, images: Path, reference: Path | None) -> Inspection:
    """Check the image set in the folder `images`.

    `reference` is a validation.json or an image set from which the pixels should not have drifted.  Raises
    UserError (exit 5) for unreadable images, and for an unreadable reference.
    """
    image_set = load_images(images)
    expected = read_reference(reference) if reference else None
    splits = present(image_set.description)
    facts = {split: measure(getattr(image_set, split), image_set.num_levels) for split in splits}
    labels = {split: load_labels(images, split) for split in splits}
    found = search(image_set, facts)
    alike = lookalikes(found, settings.near_duplicate_distance)
    agreements = {pair: agreement(pairs, labels[pair[0]], labels[pair[1]]) for pair, pairs in found.items()}
    profiles = {split: profile(facts[split], labels[split], agreements[split, split]) for split in splits}
    differ = differences(profiles, agreements, expected, settings)
    levels, ignored = histogram_rows(facts, settings)
    checker, rows = Checker(), contract(image_set, settings, ignored)
    checker.check("images", image_rows(image_set, facts, alike), rows["images"], ["split", "image"], "images")
    checker.check("splits", split_rows(image_set, facts, labels), rows["splits"], ["split"], "splits")
    checker.check("histogram", levels, rows["histogram"], ["split", "level"], "levels")
    for name, of_reference in (("differences", False), ("drift", True)):
        if some := [each for each in differ if (each.first == REFERENCE) == of_reference]:
            index = ["splits", "statistic", "difference"]
            checker.check(name, difference_rows(some), rows[name], index, "statistics")
    report = Report(
        success=all(result.success or result.severity == "warning" for result in checker.results),
        data_sha256=data_sha256(images),
        relaxed=list(relaxed(settings).values()),
        transforms=image_set.transforms,
        expectations=[
            result.model_copy(update={"rows": with_files(result.rows, images)}) for result in checker.results
        ],
        profile=profiles["train"],
        alike=[entry(pair, pairs, images) for pair, pairs in alike.items()],
        differences=differ,
    )
    return Inspection(report, image_set, {split: known.histogram for split, known in facts.items()}, checker)


def entry(pair: tuple[str, str], found: pd.DataFrame, folder: Path) -> Alike:
    """Return what the report says of the images that look alike in two splits, with at most 500 pairs."""
    rows = found.head(MOST_PAIRS).assign(split=pair[1], of_split=pair[0])
    rows = rows.round({"distance": 6, "by_chance": 4}).astype({"image": int, "of_image": int})
    shown = ["split", "image", "of_split", "of_image", "moved", "distance", "by_chance"]
    return Alike(
        first=pair[0],
        second=pair[1],
        found=len(found),
        excess=int(found["excess"].sum()),
        pairs=with_files(rows[shown].to_dict("records"), folder),
    )


def write_report(inspection: Inspection, out: Path) -> None:
    """Write the report and its picture into the folder `out`, and the Data Docs beside them.

    The same images, contract and installed packages give the same bytes of report and picture; the Data Docs have
    times.  Raises OSError that names what cannot be written.
    """
    report, image_set, histograms, checker = inspection
    write_whole(out / PICTURE, draw(image_set, histograms, report))
    write_whole(out / REPORT, json.dumps(report.model_dump(), indent=2, sort_keys=True) + "\n")
    checker.build_site(out / DATA_DOCS)


def require_success(report: Report, images: Path, out: Path | None) -> None:
    """Log the warnings of a report.  Raise UserError (exit 4) that names every critical expectation that fails.

    The error refers to the site in the folder `out`, if there is one.
    """
    shown = visible(str(images))
    if warnings := report.failed("warning"):
        log.warning("%s: warning: %s", shown, visible("; ".join(map(described, warnings))))
    if critical := report.failed("critical"):
        see = f"; see {out / DATA_DOCS / 'index.html'}" if out else ""
        raise UserError(f"{images}: {'; '.join(map(described, critical))}{see}", Exit.INVALID_DATA)
    held = sum(result.success for result in report.expectations)
    log.info("%s: %s: %d of %d expectations hold", shown, report.verdict, held, len(report.expectations))
    for meaning in [result.meaning for result in report.expectations if result.meaning.endswith(UNJUDGED)]:
        log.info("%s: %s", shown, meaning)


def described(result: Result) -> str:
    """Return the meaning of an expectation that fails, what was observed, and the first rows that break it."""
    rows = f" ({', '.join(map(described_row, result.rows[:3]))})" if result.rows else ""
    return f"broken expectation: {result.meaning}: {result.observed}{rows}"


def described_row(row: dict[str, Any]) -> str:
    """Return the values of a row, such as `test 5 "cat/1.png"`: the name of a file is in quotes."""
    return " ".join(
        json.dumps(value, ensure_ascii=False) if key == "file" else str(value) for key, value in row.items()
    )
