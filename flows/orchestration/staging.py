"""The stages of a run: how long each may take, what follows it, and what is said if it fails.

The names and their order come from dvc.yaml.  A stage that is not in STAGES has no limit, and nothing follows it.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.images.reading import describe_damaged
from flows.orchestration import artifacts
from flows.orchestration.arrivals import has_same_images
from flows.orchestration.checking import check_drift, compare_images, find_odd
from flows.orchestration.due import Due
from flows.orchestration.outcome import Outcome
from flows.orchestration.streaming import stream
from flows.orchestration.tasks import STAGE, RunTask
from flows.orchestration.workspace import Run
from flows.registry.costs import DRIVER, count_costs
from flows.repository import stages

BUSY_SECONDS = 60.0
"""How often a stage looks whether its device is free."""


def compare_downloaded(run: Run, due: Due, outcome: Outcome) -> Outcome:
    """Say which files are damaged, and how the images differ from the newest run's.

    The outcome is one that repeats the newest run if files changed, but images, code and parameters are the same.
    """
    if damaged := run.project.images.description.damaged:
        outcome = outcome._replace(damaged=describe_damaged(damaged))
    if due.newest is None:
        return outcome
    is_same = due.same_code and due.same_parameters and not run.given.force
    if is_same and has_same_images(run.project.images, due.newest):
        (run.folder / layout.DVC_LOCK).write_bytes(due.newest.content(layout.DVC_LOCK) or b"")
        return outcome._replace(is_repeated=True)
    if due.same_preparation:
        outcome = outcome._replace(arrivals=compare_images(run, due.newest))
    return outcome


def compare_validated(run: Run, due: Due, outcome: Outcome) -> Outcome:
    """Show what the contract found, check for drift, and say how odd the new images are."""
    artifacts.show_data_docs(run.folder, run.reports)
    check_drift(run)
    if due.newest and outcome.arrivals and outcome.arrivals.added:
        outcome = outcome._replace(odd=find_odd(run, due.newest))
    return outcome


def keep_findings(run: Run, error: UserError) -> UserError:
    """Keep what the contract found of images that it refuses; return an error that says where."""
    docs = artifacts.show_data_docs(run.folder, run.reports)
    if error.code is not Exit.INVALID_DATA:
        return error
    return UserError(f"{error}, kept as {docs.relative_to(run.main.folder)}", error.code)


class RunStage(NamedTuple):
    """A stage as a run does it."""

    name: str
    hours: float | None = None
    """A stage that takes longer is assumed to hang, and is ended.  None: it may take any time."""
    needs_source: bool = False
    """Whether it is left out on a machine that lacks `data.source`."""
    trains: bool = False
    """Whether it shows a training's progress, and counts the cards that the training uses."""
    follow: Callable[[Run, Due, Outcome], Outcome] = lambda run, due, outcome: outcome
    """What is done after it: return the outcome with what is known then."""
    explain: Callable[[Run, UserError], UserError] = lambda run, error: error
    """What is done if it fails: return the error to raise."""


STAGES = {
    stage.name: stage
    for stage in (
        RunStage("download", 6, needs_source=True, follow=compare_downloaded),
        RunStage("validate", 2, follow=compare_validated, explain=keep_findings),
        RunStage("train", trains=True),
        RunStage("register", 0.5),
        RunStage("evaluate", 48),
        RunStage("features", 6),
        RunStage("sample", 24),
        RunStage("report", 0.5),
    )
}


def run_stages(run: Run, due: Due, outcome: Outcome) -> Outcome:
    """Run the stages; return the outcome with what is known of the images.  It ends early if it repeats a run."""
    get_run_logger().info("run %s of commit %s in %s", run.name, run.base[:12], run.folder)
    for name in stages.stage_names(run.project.repository):
        stage = STAGES.get(name, RunStage(name))
        if stage.needs_source and due.lacks_source:
            continue
        run_stage(stage, run)
        outcome = stage.follow(run, due, outcome)
        if outcome.is_repeated:
            return outcome
    artifacts.show_results(run.folder, run.reports)
    return outcome


def run_stage(stage: RunStage, run: Run) -> None:
    """Run the task of a stage.  Raises UserError if it fails."""
    seconds = 3600 * run.given.wait_hours
    timed = reproduce.with_options(
        name=stage.name,
        task_run_name=stage.name,
        tags={STAGE},
        timeout_seconds=3600 * stage.hours if stage.hours else None,
        retries=2 + int(seconds / BUSY_SECONDS),
        retry_condition_fn=while_busy(time.monotonic() + seconds),
    )
    try:
        RunTask(timed, f"stage {stage.name}")(stage, run)
    except UserError as error:
        raise stage.explain(run, error) from error.__cause__


def while_busy(deadline: float) -> Callable[[Any, Any, State[Any]], bool]:
    """Return the condition of a retry: until the deadline if the device is busy, twice if the network failed."""

    def may_help(task: Any, run: Any, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        busy = isinstance(error, UserError) and error.code is Exit.BUSY
        return (busy and time.monotonic() < deadline) or (isinstance(error, NetworkError) and run.run_count <= 2)

    return may_help


@task(cache_policy=NO_CACHE, retry_delay_seconds=BUSY_SECONDS)
def reproduce(stage: RunStage, run: Run) -> None:
    """Run `dvc repro` for one stage.  Raises UserError."""
    options = ["--force"] if run.given.force else []
    try:
        if run.given.shared and not run.given.force:
            stages.restore_stage(run.project.repository, stage.name)
        look = artifacts.ProgressBar(run.folder).look if stage.trains else None
        with count_costs(run.folder, stage.name, cards_of(run) if stage.trains else 0):
            stream(["dvc", "repro", "--single-item", stage.name, *options], run.folder, look)
    except UserError as error:
        raise type(error)(f"stage {stage.name} failed: {error}", error.code) from error


def cards_of(run: Run) -> int:
    """Return how many cards a training of the run uses."""
    train = run.project.params.train
    return train.num_devices if train.device.startswith("cuda") or (train.device == "auto" and DRIVER.exists()) else 0
