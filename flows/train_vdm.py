"""The Prefect flow `train-vdm`: run the graph of dvc.yaml, one task per stage, in a new worktree.

DVC decides which stages must run and caches their outputs.  Prefect decides when, retries, and shows the run.  No data
passes between tasks.
"""

import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import gethostname
from typing import Annotated, Any, Literal

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed
from pydantic import Field

from flows.commands.summary import bits
from flows.contract.findings import Findings, Verdict
from flows.core import bounded_yaml, layout
from flows.core.documents import read
from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.core.params import CHAMPION
from flows.core.params_file import read_params
from flows.evaluation.odd import Surprise
from flows.evaluation.results import BoundMetrics
from flows.images.image_set import open_images
from flows.orchestration import artifacts, restoring
from flows.orchestration.looking import Arrived, Look, arrived, look, name_of, same_images, write_new_images
from flows.orchestration.releasing import RETRIED, Release, catch_up, publish_all, release
from flows.orchestration.runs import INTERRUPTED
from flows.orchestration.streaming import EXPECTED, STOPPED, as_user_error, leave_out_tracebacks, result_of, stream
from flows.orchestration.workspace import Workspace, commit, compose_params, prune, workspace
from flows.process.ending import fail
from flows.process.groups import settle
from flows.process.lifeline import end_with_parent, end_with_starters, hold_what_starts
from flows.registry.git import first_commit, git_lines, git_text, require_identity
from flows.registry.lock_file import read_lock
from flows.registry.publishing import is_own, require_remotes
from flows.registry.storage import DamagedVersionError, dvc_repository, fetch, fetch_files
from flows.registry.verification import require_sound
from flows.registry.versions import open_registry

# A stage that takes longer is assumed to hang, and is ended.  `train` has no limit.
TIMEOUT_HOURS = {
    "download": 6.0,
    "validate": 2.0,
    "register": 0.5,
    "evaluate": 48.0,
    "features": 6.0,
    "sample": 24.0,
    "report": 0.5,
}
BUSY_SECONDS = 60.0
"""How often a stage looks whether its device is free."""
DRIFTED = "Drifted"
"""The state of the task `drift`, and of the run if it fails, when the images differ from the champion's."""
ODD_IMAGES = "OddImages"
"""The state of the task `odd` when chance hardly explains how odd the new images are to the champion."""
MOST_NEW, MOST_NAMED = 1000, 12
"""How many new images of a run are compared with the champion's, evenly spread, and how many odd ones are named."""
NEW_IMAGES = "NewImages"
"""The state of the task `images` when the images are not those of the newest run."""


class Drifted(UserError):
    """The images of a run differ from the champion's by more than `contract:` allows (exit 4)."""


@flow(name="train-vdm")
def train_vdm(
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    publish: bool = False,
    wait_hours: Annotated[float, Field(ge=0, le=24 * 365)] = 12.0,
) -> State[None]:
    """Train, evaluate and register a model with the code of the checked-out commit, and promote it if it is better.

    The name of its final state says what came of it: Promoted, Refused, NothingToDo, Drifted, Failed or Interrupted.

    Args:
        preset: The name of a file in presets/, without .yaml, that replaces params.yaml.
        overrides: Parameters by dotted key, such as {"train.steps": 5000}.
        force: Run every stage, also those whose inputs did not change.
        publish: Push data, branch and tags to the remotes.  Workers that share versions always do.
        wait_hours: How long a stage waits for its device while another process holds it.
    """
    settle(os.environ)
    leave_out_tracebacks()
    end_with_starters()
    hold_what_starts()
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        end_with_parent("prefect")  # the worker, which alone could cancel this run
    try:
        root = Path(git_text(Path.cwd(), "rev-parse", "--show-toplevel"))
        if publish := publish or is_shared():
            require_remotes(root)
        outcome = retrain(root, preset, overrides or {}, force=force, wait_hours=wait_hours)
        released = outcome if isinstance(outcome, Release) else None
        if publish:
            released = publish_all(root, released)
        return Completed(name=released.decision if released else "NothingToDo", message=str(released or outcome))
    except EXPECTED as error:
        reason = as_user_error(error)
        return Failed(name=DRIFTED if isinstance(error, Drifted) else "Failed", message=str(reason), data=reason)
    except STOPPED:
        # The end of a worker stops its run twice: by the log that nobody reads, and a moment later by SIGTERM.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run.id).state
        if state and state.is_cancelling():
            raise
        again = f"it goes on when the worker in {Path.cwd()} on {gethostname()} runs again"
        return Crashed(name=INTERRUPTED, message=f"Its worker or the machine stopped; {again}.")


