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
from typing import Annotated, Any

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed
from pydantic import Field

from flows.core import bounded_yaml, layout
from flows.core.documents import read_document
from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.core.params import CHAMPION
from flows.evaluation.results import BoundMetrics, bits
from flows.images.folder import describe_damaged
from flows.orchestration import artifacts
from flows.orchestration.arrivals import has_same_images
from flows.orchestration.checking import check_drift, compare_images, find_odd
from flows.orchestration.due import Due, find_due, list_results, say_nothing_to_do
from flows.orchestration.outcome import Drifted, Outcome
from flows.orchestration.releasing import RETRIED, catch_up, publish_all, release
from flows.orchestration.runs import INTERRUPTED
from flows.orchestration.silence import is_source_gone
from flows.orchestration.streaming import EXPECTED, STOPPING, leave_out_tracebacks, result_of, stream, to_user_error
from flows.orchestration.workspace import Run, compose_params, prune, workspace
from flows.process.ending import fail
from flows.process.groups import settle
from flows.process.lifeline import end_with_parent, end_with_starters, hold_what_starts
from flows.registry.costs import DRIVER, count_costs, known_costs
from flows.registry.fetching import fetch
from flows.registry.project import Project
from flows.registry.publishing import require_remotes
from flows.registry.verification import require_sound
from flows.repository import sources, stages
from flows.repository.files import DamagedVersionError

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


@flow(name="train-vdm")
def train_vdm(
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    publish: bool = False,
    wait_hours: Annotated[float, Field(ge=0, le=24 * 365)] = 12.0,
) -> State[None]:
    """Train, evaluate and register a model with the code of the checked-out commit, and promote it if it is better.

    The name of its final state says what came of it: Promoted, Refused, Waiting, NothingToDo, SourceMissing,
    Drifted, Failed or Interrupted.

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
        project = Project.above(Path.cwd())
        if publish := publish or is_shared():
            require_remotes(project)
        outcome = retrain(project, preset, overrides or {}, force=force, wait_hours=wait_hours)
        if publish and (decided := publish_all(project, outcome.release)):
            outcome = outcome.released(decided)
        return Completed(name=outcome.state, message=str(outcome))
    except EXPECTED as error:
        reason = to_user_error(error)
        outcome = Outcome("Drifted" if isinstance(error, Drifted) else "Failed", reason=str(reason))
        return Failed(name=outcome.state, message=str(outcome), data=reason)
    except STOPPING:
        if is_cancelled():
            raise
        again = f"it goes on when the worker in {Path.cwd()} on {gethostname()} runs again"
        outcome = Outcome("Interrupted", reason=f"Its worker or the machine stopped; {again}.")
        return Crashed(name=outcome.state, message=str(outcome))


def is_cancelled() -> bool:
    """Whether somebody cancels this run, which is being stopped.  Another SIGTERM has no effect from now on."""
    # The end of a worker stops its run twice: by the log that nobody reads, and a moment later by SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
    return state is not None and state.is_cancelling()


def is_shared() -> bool:
    """Whether the worker of this run shares versions with those of other machines; see flows.orchestration.serve."""
    return "VDM_SHARE" in os.environ


def retrain(
    project: Project, preset: str | None, overrides: Mapping[str, Any], *, force: bool, wait_hours: float
) -> Outcome:
    """Do one run: find what is due, run the stages in a new worktree, and release the model.

    Raises UserError, such as exit 2 if git has no identity to commit with.
    """
    require_ready(project)
    base = project.first_commit(shared=is_shared())
    params = compose_params(project, base, preset, overrides)
    due = find_due(project, base, bounded_yaml.parse(params))
    get_run_logger().info("%s%s", due, ", and all stages are to run again" if force else "")
    require_images(due, force=force)
    if due.is_nothing and not force:
        return Outcome("SourceMissing" if due.lacks_source and is_source_gone() else "NothingToDo", reason=str(due))
    with workspace(project, name_champion(project, params), base) as run:
        outcome = Outcome("NothingToDo", without_source=due.without_source)
        if due.lacks_source or sources.is_tracked(run, due.source):
            result_of(bring_source(run, due, return_state=True), "source")
        if force or not result_of(restore(run, due, return_state=True), "restore"):
            result_of(check_champion(run, return_state=True), "champion")
            outcome = run_stages(run, due, outcome, force=force, wait_hours=wait_hours)
        outcome = conclude(run, outcome)
        (run.folder / layout.COSTS).resolve().unlink(missing_ok=True)
        return outcome


def require_ready(project: Project) -> None:
    """Prepare the project for a run.  Raises UserError if git has no identity, or a remote does not answer."""
    project.require_identity()
    if project.git_lines("status", "--porcelain", "--untracked-files=no"):
        get_run_logger().warning("%s has uncommitted changes, which are not part of this run", project.folder)
    if is_shared():
        catch_up(project)
    for name in prune(project):
        get_run_logger().info("removed the worktree of run %s, which ended early", name)


def require_images(due: Due, *, force: bool) -> None:
    """Raise UserError (exit 5) if the source is missing, unless a shared run takes the newest run's images."""
    if not due.lacks_source or (is_shared() and due.same_preparation and not force):
        return
    reason = f"data.source: {due.source} is not on this machine"
    if is_shared() and due.newest:
        reason += ", and the images of the newest run were read by other code or parameters, or are to be read anew"
    raise UserError(f"{reason}; bring it here, or name another place", Exit.MISSING)


