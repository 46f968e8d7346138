"""The Prefect flow `train-vdm`: run the graph of dvc.yaml, one task per stage, in a new worktree.

DVC decides which stages must run and caches their outputs.  Prefect decides when, retries, and shows the run.  No data
passes between tasks.
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import networkx
from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed
from pydantic import Field

from flows.commands.summary import bits
from flows.core import layout
from flows.core.documents import read
from flows.core.errors import Exit, NetworkError, UserError, brief, of_file
from flows.core.files import naming, scratch_folder
from flows.evaluation.results import BoundMetrics
from flows.orchestration import artifacts
from flows.orchestration.announcing import announce, announce_drift, forget_outcome
from flows.orchestration.releasing import RETRIED, Release, catch_up, conclude, release, report_folder
from flows.orchestration.streaming import EXPECTED, as_user_error, leave_out_tracebacks, result_of, stream, when_free
from flows.orchestration.workspace import Workspace, commit, compose_params, finished, prune, take_images, workspace
from flows.process.ending import fail
from flows.process.environment import settle
from flows.process.lifeline import end_with_parent, end_with_starters, hold_what_starts
from flows.registry import versions as registry
from flows.registry.git import git_lines, git_text, require_identity
from flows.registry.lock_file import read_lock
from flows.registry.publishing import is_own, require_remotes
from flows.registry.remote import first_commit
from flows.registry.storage import DamagedVersionError, dvc_repository, fetch_files
from flows.registry.verification import require_sound
from flows.validation.report import Validation

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


@flow(name="train-vdm")
def train_vdm(
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    publish: bool = False,
    wait_hours: Annotated[float, Field(ge=0, le=24 * 365)] = 12.0,
) -> State[None]:
    """Train, evaluate and register a model with the code of the checked-out commit, and promote it if it is better.

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
    forget_outcome()
    try:
        root = Path(git_text(Path.cwd(), "rev-parse", "--show-toplevel"))
        if publish := publish or is_shared():
            require_remotes(root)
        outcome = retrain(root, preset, overrides or {}, force=force, wait_hours=wait_hours)
        message = conclude(root, outcome, publish=publish)
    except EXPECTED as error:
        reason = as_user_error(error)
        announce("failed", str(reason))
        return Failed(message=str(reason), data=reason)
    except Exception as error:
        announce("failed", f"a bug: {brief(error)}; the log has the traceback")
        raise
    return Completed(message=message)


def is_shared() -> bool:
    """Whether the worker of this run shares versions with those of other machines; see flows.orchestration.workers."""
    return "VDM_SHARE" in os.environ


def retrain(
    root: Path, preset: str | None, overrides: Mapping[str, Any], *, force: bool, wait_hours: float
) -> Release | str:
    """Do one run; return the version that it made, or in one line why it made none.  Raises UserError."""
    logger = get_run_logger()
    check_repository(root)
    if is_shared():
        catch_up(root)
    base = first_commit(root, shared=is_shared())
    if is_shared():
        warn_of_newer(root, base)
    params = compose_params(root, base, preset, overrides)
    for name in prune(root):
        logger.info("removed the worktree of run %s, which ended early", name)
    with workspace(root, params, base) as place:
        if not force and (ready := finished(place, shared=is_shared())):
            if is_own(root, ready) and not registry.is_decided(root, ready):
                return release(place, ready)  # its run was killed before the model was promoted or refused
            return f"nothing to do: commit {ready[:12]} has the results of these parameters already"
        if not force:
            restore_images(place)
        result_of(check_champion(root, return_state=True), "champion")
        logger.info("run %s of commit %s in %s", place.folder.name, place.base[:12], place.folder)
        run_stages(place, force=force, wait_hours=wait_hours)
        artifacts.show_results(place.folder, report_folder(place))
        return record(place)


def restore_images(place: Workspace) -> None:
    """Check out the images that the run's commit records, or warn that `download` reads their source anew.

    Raises NetworkError (exit 5) if machines share versions and the remote does not answer.
    """
    try:
        take_images(place)
    except UserError as error:
        if is_shared() and isinstance(error, NetworkError):
            raise
        get_run_logger().warning("the recorded images cannot be restored, so their source is read again: %s", error)


def run_stages(place: Workspace, *, force: bool, wait_hours: float) -> None:
    """Run a task for every stage, and check for drift after `validate`.  Raises UserError of a stage that fails."""
    for stage in stages(place.folder):
        # Called, not submitted: a submitted task would not be stopped when the run is cancelled.
        state = reproduce.with_options(
            name=stage,
            task_run_name=stage,
            timeout_seconds=3600 * TIMEOUT_HOURS[stage] if stage in TIMEOUT_HOURS else None,
        )(stage, place.folder, force, wait_hours, return_state=True)
        if stage == "validate":
            artifacts.show_data_docs(place.folder, report_folder(place))  # before its failure is raised
        result_of(state, f"stage {stage}")
        if stage == "validate":
            result_of(drift(place.root, place.folder, return_state=True), "drift")