def is_shared() -> bool:
    """Whether the worker of this run shares versions with those of other machines; see flows.orchestration.serve."""
    return "VDM_SHARE" in os.environ


def retrain(
    root: Path, preset: str | None, overrides: Mapping[str, Any], *, force: bool, wait_hours: float
) -> Release | str:
    """Do one run; return the version that it made, or in one line why it made none.

    Raises UserError, such as exit 2 if git has no identity to commit with.
    """
    logger = get_run_logger()
    require_identity(root)
    if git_lines(root, "status", "--porcelain", "--untracked-files=no"):
        logger.warning("%s has uncommitted changes, which are not part of this run", root)
    if is_shared():
        catch_up(root)
    base = first_commit(root, shared=is_shared())
    params = compose_params(root, base, preset, overrides)
    found = look(root, base, bounded_yaml.parse(params))
    lacking = found.images == "missing"
    if lacking and not (is_shared() and found.same_preparation and not force):
        reason = f"data.source: {found.source} is not on this machine"
        if is_shared() and found.newest:
            reason += ", and the images of the newest run were read by other code or parameters, or are to be read anew"
        raise UserError(f"{reason}; bring it here, or name another place", Exit.MISSING)
    note = f"; {found.source} is not on this machine, so the images are those of the newest run" if lacking else ""
    for name in prune(root):
        logger.info("removed the worktree of run %s, which ended early", name)
    interrupted = found.newest is not None and is_undecided(root, found.newest)
    if found.finds_nothing and not force and not interrupted:
        return nothing_to_do(root, str(found.newest)) + note
    with workspace(root, named(root, params), base) as place:
        if restoring.is_tracked(place, found.source):
            result_of(bring(place, found, return_state=True), "source")
        elif lacking:
            restoring.record_images(place, str(found.newest))
        complete = not force and result_of(restore(place, lacking, return_state=True), "restore")
        if complete and (made := restoring.made_before(place)):
            if is_undecided(root, made):
                return release(place, made)._replace(images=note)
            return nothing_to_do(root, made) + note
        result_of(check_champion(place.folder, return_state=True), "champion")
        logger.info("run %s of commit %s in %s", place.folder.name, place.base[:12], place.folder)
        images, arrivals = "", False
        for stage in stages(place.folder):
            if stage == restoring.DOWNLOAD and lacking:
                continue
            run_stage(stage, place, force=force, wait_hours=wait_hours)
            if stage == restoring.DOWNLOAD and found.newest:
                read_now = open_images(place.folder / layout.IMAGES)
                repeats = found.same_code and found.same_parameters and not (force or interrupted)
                if repeats and same_images(read_now, root, found.newest):
                    return nothing_to_do(root, found.newest)
                if found.same_preparation:
                    new = result_of(compare(root, place.folder, found.newest, return_state=True), "images")
                    images = f"; images: {new}" if new else ""
                    arrivals = new is not None and new.added > 0
            if stage == "validate" and arrivals and found.newest:
                images += result_of(odd(place, found.newest, return_state=True), "odd")
        artifacts.show_results(place.folder, place.reports)
        return record(place, images + note)


def is_undecided(root: Path, commit: str) -> bool:
    """Whether a run of this repository was killed before its model was promoted or refused."""
    return is_own(root, commit) and not open_registry(root).is_decided(commit)


def named(root: Path, params: str) -> str:
    """Return a run's params.yaml with the champion's version in place of `train.start_from: champion`.

    Without a champion it is null, and the training begins from noise.
    """
    document = bounded_yaml.load(params)
    if document["train"].get("start_from") != CHAMPION:
        return params
    champion = open_registry(root).champion
    document["train"]["start_from"] = champion.name if champion else None
    start = (
        f"continues from the champion {champion.name}" if champion else "begins from noise: there is no champion yet"
    )
    get_run_logger().info("training %s", start)
    return bounded_yaml.dump(document)


def nothing_to_do(root: Path, commit: str) -> str:
    """Return in one line that a commit has the results of a run already."""
    return f"nothing to do: {name_of(root, commit)} has the results of this code, these parameters and these images"


