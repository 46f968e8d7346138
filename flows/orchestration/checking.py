"""How the images of a run differ: from those of the newest run, and from the champion's."""

from pathlib import Path
from typing import Literal

from prefect import State, get_run_logger
from prefect.states import Completed

from flows.contract.findings import Findings, Verdict
from flows.core import layout
from flows.core.documents import read_document
from flows.core.errors import Exit, UserError
from flows.evaluation.odd import Surprise
from flows.images.image_set import open_images
from flows.orchestration import artifacts
from flows.orchestration.arrivals import Arrivals, count_arrivals, write_new_images
from flows.orchestration.outcome import DRIFTED, Drifted
from flows.orchestration.streaming import stream
from flows.orchestration.tasks import step, step_over_network
from flows.orchestration.workspace import Run
from flows.registry.fetching import fetch_files
from flows.registry.versions import open_registry
from flows.repository.commit import Commit

NEW_IMAGES = "NewImages"
"""The state of the task `images` when the images are not those of the newest run."""
ODD_IMAGES = "OddImages"
"""The state of the task `odd` when chance hardly explains how odd the new images are to the champion."""
MOST_NEW, MOST_NAMED = 1000, 12
"""How many new images of a run are compared with the champion's, evenly spread, and how many odd ones are named."""


@step_over_network("images")
def compare_images(run: Run, newest: Commit) -> State[Arrivals | None]:
    """Return how many images are new since the newest run, by a state of which automations.yaml tells somebody.

    Its result is None if none came or went, or if that run's images are lost.
    """
    try:
        arrivals = count_arrivals(run.project.images, newest)
    except UserError as error:
        get_run_logger().warning("new images are not counted: %s", error)
        return Completed()
    if not arrivals:
        return Completed()
    get_run_logger().info("images: %s", arrivals)
    return Completed(name=NEW_IMAGES, message=str(arrivals), data=arrivals)


@step("drift", hours=2)
def check_drift(run: Run) -> State[None]:
    """Compare the run's images with the champion's, by `contract:`.  Raises Drifted (exit 4)."""
    reference = None
    try:
        reference = findings_of_champion(run)
    except UserError as error:
        get_run_logger().warning("drift from the champion's images is not checked: %s", error)
    if reference is None:
        return Completed()
    file = run.folder / layout.DRIFT
    try:
        command = ["flows.cli", "validate", str(layout.IMAGES), "--reference", str(reference), "--json"]
        stream(command, run.folder, stdout=file)
    except UserError as error:
        if error.code is Exit.INVALID_DATA and describe_differences(file, "critical"):
            raise Drifted(f"{DRIFTED} from the champion's images: {error}", error.code) from error
        raise
    warnings = "; ".join(describe_differences(file, "warning"))
    return Completed(name=DRIFTED, message=warnings) if warnings else Completed()


def describe_differences(file: Path, severity: Literal["warning", "critical"]) -> list[str]:
    """Return in what the images differ from the reference by findings in a file."""
    return [result.words for result in read_document(Findings, file).failed(severity) if result.table == "drift"]


def findings_of_champion(run: Run) -> Path | None:
    """Return the file with what the contract found of the champion's images, after fetching it.

    None without a champion, or if the run has the same images.  A champion that kept them at another path, as before
    1.0.0, is left out with a warning.  Raises UserError (exit 5).
    """
    images = read_document(Verdict, run.folder / layout.FINDINGS).data_sha256
    champion = open_registry(run.main.repository).champion
    if champion is None or champion.metrics.data_sha256 == images:
        return None
    path = str(layout.FINDINGS)
    if path not in run.main.repository.at(champion).lock.outputs:
        get_run_logger().warning("%s has no %s, so the drift from its images is left out", champion.name, path)
        return None
    place = run.folder / layout.PRIVATE / "champion"
    fetch_files(run.main.repository, champion, [path], place)
    return place / path


@step("odd", hours=2)
def find_odd(run: Run, newest: Commit) -> State[str]:
    """Compare the images that are new since the newest run with the champion's, and show the oddest.

    Its result is what the run's message says of them.  Raises UserError (exit 4) if more of them are odd than
    `contract.max_odd` allows and than chance makes.
    """
    folder, logger = run.folder, get_run_logger()
    try:
        champion = open_registry(run.main.repository).champion
        if champion is None:
            raise UserError("there is no champion", Exit.MISSING)
        write_new_images(run.project.images, newest, MOST_NEW, folder / layout.NEW_IMAGES)
        page = ["--out", str(layout.ODD_PAGE), "--force", "--json"]
        command = ["flows.cli", "surprise", str(layout.NEW_IMAGES), champion.name, *page]
        stream(command, folder, stdout=folder / layout.ODD)
        found = read_document(Surprise, folder / layout.ODD)
    except UserError as error:
        logger.warning("it is not known how odd the new images are: %s", error)
        return Completed(data="")
    kept = artifacts.show_odd(found, open_images(folder / layout.NEW_IMAGES), folder / layout.ODD_PAGE, run.reports)
    for sentence in found.sentences:
        logger.info("new images: %s", sentence)
    said = judge_odd(found, run.project.params.contract.max_odd, kept.relative_to(run.main.folder))
    if found.batch is not None and found.batch.alarms:
        return Completed(name=ODD_IMAGES, message=said, data=said)
    return Completed(data=said)


def judge_odd(found: Surprise, limit: float | None, page: Path) -> str:
    """Return what a run's message says of new images, "" if they have no p.

    Raises UserError (exit 4) if more of them are odd than the limit, `contract.max_odd`, and than chance makes.
    """
    if (batch := found.batch) is None:
        return ""
    names = ", ".join(each.file or f"image {each.number}" for each in found.images[:MOST_NAMED])
    said = f"{batch.num_odd:,} of {batch.num_images:,} new images are odd to {found.model}"
    if limit is not None and batch.num_odd > max(batch.most_odd, limit * batch.num_images):
        reason = f"{said}, more than contract.max_odd {limit:g} allows: {names}"
        raise UserError(f"{reason}; look at {page}, remove them or raise the limit", Exit.INVALID_DATA)
    said += f", by chance about {batch.expected_odd:.0f}"
    return f"{said}; the oddest: {names}" if batch.alarms else said
