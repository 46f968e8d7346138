"""The state of the retraining loop on this machine, for an operator and for monitoring: `vdmctl status`."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.core import layout
from flows.core.errors import UserError, brief
from flows.orchestration.answers import (
    App,
    Device,
    EndedRun,
    LateRun,
    Schedule,
    Server,
    SourceNow,
    Status,
    UnfinishedRun,
    Versions,
    Worker,
    Worktree,
)
from flows.process.apps import apps_of
from flows.process.locks import folder_of_devices, list_held_locks
from flows.project.project import Project
from flows.registry.versions import ANSWER_SECONDS, Registry
from flows.repository.repository import MODEL, REMOTE
from flows.repository.tags import REFUSED, numbers_of

LEAST_BYTES = 100 * 10**6
"""A disk with less free space is full: a model and its training states may not fit."""


def status(project: Project) -> Status:
    """Return everything.  Its `problems` say what an operator should look at."""
    with ThreadPoolExecutor(1) as pool:
        registered = pool.submit(registry, project)  # it waits for the git remote
        found = Status(
            folder=str(project.folder.absolute()),
            server=server(project),
            devices=devices(),
            apps=apps(project),
            worktrees=worktrees(project),
            registry=registered.result(),
            images=images(project),
            disk_bytes=disk(project),
            disk_free_bytes=shutil.disk_usage(project.folder).free,
        )
    lines = [*problems(found), *silent(project, found), *wrong_files(project)]
    return found.model_copy(update={"problems": lines})


def server(project: Project) -> Server:
    """Return what the Prefect server says about workers, schedules and runs, or why it does not answer.

    The server is the one to which Prefect is set, else that of the `vdmctl serve` in the folder.
    """
    from prefect.settings import get_current_settings

    from flows.orchestration.server import ServerError, configure, connect, find_served_url

    url = get_current_settings().api.url or find_served_url(project.folder) or ""
    if not url:
        return Server(url="", answers=False, reason="not served; start `vdmctl serve`, or set PREFECT_API_URL")
    configure(url)
    try:
        with connect(url) as client:
            return loop(url, client)
    except ServerError as error:
        return Server(url=url, answers=False, reason=error.reason)


def loop(url: str, client: Any) -> Server:
    """Return workers, schedules and runs of the server at the URL."""
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.exceptions import ObjectNotFound

    from flows.orchestration.runs import FLOW, OF_FLOW, POOL, UNFINISHED, filter_states

    def runs(*states: StateType, sort: FlowRunSort, limit: int = 200) -> list[Any]:
        chosen = filter_states(*states)
        return list(client.read_flow_runs(flow_filter=OF_FLOW, flow_run_filter=chosen, sort=sort, limit=limit))

    workers = []
    with suppress(ObjectNotFound):  # no pool yet
        client.read_work_pool(POOL)  # without a pool, the next call raises another error
        workers = client.read_workers_for_work_pool(POOL)
    deployments = client.read_deployments(flow_filter=OF_FLOW)
    planned = runs(StateType.SCHEDULED, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    following = {run.deployment_id: run.expected_start_time for run in reversed(planned)}
    ended = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED)
    last = runs(*ended, sort=FlowRunSort.END_TIME_DESC, limit=1)
    cancelled = runs(StateType.CANCELLED, sort=FlowRunSort.END_TIME_DESC)
    return Server(
        url=url,
        answers=True,
        deployments=[each.name for each in deployments],
        workers=[Worker(name=each.name, status=str(each.status.value)) for each in workers],
        schedules=[
            Schedule(
                deployment=f"{FLOW}/{deployment.name}",
                when=when_of(each.schedule),
                active=each.active and not deployment.paused,
                next_run=time_of(following.get(deployment.id)) if each.active else None,
            )
            for deployment in deployments
            for each in deployment.schedules
        ],
        runs=[
            UnfinishedRun(name=run.name, state=run.state_name, started=time_of(run.start_time))
            for run in runs(*UNFINISHED, sort=FlowRunSort.START_TIME_ASC)
        ],
        late=[
            LateRun(name=run.name, planned=time_of(run.expected_start_time), queue=run.work_queue_name)
            for run in planned
            if run.state_name == "Late"
        ],
        last_run=describe_ending(last[0]) if last else None,
        # Prefect cancels a run of a deployment while another one of it is unfinished.
        dropped=[
            describe_ending(run)
            for run in cancelled
            if is_dropped(run) and not (last and last[0].end_time > run.end_time)
        ][:1],
    )


def when_of(schedule: Any) -> str:
    """Return when a schedule has runs: its cron or rrule, or its interval, and its time zone."""
    when = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None) or f"every {schedule.interval}"
    return f"{when} {schedule.timezone or 'UTC'}"


def is_dropped(run: Any) -> bool:
    """Whether a run was cancelled by its deployment's limit, and not by a person.

    One that an event had started does not count: what arrived is found by the next run.
    """
    by_event = run.created_by is not None and run.created_by.type == "AUTOMATION"
    return not by_event and "concurrency limit" in (run.state.message or "")


def time_of(time: datetime | None) -> str | None:
    """Return a time of the server in whole seconds; None for None."""
    return time.astimezone(UTC).isoformat(timespec="seconds") if time else None


def describe_ending(run: Any) -> EndedRun:
    """Return how a run ended, with the reason unless it ended well or goes on as another run."""
    well = run.state.is_completed() or run.state_name == "Continued"
    reason = None if well else run.state.message or "Prefect knows no reason"
    return EndedRun(name=run.name, state=run.state_name, ended=time_of(run.end_time), reason=reason)


def devices() -> list[Device]:
    """Return the devices of this machine that a trainer holds, and by whom."""
    held = sorted(list_held_locks(folder_of_devices()).items())
    return [Device(device=Path(name).stem, holder=str(holder)) for name, holder in held]


def apps(project: Project) -> list[App]:
    """Return the apps of `vdmctl app` that run for the folder, by what each answers about itself."""
    import httpx

    found = []
    for process, url in apps_of(project.folder):
        try:
            health = httpx.get(f"{url}/health", timeout=ANSWER_SECONDS, trust_env=False).json()
            about = {key: health[key] for key in ("model", "follows_champion", "problem")}
            found.append(App(process=process, url=url, **about))
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            problem = f"does not answer: {brief(error)}"
            found.append(App(process=process, url=url, model=None, follows_champion=None, problem=problem))
    return found


def worktrees(project: Project) -> list[Worktree]:
    """Return the worktrees of runs, and whether their run holds their lock; if not, the next run removes them."""
    folder = project.worktrees
    held = list_held_locks(folder)
    return [Worktree(name=each.name, in_use=f"{each.name}.lock" in held) for each in sorted(folder.glob("*/"))]


def registry(project: Project) -> Versions:
    """Return the number of versions, the champion, and which tags only this repository or only the remote has."""
    try:
        opened = project.registry
        known, reigning = opened.versions, opened.champion
        unpublished, unfetched = (
            compare_tags(opened) if REMOTE in project.repository.git_lines("remote") else (None, None)
        )
    except UserError as error:
        return Versions(problem=str(error))
    return Versions(
        versions=len(known),
        champion=reigning.name if reigning else None,
        champion_bpd=reigning.metrics.bpd if reigning else None,
        hold=opened.hold,
        waiting=opened.version_of(opened.waiting_tag).name if opened.waiting_tag else None,
        unpublished=unpublished,
        unfetched=unfetched,
    )


def images(project: Project) -> SourceNow:
    """Return what a run would find at its source of images, or why none would start."""
    from flows.orchestration.due import find_due_now

    try:
        return find_due_now(project)
    except (OSError, UserError) as error:
        return SourceNow(problem=str(error))


def compare_tags(registry: Registry) -> tuple[list[str], list[str]]:
    """Return the tags that the git remote lacks, by its own list, and its versions that this repository lacks.

    A refused version that `vdmctl prune` removed is not missing.  Raises UserError (exit 5) without an answer.
    """
    project = registry.repository
    here = project.git_lines("tag", "--list", f"{MODEL}@*", f"{MODEL}#*")
    try:
        listed = project.git("ls-remote", "--tags", REMOTE, seconds=ANSWER_SECONDS).decode(errors="replace")
    except UserError as error:
        raise UserError(f"whether {REMOTE} has every version is unknown: {error}", error.code) from error
    commits: dict[str, str] = {}
    for line in listed.splitlines():
        commit, _, ref = line.partition("\t")
        commits[ref.removeprefix("refs/tags/").removesuffix("^{}")] = commit  # an annotated tag's commit comes last
    refused = {tag.commit for tag in registry.tags if tag.stage == REFUSED}
    given_up = {name.partition("!")[0] for name in commits if "!" in name}  # as GTO marks them
    missing = [
        name
        for name, commit in commits.items()
        if numbers_of(name) and "!" not in name and name not in given_up.union(here) and commit not in refused
    ]
    return [tag for tag in here if tag not in commits], missing


def disk(project: Project) -> dict[str, int]:
    """Return the bytes on disk by kind."""
    kinds = {
        "dvc_cache": Path(".dvc/cache"),
        "training_states": layout.TRAININGS,
        "worktrees": layout.WORKTREES,
        "fetched_models": layout.FETCHED,
        "reports_of_runs": layout.RUN_REPORTS,
        "downloads": layout.DOWNLOADS,
        "git": Path(".git"),
    }
    return {kind: size_of(project.folder / path) for kind, path in kinds.items()}


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


def problems(found: Status) -> Iterator[str]:
    """Yield a line for everything that an operator should look at, and what to do."""
    server, registry = found.server, found.registry
    if found.disk_free_bytes < LEAST_BYTES:
        free = f"{found.disk_free_bytes / 1e6:,.1f} MB"
        yield f"{found.folder}: no space is left on the disk ({free}); `vdmctl prune` removes what nothing needs"
    for app in found.apps:
        if app.problem:
            yield f"the app at {app.url}: {app.problem}"
    if server.answers:
        yield from problems_of_loop(server)
    else:
        yield f"{server.url or found.folder}: {server.reason}"
    if found.images.problem:
        yield found.images.problem
    if registry.problem:
        yield registry.problem
        return
    if registry.versions and not registry.champion:
        yield "no version is the champion; `vdmctl promote VERSION` makes one"
    if registry.unpublished:
        others = "`dvc push --all-tags` and `git push --follow-tags` push the rest"
        names = ", ".join(registry.unpublished)
        yield f"{names}: not at {REMOTE}; a run with publish=true pushes what runs made; {others}"
    if registry.unfetched:
        yield f"{', '.join(registry.unfetched)}: at {REMOTE} and not here; `git fetch --tags` brings them"


def silent(project: Project, found: Status) -> Iterator[str]:
    """Yield a line for everything that no longer comes."""
    from flows.orchestration.files import Silence, read_deployments
    from flows.orchestration.silence import silences

    limits = Silence()
    with suppress(UserError):  # `wrong_files` tells it
        limits = read_deployments(project).silence
    try:
        yield from silences(limits, found, datetime.now(UTC))
    except (OSError, UserError) as error:
        yield str(error)


def wrong_files(project: Project) -> Iterator[str]:
    """Yield a line for each file of the loop that is wrong."""
    from flows.orchestration.files import read_automations, read_deployments

    for read in (read_deployments, read_automations):
        try:
            read(project)
        except UserError as error:
            yield str(error)


def problems_of_loop(server: Server) -> Iterator[str]:
    """Yield a line for everything that keeps runs from starting, and for the last run if it failed."""
    if "train-vdm" not in server.deployments:
        yield "the server has no deployment train-vdm; `vdmctl serve` creates it when it starts"
    if not any(worker.status == "ONLINE" for worker in server.workers):
        yield "no worker is online, so no run starts; `vdmctl serve` or `vdmctl worker` starts one"
    for run in server.late:
        queue = run.queue or "default"
        advice = f"is the queue {queue} paused, or no worker with `--queue {queue}` online and free?"
        yield f"run {run.name}, planned for {run.planned}, has not started; {advice}"
    for dropped in server.dropped:
        advice = "another run of its deployment was unfinished; start it again if it is needed"
        yield f"run {dropped.name} was cancelled at {dropped.ended}: {str(dropped.reason).rstrip('.')}; {advice}"
    if (last := server.last_run) and last.reason:
        yield f"the last run, {last.name}, {str(last.state).lower()} at {last.ended}: {last.reason}"