def check_repository(root: Path) -> None:
    """Warn about what the run will not contain.

    Raises UserError (exit 2) if there is no commit to start from, or if git has no identity to commit with.
    """
    logger = get_run_logger()
    require_identity(root)
    state = git_lines(root, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if "# branch.oid (initial)" in state:
        raise UserError(f"{root}: the branch has no commit yet from which a run could start; make one", Exit.USAGE)
    if not all(line.startswith("# ") for line in state):
        logger.warning("%s has uncommitted changes, which are not part of this run", root)
    if "# branch.head (detached)" in state:
        logger.warning("%s has no branch checked out; the run starts from its commit", root)


def warn_of_newer(root: Path, base: str) -> None:
    """Warn if the upstream branch has commits that the commit `base` does not contain."""
    with suppress(UserError):  # no upstream branch
        if (newer := git_text(root, "rev-list", "--count", f"{base}..@{{upstream}}")) != "0":
            reason = f"{root} has local commits, so this run lacks {newer} of the upstream branch"
            get_run_logger().warning("%s; rebase them, or drop them with `git reset --keep @{upstream}`", reason)


def stages(folder: Path) -> list[str]:
    """Return the names of the stages, sorted so that each comes after its dependencies."""
    with dvc_repository(folder) as repo:
        # DVC's edges point from a stage to what it needs.
        graph = networkx.reverse_view(repo.index.graph)
        # The stage of a `.dvc` file has no command.
        return [stage.name for stage in networkx.lexicographical_topological_sort(graph, key=str) if stage.cmd]


@task(**RETRIED)
def reproduce(stage: str, folder: Path, force: bool, wait_hours: float) -> None:
    """Run `dvc repro` for one stage; wait for a busy device at most `wait_hours`.  Raises UserError."""
    command = ["dvc", "repro", "--single-item", stage]
    if force:
        command.append("--force")
    if is_shared():
        command.append("--pull")
    try:
        read = artifacts.Progress(folder).read if stage == "train" else None
        when_free(partial(stream, command, folder, read), hours=wait_hours)
    except UserError as error:
        raise type(error)(f"stage {stage} failed: {error}", error.code) from error


@task(name="drift", task_run_name="drift", cache_policy=NO_CACHE, timeout_seconds=3600 * 2)
def drift(root: Path, folder: Path) -> None:
    """Compare the run's images with the champion's, by `contract:`.  Raises UserError (exit 4)."""
    try:
        reference = champion_report(root, folder)
    except UserError as error:
        get_run_logger().warning("drift from the champion's images is not checked: %s", error)
        return
    try:
        if reference:
            stream(["flows.cli", "validate", str(layout.IMAGES), "--reference", str(reference)], folder, announce_drift)
    except UserError as error:
        if error.code is Exit.INVALID_DATA:
            announce("drifted", str(error))
        raise


def champion_report(root: Path, folder: Path) -> Path | None:
    """Return the validation report of the champion's images, after fetching it.

    None without a champion or report, or if the images in `folder` are the same.  Raises UserError (exit 5).
    """
    images = read(Validation, folder / layout.VALIDATION).data_sha256
    champion = registry.champion(root)
    if champion is None or champion.metrics.data_sha256 == images:
        return None
    path = str(layout.VALIDATION)
    if path not in read_lock(root, champion).outputs:
        return None
    place = folder / layout.PRIVATE / "champion"
    fetch_files(root, champion, [path], place)
    return place / path


@task(name="champion", task_run_name="champion", timeout_seconds=3600 * 6, **RETRIED)
def check_champion(root: Path) -> None:
    """Verify the champion, with which the new model will be compared.  Raises UserError (exit 5)."""
    try:
        if champion := registry.champion(root):
            require_sound(root, champion)
    except UserError as error:
        again = "`git checkout TAG && make repro` makes its files again, given the same images"
        advice = f"{again}; `vdmctl rollback` takes an earlier champion, or says how to go on without one"
        message = f"no comparison with the champion is possible: {error}"
        if isinstance(error, DamagedVersionError):
            message += f"; {advice}"
        raise type(error)(message, error.code) from error


def record(place: Workspace) -> Release | str:
    """Commit the results on the run's branch, and release the model if they are new."""
    card = (place.folder / layout.CARD).read_bytes()
    (place.folder / layout.RUN_CARD).write_bytes(card)  # the card in the model folder is cached by DVC and not in git
    result = bits(read(BoundMetrics, place.folder / layout.METRICS))
    made = commit(place, f"Retrain: {result}")
    if made is None:
        return f"nothing new: {result}, as in an earlier commit"
    get_run_logger().info("%s is commit %s on branch %s", result, made[:12], place.branch)
    if is_shared():
        catch_up(place.root)  # the champion may be another one by now
    return release(place, made)


def require_home() -> None:
    """Raise OSError if Prefect cannot write the files of its temporary server: it would start one again and again."""
    settings = get_current_settings()
    if settings.api.url:  # a run that has a server starts none
        return
    settings.home.mkdir(parents=True, exist_ok=True)
    with naming(settings.home, settings.home), scratch_folder(settings.home):
        pass


def main() -> int:
    """Run the flow without a deployment; return one of vdmctl's exit codes."""
    ArgumentParser(
        prog="python -m flows.train_vdm",
        description="Do one run with the parameters of the commit that is checked out. "
        "For other parameters start `vdmctl serve`, then `prefect deployment run train-vdm --param ...`.",
    ).parse_args()
    try:
        require_home()
    except OSError as error:
        return fail(f"{of_file(error)}; PREFECT_HOME names another folder for Prefect's files", Exit.MISSING)
    try:
        state = train_vdm(return_state=True)
    except RuntimeError as error:  # Prefect cannot reach its server
        return fail(f"{brief(error)}; correct PREFECT_API_URL, or unset it to run without a server", Exit.MISSING)
    result = state.result(raise_on_failure=False)
    return result.code if isinstance(result, UserError) else int(not state.is_completed())


if __name__ == "__main__":
    sys.exit(main())