def name_champion(project: Project, params: str) -> str:
    """Return a run's params.yaml with the champion's version in place of `train.start_from: champion`.

    Without a champion it is null, and the training begins from noise.
    """
    document = bounded_yaml.load(params)
    if document["train"].get("start_from") != CHAMPION:
        return params
    champion = project.registry.champion
    document["train"]["start_from"] = champion.name if champion else None
    start = (
        f"continues from the champion {champion.name}" if champion else "begins from noise: there is no champion yet"
    )
    get_run_logger().info("training %s", start)
    return bounded_yaml.dump(document)


@task(name="source", task_run_name="source", timeout_seconds=3600 * 6, **RETRIED)
def bring_source(run: Run, due: Due) -> None:
    """Bring a source that DVC tracks to the run's folder, an import up to date; record the images of a missing one.

    Raises UserError (exit 5).
    """
    if due.images == "imported":
        sources.update_import(run, due.source, due.newest)
    elif due.lacks_source and due.newest:
        stages.record_images(run, due.newest)
    else:
        sources.check_out_source(run, due.source)


@task(name="restore", task_run_name="restore", timeout_seconds=3600 * 6, **RETRIED)
def restore(run: Run, due: Due) -> bool:
    """Restore what was made before; return whether a commit has all of it already, so that no stage must run.

    Raises NetworkError (exit 5).
    """
    warn = get_run_logger().warning
    complete = stages.restore_outputs(run, shared=is_shared(), recorded=due.lacks_source, warn=warn)
    return complete and find_results(run) is not None


def find_results(run: Run) -> str | None:
    """Return the commit that has the results in the run's folder: the one from which it began, or an earlier run's."""
    return stages.has_results(run, [run.base, *list_results(run.main)])


@task(name="champion", task_run_name="champion", timeout_seconds=3600 * 6, **RETRIED)
def check_champion(run: Run) -> None:
    """Verify the champion, and fetch its model into the run's folder, where the new model will be compared with it.

    Another folder may still know what DVC's remote has lost.  Raises UserError (exit 5).
    """
    try:
        if champion := run.registry.champion:
            require_sound(run, champion)
            fetch(run, champion)
    except UserError as error:
        message = f"no comparison with the champion is possible: {error}"
        if isinstance(error, DamagedVersionError):
            again = "`git checkout TAG && make repro` makes its files again, given the same images"
            message += f"; {again}; `vdmctl rollback` takes an earlier champion, or says how to go on without one"
        raise type(error)(message, error.code) from error