def run_stage(stage: str, place: Workspace, *, force: bool, wait_hours: float) -> None:
    """Run the task of a stage, and check for drift after `validate`.  Raises UserError if it fails."""
    # Called, not submitted: a submitted task would not be stopped when the run is cancelled.
    state = reproduce.with_options(
        name=stage,
        task_run_name=stage,
        timeout_seconds=3600 * TIMEOUT_HOURS[stage] if stage in TIMEOUT_HOURS else None,
        retries=2 + int(3600 * wait_hours / BUSY_SECONDS),
        retry_condition_fn=while_busy(time.monotonic() + 3600 * wait_hours),
    )(stage, place.folder, force, return_state=True)
    if stage != "validate":
        result_of(state, f"stage {stage}")
        return
    docs = artifacts.show_data_docs(place.folder, place.reports)
    try:
        result_of(state, f"stage {stage}")
    except UserError as error:
        if error.code is not Exit.INVALID_DATA:
            raise
        raise UserError(f"{error}, kept as {docs.relative_to(place.root)}", error.code) from error
    result_of(drift(place.root, place.folder, return_state=True), "drift")


def stages(folder: Path) -> list[str]:
    """Return the names of the stages, sorted so that each comes after its dependencies."""
    with dvc_repository(folder) as repo:
        return [stage.name for stage in restoring.stages(repo)]


