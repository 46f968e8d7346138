"""Check an image set against the discretization contract, and write the report, its picture and its site."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.files import written_last
from flows.core.folders import writing_folder
from flows.images.store import ImageSet, data_sha256, load_images, load_labels, present
from flows.process.ending import finish
from flows.validation.contract import between, histogram_expectations, image_expectations, split_expectations
from flows.validation.drift import REFERENCE, differences, profile, read_reference
from flows.validation.duplicates import Lookalikes, all_lookalikes, ranked
from flows.validation.expectations import Checker
from flows.validation.facts import Facts, measure
from flows.validation.picture import draw
from flows.validation.report import REPORT, Alike, Difference, Report, Result
from flows.validation.tables import difference_rows, histogram_rows, image_rows, split_rows, with_files

if TYPE_CHECKING:
    from flows.core.params import Contract

log = logging.getLogger(__name__)

# In the folder of a report.
DATA_DOCS, PICTURE = "data_docs", "validation.png"


class Inspection(NamedTuple):
    """A report, and the data for its picture and its site."""

    report: Report
    image_set: ImageSet
    histograms: dict[str, np.ndarray]
    checker: Checker


def inspect_images(contract: "Contract", *, images: Path, reference: Path | None) -> Inspection:
    """Check the image set in the folder `images`.

    `reference` is a validation.json or an image set from which the pixels should not have drifted.  Raises
    UserError (exit 5) for unreadable images, and for an unreadable reference.
    """
    image_set = load_images(images)
    expected = read_reference(reference) if reference else None
    splits = present(image_set.description)
    facts = {split: measure(getattr(image_set, split), image_set.num_levels) for split in splits}
    profiles = {split: profile(known, load_labels(images, split)) for split, known in facts.items()}
    alike = all_lookalikes(image_set, facts, contract.near_duplicate_distance)
    found = differences(profiles, expected, contract)
    checker = Checker()
    check_images(checker, contract, image_set, images, facts, alike)
    check_differences(checker, contract, found)
    report = Report(
        success=all(result.success or result.severity == "warning" for result in checker.results),
        data_sha256=data_sha256(images),
        transforms=image_set.transforms,
        expectations=[
            result.model_copy(update={"rows": with_files(result.rows, images)}) for result in checker.results
        ],
        profile=profiles["train"],
        alike=[entry(pair, lookalikes, images) for pair, lookalikes in alike.items()],
        differences=found,
    )
    return Inspection(report, image_set, {split: known.histogram for split, known in facts.items()}, checker)


def write_report(inspection: Inspection, out: Path) -> None:
    """Write the report, its picture and its site into the folder `out`.

    The same images, contract and installed packages give the same bytes.  Raises OSError that names what cannot be
    written.
    """
    report, image_set, histograms, checker = inspection
    with replacing_report(out / REPORT, report):
        picture = draw(image_set, histograms, report)
        with written_last(out / PICTURE, picture), writing_folder(out / DATA_DOCS) as site:
            checker.build_site(site)
            finish()


def check_images(
    checker: Checker,
    contract: "Contract",
    image_set: ImageSet,
    folder: Path,
    facts: dict[str, Facts],
    alike: dict[tuple[str, str], Lookalikes],
) -> None:
    """Check the images, the splits and the levels of a set."""
    rows = image_rows(image_set, facts, alike)
    checker.check("images", rows, image_expectations(image_set, contract), ["split", "image"], "images")
    checker.check(
        "splits", [split_rows(image_set, folder, facts)], split_expectations(image_set, contract), ["split"], "splits"
    )
    checker.check(
        "histogram", [histogram_rows(facts, contract)], histogram_expectations(image_set), ["split", "level"], "levels"
    )


def check_differences(checker: Checker, contract: "Contract", found: list[Difference]) -> None:
    """Check the differences of the splits, and those from a reference if there are any."""
    on_drift = "warning" if contract.on_drift == "warn" else "critical"
    for name, of_reference, severity, text in (
        ("differences", False, "warning", "splits differ by chance alone (times the limit)"),
        ("drift", True, on_drift, "images are like the reference's (times the limit)"),
    ):
        if selected := [each for each in found if (each.first == REFERENCE) == of_reference]:
            expected = between("times_the_limit", text, severity, max_value=1)
            checker.check(name, [difference_rows(selected)], [expected], ["splits", "statistic"], "differences")


def entry(pair: tuple[str, str], found: Lookalikes, folder: Path) -> Alike:
    """Return what the report says of the images that look alike in two splits."""
    return Alike(
        first=pair[0],
        second=pair[1],
        found=len(found.image),
        by_chance=round(float(found.by_chance.max(initial=0)), 4),
        excess=found.excess,
        pairs=with_files(ranked(*pair, found), folder),
    )


@contextmanager
def replacing_report(path: Path, report: Report) -> Iterator[None]:
    """Write the report when the block, which writes the site and the picture, ends without an error.

    After an error an older report that differs is removed: it may be about another contract, and training would trust
    it.
    """
    content = json.dumps(report.model_dump(), indent=2, sort_keys=True) + "\n"
    try:
        with written_last(path, content):
            yield
    except Exception:
        with suppress(OSError):
            if path.is_file() and path.read_bytes() != content.encode():
                path.unlink()
        raise


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
    log.info("%s: valid: %d of %d expectations hold", shown, held, len(report.expectations))


def described(result: Result) -> str:
    """Return the meaning of an expectation that fails, what was observed, and the first rows that break it."""
    rows = f" ({', '.join(map(described_row, result.rows[:3]))})" if result.rows else ""
    return f"broken expectation: {result.meaning}: {result.observed}{rows}"


def described_row(row: dict[str, Any]) -> str:
    """Return the values of a row, such as `test 5 "cat/1.png"`: the name of a file is in quotes."""
    return " ".join(
        json.dumps(value, ensure_ascii=False) if key == "file" else str(value) for key, value in row.items()
    )
