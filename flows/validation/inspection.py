"""Hold an image set against the discretization contract: a report for machines, a site and a picture for people."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.images.store import SPLITS, data_sha256, load_images
from flows.process.ending import finish
from flows.validation.contract import drift_expectations, histogram_expectations, image_expectations, split_expectations
from flows.validation.drift import distances, profile, read_reference
from flows.validation.expectations import Checker
from flows.validation.facts import measure
from flows.validation.picture import draw
from flows.validation.tables import drift_rows, histogram_rows, image_rows, split_rows, with_files
from vdm.files import writing_folder, written_last

if TYPE_CHECKING:
    from flows.core.params import Contract

log = logging.getLogger(__name__)


def inspect_images(
    contract: "Contract", *, images: Path, out: Path, data_docs: Path, picture: Path, reference: Path | None
) -> dict[str, Any]:
    """Hold an image set against the contract: write and return the canonical report (JSON, no times or ids).

    `data_docs` becomes the site of the same results, `picture` a PNG of histograms and offenders.  `reference` is a
    validation.json or an image set from which the pixels should not have drifted.  Raises ImageSetError for
    unreadable files, UserError (exit 5) for a reference that is none, OSError that names what cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)  # an error is wanted before the work
    image_set = load_images(images)
    expected = read_reference(reference) if reference else None
    facts = {split: measure(getattr(image_set, split), image_set.num_levels) for split in SPLITS}
    described = profile(facts["train"])
    checker = Checker()
    rows = image_rows(image_set, facts, contract.near_duplicate_distance)
    checker.check("images", rows, image_expectations(image_set, contract), ["split", "image"])
    checker.check("splits", [split_rows(image_set, images)], split_expectations(image_set, contract), ["split"])
    checker.check("histogram", [histogram_rows(facts)], histogram_expectations(image_set, contract), ["split", "level"])
    if expected:
        table = drift_rows(distances(described, expected))
        checker.check("drift", [table], drift_expectations(contract), ["statistic"])
    for result in checker.results:
        result["rows"] = with_files(result["rows"], images)
    report = {
        "success": all(result["success"] or result["severity"] == "warning" for result in checker.results),
        "data_sha256": data_sha256(images),
        "transforms": image_set.transforms,
        "expectations": checker.results,
        "profile": described,
    }
    with replacing_report(out, report):
        drawn = draw(image_set, {split: facts[split].histogram for split in SPLITS}, checker.results)
        with written_last(picture, drawn), writing_folder(data_docs) as site:
            checker.build_site(site)
            finish()
    return report


@contextmanager
def replacing_report(out: Path, report: dict[str, Any]) -> Iterator[None]:
    """Write the report when the block, which writes what else there is, ends well.

    Where it does not, an older report goes: training would believe it, though the images have been judged anew.
    """
    try:
        with written_last(out, json.dumps(report, indent=2, sort_keys=True) + "\n"):
            yield
    except Exception:
        with suppress(OSError):
            out.unlink(missing_ok=True)
        raise


def require_success(report: dict[str, Any], images: Path, data_docs: Path | None) -> None:
    """Warn of what is doubtful.  Raises UserError (exit 4) that names what is broken."""
    broken = {"warning": [], "critical": []}  # type: dict[str, list[str]]
    for result in report["expectations"]:
        if not result["success"]:
            broken[result["severity"]].append(f"{result['meaning']}: {result['observed']}{places(result['rows'])}")
    if broken["warning"]:
        log.warning("%s: warning: %s", visible(str(images)), visible("; ".join(broken["warning"])))
    if broken["critical"]:
        reasons = "; ".join(broken["critical"])
        see = f"; see {data_docs / 'index.html'}" if data_docs else ""
        raise UserError(f"{images}: {reasons}{see}", Exit.INVALID_DATA)
    held = sum(result["success"] for result in report["expectations"])
    shown = visible(str(images))
    log.info("%s: %d of %d expectations hold, none that must is broken", shown, held, len(report["expectations"]))


def places(rows: list[dict[str, Any]]) -> str:
    """The first few rows that broke an expectation, such as ` (test 5, test 9)`, with names of files in quotes."""
    named = [
        " ".join(json.dumps(value, ensure_ascii=False) if key == "file" else str(value) for key, value in row.items())
        for row in rows[:3]
    ]
    return f" ({', '.join(named)})" if named else ""