def while_busy(deadline: float) -> Callable[[Any, Any, State[Any]], bool]:
    """Return the condition of a retry: until the deadline if the device is busy, twice if the network failed."""

    def may_help(task: Any, run: Any, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        busy = isinstance(error, UserError) and error.code is Exit.BUSY
        return (busy and time.monotonic() < deadline) or (isinstance(error, NetworkError) and run.run_count <= 2)

    return may_help


@task(cache_policy=NO_CACHE, retry_delay_seconds=BUSY_SECONDS)
def reproduce(stage: str, folder: Path, force: bool) -> None:
    """Run `dvc repro` for one stage.  Raises UserError."""
    options = ["--force"] if force else []
    try:
        if is_shared() and not force:
            restoring.restore_stage(folder, stage)
        look = artifacts.Progress(folder).look if stage == "train" else None
        stream(["dvc", "repro", "--single-item", stage, *options], folder, look)
    except UserError as error:
        raise type(error)(f"stage {stage} failed: {error}", error.code) from error


@task(name="images", task_run_name="images", timeout_seconds=3600 * 6, **RETRIED)
def compare(root: Path, folder: Path, newest: str) -> State[Arrived | None]:
    """Return how many images are new since the newest run, by a state of which automations.yaml tells somebody.

    Its result is None if none came or went, or if that run kept no digests of its images.
    """
    try:
        new = arrived(open_images(folder / layout.IMAGES), root, newest)
    except UserError as error:
        get_run_logger().warning("new images are not counted: %s", error)
        return Completed()
    if new is None or not (new.added or new.removed):
        return Completed()
    get_run_logger().info("images: %s", new)
    return Completed(name=NEW_IMAGES, message=str(new), data=new)


@task(name="drift", task_run_name="drift", cache_policy=NO_CACHE, timeout_seconds=3600 * 2)
def drift(root: Path, folder: Path) -> State[None]:
    """Compare the run's images with the champion's, by `contract:`.  Raises Drifted (exit 4)."""
    reference = None
    try:
        reference = findings_of_champion(root, folder)
    except UserError as error:
        get_run_logger().warning("drift from the champion's images is not checked: %s", error)
    if reference is None:
        return Completed()
    file = folder / layout.DRIFT
    try:
        command = ["flows.cli", "validate", str(layout.IMAGES), "--reference", str(reference), "--json"]
        stream(command, folder, stdout=file)
    except UserError as error:
        if error.code is Exit.INVALID_DATA and differences(file, "critical"):
            raise Drifted(f"{DRIFTED} from the champion's images: {error}", error.code) from error
        raise
    warnings = "; ".join(differences(file, "warning"))
    return Completed(name=DRIFTED, message=warnings) if warnings else Completed()


def differences(file: Path, severity: Literal["warning", "critical"]) -> list[str]:
    """Return in what the images differ from the reference by findings in a file."""
    return [result.words for result in read(Findings, file).failed(severity) if result.table == "drift"]


def findings_of_champion(root: Path, folder: Path) -> Path | None:
    """Return the file with what the contract found of the champion's images, after fetching it.

    None without a champion or such a file, or if the images in `folder` are the same.  Raises UserError (exit 5).
    """
    images = read(Verdict, folder / layout.VALIDATION).data_sha256
    champion = open_registry(root).champion
    if champion is None or champion.metrics.data_sha256 == images:
        return None
    path = str(layout.VALIDATION)
    if path not in read_lock(root, champion).outputs:
        return None
    place = folder / layout.PRIVATE / "champion"
    fetch_files(root, champion, [path], place)
    return place / path


@task(name="odd", task_run_name="odd", cache_policy=NO_CACHE, timeout_seconds=3600 * 2)
def odd(place: Workspace, newest: str) -> State[str]:
    """Compare the images that are new since the newest run with the champion's, and show the oddest.

    Its result is what the run's message says of them.  Raises UserError (exit 4) if more of them are odd than
    `contract.max_odd` allows and than chance makes.
    """
    folder, logger = place.folder, get_run_logger()
    try:
        champion = open_registry(place.root).champion
        if champion is None:
            raise UserError("there is no champion", Exit.MISSING)
        images = open_images(folder / layout.IMAGES)
        write_new_images(images, place.root, newest, MOST_NEW, folder / layout.NEW_IMAGES)
        page = ["--out", str(layout.ODD_PAGE), "--force", "--json"]
        command = ["flows.cli", "surprise", str(layout.NEW_IMAGES), champion.name, *page]
        stream(command, folder, stdout=folder / layout.ODD)
        found = read(Surprise, folder / layout.ODD)
    except UserError as error:
        logger.warning("it is not known how odd the new images are: %s", error)
        return Completed(data="")
    kept = artifacts.show_odd(found, open_images(folder / layout.NEW_IMAGES), folder / layout.ODD_PAGE, place.reports)
    for sentence in found.sentences:
        logger.info("new images: %s", sentence)
    said = judged(found, read_params(folder / layout.PARAMS).contract.max_odd, kept.relative_to(place.root))
    alarms = found.batch is not None and found.batch.alarms
    return (
        Completed(name=ODD_IMAGES, message=said, data=f"; {said}") if alarms else Completed(data=said and f"; {said}")
    )


def judged(found: Surprise, limit: float | None, page: Path) -> str:
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


@task(name="restore", task_run_name="restore", timeout_seconds=3600 * 6, **RETRIED)
def restore(place: Workspace, recorded: bool) -> bool:
    """Restore what was made before; return whether no stage must run.  Raises NetworkError (exit 5)."""
    return restoring.restore(place, shared=is_shared(), recorded=recorded)


@task(name="source", task_run_name="source", timeout_seconds=3600 * 6, **RETRIED)
def bring(place: Workspace, found: Look) -> None:
    """Bring a source that DVC tracks to the run's folder, an import up to date.  Raises UserError (exit 5)."""
    if found.images == "imported":
        restoring.update_import(place, found.source, found.newest)
    else:
        restoring.check_out_source(place, found.source)


@task(name="champion", task_run_name="champion", timeout_seconds=3600 * 6, **RETRIED)
def check_champion(folder: Path) -> None:
    """Verify the champion, and fetch its model into the run's folder, where the new model will be compared with it.

    Another folder may still know what DVC's remote has lost.  Raises UserError (exit 5).
    """
    try:
        if champion := open_registry(folder).champion:
            require_sound(folder, champion)
            fetch(folder, champion)
    except UserError as error:
        message = f"no comparison with the champion is possible: {error}"
        if isinstance(error, DamagedVersionError):
            again = "`git checkout TAG && make repro` makes its files again, given the same images"
            message += f"; {again}; `vdmctl rollback` takes an earlier champion, or says how to go on without one"
        raise type(error)(message, error.code) from error


def record(place: Workspace, images: str) -> Release | str:
    """Commit the results on the run's branch, and release the model if they are new.

    `images` is what the run's last message says of the images, after all else.
    """
    card = (place.folder / layout.CARD).read_bytes()
    (place.folder / layout.RUN_CARD).write_bytes(card)  # the card in the model folder is cached by DVC and not in git
    result = bits(read(BoundMetrics, place.folder / layout.METRICS))
    if known := restoring.made_before(place):
        return f"nothing new: {result}, as in commit {known[:12]}{images}"
    made = commit(place, f"Retrain: {result}")
    get_run_logger().info("%s is commit %s on branch %s", result, made[:12], place.branch)
    if is_shared():
        catch_up(place.root)  # the champion may be another one by now
    return release(place, made)._replace(images=images)


def main() -> int:
    """Run the flow without a deployment; return one of vdmctl's exit codes."""
    ArgumentParser(
        prog="python -m flows.train_vdm",
        description="Do one run with the parameters of the commit that is checked out. "
        "For other parameters start `vdmctl serve`, then `prefect deployment run train-vdm --param ...`.",
    ).parse_args()
    try:
        state = train_vdm(return_state=True)
    except RuntimeError as error:  # Prefect cannot reach its server
        return fail(f"{brief(error)}; correct PREFECT_API_URL, or unset it to run without a server", Exit.MISSING)
    if state.name == INTERRUPTED:
        return Exit.RESUMABLE
    result = state.result(raise_on_failure=False)
    return result.code if isinstance(result, UserError) else int(not state.is_completed())


if __name__ == "__main__":
    sys.exit(main())
