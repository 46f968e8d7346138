"""Runs at the Prefect server and their processes: stop them in order, close dead ones, continue interrupted ones."""

import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from flows.process.groups import STOP_SECONDS, search_path
from flows.process.lifeline import KILL_SECONDS
from flows.process.streams import say_on_stderr

FLOW = "train-vdm"
POOL = "vdm"
OF_FLOW = FlowFilter.model_validate({"name": {"any_": [FLOW]}})
INTERRUPTED, CONTINUED = "Interrupted", "Continued"
"""The names of the state of a run whose process was stopped, and of the same run after another one took it up."""
WORKER = "prefect.worker.name"
"""The label that a worker gives to its runs."""
UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]


def filter_states(*types: StateType) -> FlowRunFilter:
    """Return the filter for runs in states of these types."""
    return FlowRunFilter.model_validate({"state": {"type": {"any_": types}}})


def worker_name() -> str:
    """Return the name of this folder's worker.  Prefect allows no slash in it."""
    return f"{socket.gethostname()}:{Path.cwd()}".replace("/", "\\")


def environment_of_runs() -> dict[str, str]:
    """Return what the runs of this folder's worker need: prefect.yaml names VDM_PROJECT, the folder, and `python3`."""
    return {"VDM_PROJECT": str(Path.cwd()), "PATH": search_path()}


def engines(worker: str) -> dict[UUID, psutil.Process]:
    """Return the processes, by run, that execute runs of the worker with this name or of an earlier one."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            # The engine's children inherit its environment, so the command line must match, too.
            if "prefect.engine" in process.cmdline():
                environment = process.environ()
                if environment.get("PREFECT__WORKER_NAME") == worker:
                    found[UUID(environment["PREFECT__FLOW_RUN_ID"])] = process
    return found


def wait_for(processes: Iterable[psutil.Process]) -> None:
    """Wait until the processes have ended: they need some time to save their states."""
    psutil.wait_procs(list(processes), timeout=KILL_SECONDS + 2 * STOP_SECONDS)


def stop_engines(worker: str) -> list[UUID]:
    """Send SIGTERM to the worker's runs, wait until they have saved and reported their end, and return their ids."""
    found = engines(worker)
    for process in found.values():
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    wait_for(found.values())
    return list(found)


def mark_interrupted(client: SyncPrefectClient, stopped: list[UUID]) -> None:
    """Print a line for each run that was stopped, after marking those that were stopped before they could say why."""
    for key in stopped:
        run = client.read_flow_run(key)
        if run.state and run.state.name == "Crashed":
            run.state = Crashed(name=INTERRUPTED, message="It was stopped while it started.")
            client.set_flow_run_state(key, run.state, force=True)
        if run.state and run.state.name == INTERRUPTED:
            say_on_stderr(f"run {run.name} was interrupted; it goes on when this worker runs again")


def close_dead_runs(client: SyncPrefectClient, worker: str) -> None:
    """End the worker's runs that are unfinished at the server and have no process; print a line for each.

    A run that stays "Running" counts against its deployment's limit, so the server would cancel every later one.  Call
    this before the worker starts.
    """
    wait_for(engines(worker).values())  # they end by themselves when their worker has ended
    for run in runs_of_worker(client, worker, filter_states(*UNFINISHED)):
        state: State[None] = Crashed(name=INTERRUPTED, message="Its worker, `vdmctl serve` or the machine ended.")
        if run.state and run.state.is_cancelling():
            state = Cancelled(message="Its process is gone.")
        client.set_flow_run_state(run.id, state)  # not forced, so a run that has ended meanwhile keeps its state
        say_on_stderr(f"run {run.name}: its process is gone, so it was marked as {state.name}")


def continue_interrupted(client: SyncPrefectClient, worker: str) -> None:
    """Schedule each interrupted run of the worker again, once, with the same parameters; print a line for each.

    One that still saves its state has to wait.
    """
    alive = engines(worker)
    interrupted = FlowRunFilter.model_validate({"state": {"name": {"any_": [INTERRUPTED]}}})
    for run in runs_of_worker(client, worker, interrupted):
        if run.id in alive or run.deployment_id is None:
            continue
        with suppress(ObjectNotFound):  # somebody deleted the deployment
            again = client.create_flow_run_from_deployment(
                run.deployment_id,
                parameters=run.parameters,
                tags=run.tags,
                work_queue_name=run.work_queue_name,
                idempotency_key=f"continues {run.id}",
            )
            message = f"It was interrupted, and goes on as run {again.name}."
            client.set_flow_run_state(run.id, Crashed(name=CONTINUED, message=message), force=True)
            say_on_stderr(f"run {run.name} was interrupted; it goes on as {again.name}")


def runs_of_worker(client: SyncPrefectClient, worker: str, chosen: FlowRunFilter) -> list[FlowRun]:
    """Return the chosen runs that the worker took, and those that no worker has labelled yet."""
    found = client.read_flow_runs(flow_filter=OF_FLOW, flow_run_filter=chosen)
    return [run for run in found if run.deployment_id and run.labels.get(WORKER) in (worker, None)]