def run_stages(run: Run, due: Due, outcome: Outcome, *, force: bool, wait_hours: float) -> Outcome:
    """Run the stages; return the outcome with what is known of the images.

    It ends after `download` if files changed and the images are the newest run's, by the same code and parameters.
    """
    get_run_logger().info("run %s of commit %s in %s", run.name, run.base[:12], run.folder)
    for stage in stages.stage_names(run):
        if stage == stages.DOWNLOAD and due.lacks_source:
            continue
        run_stage(stage, run, force=force, wait_hours=wait_hours)
        if stage == stages.DOWNLOAD and (damaged := run.images.description.damaged):
            outcome = outcome._replace(damaged=describe_damaged(damaged))
        if stage == stages.DOWNLOAD and due.newest:
            if due.same_code and due.same_parameters and not force and has_same_images(run.images, due.newest):
                (run.folder / layout.DVC_LOCK).write_bytes(due.newest.content(layout.DVC_LOCK) or b"")
                return outcome
            if due.same_preparation:
                outcome = outcome._replace(
                    arrivals=result_of(compare_images(run, due.newest, return_state=True), "images")
                )
        if stage == "validate" and due.newest and outcome.arrivals and outcome.arrivals.added:
            outcome = outcome._replace(odd=result_of(find_odd(run, due.newest, return_state=True), "odd"))
    artifacts.show_results(run.folder, run.reports)
    return outcome


def run_stage(stage: str, run: Run, *, force: bool, wait_hours: float) -> None:
    """Run the task of a stage, and check for drift after `validate`.  Raises UserError if it fails."""
    # Called, not submitted: a submitted task would not be stopped when the run is cancelled.
    state = reproduce.with_options(
        name=stage,
        task_run_name=stage,
        timeout_seconds=3600 * TIMEOUT_HOURS[stage] if stage in TIMEOUT_HOURS else None,
        retries=2 + int(3600 * wait_hours / BUSY_SECONDS),
        retry_condition_fn=while_busy(time.monotonic() + 3600 * wait_hours),
    )(stage, run, force, return_state=True)
    if stage != "validate":
        result_of(state, f"stage {stage}")
        return
    docs = artifacts.show_data_docs(run.folder, run.reports)
    try:
        result_of(state, f"stage {stage}")
    except UserError as error:
        if error.code is not Exit.INVALID_DATA:
            raise
        # The error names no run, since messages about the same failure are gathered by its text.
        get_run_logger().error("kept as %s", docs.relative_to(run.main.folder))
        raise UserError(f"{error}, kept in the newest folder of {layout.RUN_REPORTS}", error.code) from error
    result_of(check_drift(run, return_state=True), "drift")


def while_busy(deadline: float) -> Callable[[Any, Any, State[Any]], bool]:
    """Return the condition of a retry: until the deadline if the device is busy, twice if the network failed."""

    def may_help(task: Any, run: Any, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        busy = isinstance(error, UserError) and error.code is Exit.BUSY
        return (busy and time.monotonic() < deadline) or (isinstance(error, NetworkError) and run.run_count <= 2)

    return may_help


@task(cache_policy=NO_CACHE, retry_delay_seconds=BUSY_SECONDS)
def reproduce(stage: str, run: Run, force: bool) -> None:
    """Run `dvc repro` for one stage.  Raises UserError."""
    options = ["--force"] if force else []
    try:
        if is_shared() and not force:
            stages.restore_stage(run, stage)
        look = artifacts.ProgressBar(run.folder).look if stage == "train" else None
        with count_costs(run.folder, stage, cards_of(run) if stage == "train" else 0):
            stream(["dvc", "repro", "--single-item", stage, *options], run.folder, look)
    except UserError as error:
        raise type(error)(f"stage {stage} failed: {error}", error.code) from error


def cards_of(run: Run) -> int:
    """Return how many cards a training of the run uses."""
    train = run.params.train
    return train.num_devices if train.device.startswith("cuda") or (train.device == "auto" and DRIVER.exists()) else 0


def conclude(run: Run, outcome: Outcome) -> Outcome:
    """Commit the results on the run's branch and release the model, unless an earlier commit has them.

    The results of a run that was killed before its decision are released.
    """
    made = find_results(run)
    if made and not run.main.is_undecided(made):
        return outcome._replace(reason=say_nothing_to_do(run.main, made))
    if not made:
        # The card in the model folder is cached by DVC and not in git.
        (run.folder / layout.RUN_CARD).write_bytes((run.folder / layout.CARD).read_bytes())
        result = bits(read_document(BoundMetrics, run.folder / layout.METRICS))
        made = run.commit(f"Retrain: {result}")
        get_run_logger().info("%s is commit %s on branch %s", result, made[:12], run.branch)
        if is_shared():
            catch_up(run.main)  # the champion may be another one by now
    outcome = outcome.released(release(run, made))
    if costs := known_costs(run.folder):
        outcome = outcome._replace(costs=costs.words)
    return outcome


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
