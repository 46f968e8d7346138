"""Check an image set against the discretization contract and write the report, its site and its picture."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.files import writing_folder, written_last
from flows.images.store import ImageSet, data_sha256, load_images, present
from flows.process.ending import finish
from flows.validation.contract import drift_expectations, histogram_expectations, image_expectations, split_expectations
from flows.validation.drift import distances, profile, read_reference
from flows.validation.expectations import Checker
from flows.validation.facts import Facts, measure
from flows.validation.picture import draw
from flows.validation.report import Profile, Report, Result
from flows.validation.tables import drift_rows, histogram_rows, image_rows, split_rows, with_files

if TYPE_CHECKING:
    from flows.core.params import Contract

log = logging.getLogger(__name__)

# In the folder of a report.
REPORT, DATA_DOCS, PICTURE = "validation.json", "data_docs", "validation.png"


def inspect_images(contract: "Contract", *, images: Path, out: Path, reference: Path | None) -> Report:
    """Check the image set in the folder `images`, write the report into the folder `out` and return it.

    The same images, contract and installed packages give the same bytes.  `reference` is a validation.json or an image
    set from which the pixels should not have drifted.  Raises ImageSetError for unreadable images, UserError (exit 5)
    for an unreadable reference, OSError that names what cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)  # fails before the images are read
    image_set = load_images(images)
    expected = read_reference(reference) if reference else None
    facts = {
        split: measure(getattr(image_set, split), image_set.num_levels) for split in present(image_set.description)
    }
    found = profile(facts["train"])
    checker = Checker()
    check_images(checker, contract, image_set, images, facts)
    if expected:
        table = drift_rows(distances(found, expected))
        checker.check("drift", [table], drift_expectations(contract), ["statistic"])
    report = report_of(checker.results, images, image_set, found)
    with replacing_report(out / REPORT, report):
        histograms = {split: known.histogram for split, known in facts.items()}
        picture = draw(image_set, histograms, report.expectations)
        with written_last(out / PICTURE, picture), writing_folder(out / DATA_DOCS) as site:
            checker.build_site(site)
            finish()
    return report


def check_images(
    checker: Checker, contract: "Contract", image_set: ImageSet, folder: Path, facts: dict[str, Facts]
) -> None:
    """Check the images, the splits and the levels of a set."""
    rows = image_rows(image_set, facts, contract.near_duplicate_distance)
    checker.check("images", rows, image_expectations(image_set, contract), ["split", "image"])
    checker.check("splits", [split_rows(image_set, folder)], split_expectations(image_set, contract), ["split"])
    checker.check("histogram", [histogram_rows(facts)], histogram_expectations(image_set, contract), ["split", "level"])


def report_of(results: list[Result], folder: Path, image_set: ImageSet, found: Profile) -> Report:
    """Return the report on the image set in `folder`, with the names of files in the rows about images."""
    return Report(
        success=all(result.success or result.severity == "warning" for result in results),
        data_sha256=data_sha256(folder),
        transforms=image_set.transforms,
        expectations=[result.model_copy(update={"rows": with_files(result.rows, folder)}) for result in results],
        profile=found,
    )


@contextmanager
def replacing_report(path: Path, report: Report) -> Iterator[None]:
    """Write the report when the block, which writes the site and the picture, ends without an error.

    After an error an older report is removed: it is about another contract or other images, and training would trust
    it.
    """
    try:
        with written_last(path, json.dumps(report.model_dump(), indent=2, sort_keys=True) + "\n"):
            yield
    except Exception:
        with suppress(OSError):
            path.unlink(missing_ok=True)
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
    """Return the meaning of an expectation, what was observed, and the first rows that break it."""
    rows = ", ".join(map(described_row, result.rows[:3]))
    return f"{result.meaning}: {result.observed}{f' ({rows})' if rows else ''}"


def described_row(row: dict[str, Any]) -> str:
    """Return the values of a row, such as `test 5 "cat/1.png"`: the name of a file is in quotes."""
    return " ".join(
        json.dumps(value, ensure_ascii=False) if key == "file" else str(value) for key, value in row.items()
    )
