"""The Prefect flow `train-vdm`: run the graph of dvc.yaml, one task per stage, in a new worktree.

DVC decides which stages must run and caches their outputs.  Prefect decides when, retries, and shows the run.  No data
passes between tasks.
"""

import os
import signal
import sys
from argparse import ArgumentParser
from pathlib import Path
from socket import gethostname
from typing import Annotated, Any

from prefect import State, flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed
from pydantic import Field

from flows.core import bounded_yaml, layout
from flows.core.documents import read_document
from flows.core.errors import Exit, UserError, brief
from flows.core.params import CHAMPION
from flows.evaluation.results import BoundMetrics, bits
from flows.orchestration.due import Due, find_due, list_results, say_nothing_to_do
from flows.orchestration.outcome import Outcome, failed
from flows.orchestration.releasing import fetch_published, publish_all, release, release_anew
from flows.orchestration.runs import INTERRUPTED
from flows.orchestration.silence import is_source_gone
from flows.orchestration.staging import run_stages
from flows.orchestration.streaming import EXPECTED, STOPPING, leave_out_tracebacks, to_user_error
from flows.orchestration.tasks import step_over_network
from flows.orchestration.workspace import Instructions, Run, clear_up, compose_params, workspace
from flows.process.ending import fail
from flows.process.groups import settle
from flows.process.lifeline import end_with_parent, end_with_starters, hold_what_starts
from flows.project.project import Project
from flows.registry.costs import known_costs
from flows.registry.fetching import fetch
from flows.registry.publishing import require_remotes
from flows.registry.verification import require_sound
from flows.registry.versions import open_registry
from flows.repository import sources, stages
from flows.repository.files import DamagedVersionError


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
        given = Instructions(preset, overrides or {}, force, "VDM_SHARE" in os.environ, wait_hours)
        if publish := publish or given.shared:
            require_remotes(project.repository)
        outcome = retrain(project, given)
        if publish and (decided := publish_all(project, outcome.release)):
            outcome = outcome.released(decided)
        return Completed(name=outcome.state, message=str(outcome))
    except EXPECTED as error:
        reason = to_user_error(error)
        outcome = failed(reason)
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


def retrain(project: Project, given: Instructions) -> Outcome:
    """Do one run: find what is due, run the stages in a new worktree, and release the model.

    Raises UserError, such as exit 2 if git has no identity to commit with.
    """
    logger = get_run_logger()
    project.repository.require_identity()
    if project.repository.git_lines("status", "--porcelain", "--untracked-files=no"):
        logger.warning("%s has uncommitted changes, which are not part of this run", project.folder)
    for name in clear_up(project):
        logger.info("removed the worktree of run %s, which ended early", name)
    if given.shared:
        release_anew(project, fetch_published(project))
    base = project.repository.first_commit(shared=given.shared)
    params = compose_params(project, base, given)
    due = find_due(project, base, bounded_yaml.parse(params))
    logger.info("%s%s", due, ", and all stages are to run again" if given.force else "")
    require_images(due, given)
    if due.is_nothing and not given.force:
        return Outcome("SourceMissing" if due.lacks_source and is_source_gone() else "NothingToDo", reason=str(due))
    with workspace(project, name_champion(project, params), base, given) as run:
        outcome = Outcome("NothingToDo", without_source=due.without_source)
        if due.lacks_source or sources.is_tracked(run.project.repository, due.source):
            bring_source(run, due)
        if given.force or not restore(run, due):
            check_champion(run)
            outcome = run_stages(run, due, outcome)
        outcome = conclude(run, outcome)
        (run.folder / layout.COSTS).resolve().unlink(missing_ok=True)
        return outcome


def require_images(due: Due, given: Instructions) -> None:
    """Raise UserError (exit 5) if the source is missing, unless a shared run takes the newest run's images."""
    if not due.lacks_source or (given.shared and due.same_preparation and not given.force):
        return
    reason = f"data.source: {due.source} is not on this machine"
    if given.shared and due.newest:
        reason += ", and the images of the newest run were read by other code or parameters, or are to be read anew"
    raise UserError(f"{reason}; bring it here, or name another place", Exit.MISSING)


def name_champion(project: Project, params: str) -> str:
    """Return a run's params.yaml with the champion's version in place of `train.start_from: champion`.

    Without a champion it is null, and the training begins from noise.
    """
    document = bounded_yaml.load(params)
    if document["train"].get("start_from") != CHAMPION:
        return params
    champion = open_registry(project.repository).champion
    document["train"]["start_from"] = champion.name if champion else None
    start = (
        f"continues from the champion {champion.name}" if champion else "begins from noise: there is no champion yet"
    )
    get_run_logger().info("training %s", start)
    return bounded_yaml.dump(document)


@step_over_network("source")
def bring_source(run: Run, due: Due) -> None:
    """Bring a source that DVC tracks to the run's folder, an import up to date; record the images of a missing one.

    Raises UserError (exit 5).
    """
    if due.images == "imported":
        sources.update_import(run.project.repository, due.source, due.newest)
    elif due.lacks_source and due.newest:
        stages.record_images(run.project.repository, due.newest)
    else:
        sources.check_out_source(run.project.repository, due.source)


@step_over_network("restore")
def restore(run: Run, due: Due) -> bool:
    """Restore what was made before; return whether a commit has all of it already, so that no stage must run.

    Raises NetworkError (exit 5).
    """
    warn = get_run_logger().warning
    complete = stages.restore_outputs(
        run.project.repository, shared=run.given.shared, recorded=due.lacks_source, warn=warn
    )
    return complete and find_results(run) is not None


def find_results(run: Run) -> str | None:
    """Return the commit that has the results in the run's folder: the one from which it began, or an earlier run's."""
    return stages.has_results(run.project.repository, [run.base, *list_results(run.main.repository)])


@step_over_network("champion")
def check_champion(run: Run) -> None:
    """Verify the champion, and fetch its model into the run's folder, where the new model will be compared with it.

    Another folder may still know what DVC's remote has lost.  Raises UserError (exit 5).
    """
    try:
        if champion := open_registry(run.project.repository).champion:
            require_sound(run.project.repository, champion)
            fetch(run.project.repository, champion)
    except UserError as error:
        message = f"no comparison with the champion is possible: {error}"
        if isinstance(error, DamagedVersionError):
            again = "`git checkout TAG && make repro` makes its files again, given the same images"
            message += f"; {again}; `vdmctl rollback` takes an earlier champion, or says how to go on without one"
        raise type(error)(message, error.code) from error


def conclude(run: Run, outcome: Outcome) -> Outcome:
    """Commit the results on the run's branch and release the model, unless an earlier commit has them.

    The results of a run that was killed before its decision are released.
    """
    made = find_results(run)
    if made and not run.main.is_undecided(made):
        return outcome._replace(reason=say_nothing_to_do(run.main.repository, made))
    if not made:
        # The card in the model folder is cached by DVC and not in git.
        (run.folder / layout.RUN_CARD).write_bytes((run.folder / layout.CARD).read_bytes())
        result = bits(read_document(BoundMetrics, run.folder / layout.METRICS))
        made = run.commit(f"Retrain: {result}")
        get_run_logger().info("%s is commit %s on branch %s", result, made[:12], run.branch)
        if run.given.shared:
            release_anew(run.main, fetch_published(run.main))  # the champion may be another one by now
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
