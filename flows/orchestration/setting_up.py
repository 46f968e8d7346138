"""Create at the Prefect server what the loop needs and is missing: pool, queues, deployments, automations."""

import subprocess
import sys
from datetime import timedelta

from httpx import HTTPStatusError
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.core import layout
from flows.core.errors import Exit, UserError, brief
from flows.orchestration.files import read_automations, read_deployments
from flows.orchestration.runs import CONTINUED, FLOW, INTERRUPTED, OF_FLOW, POOL
from flows.process.streams import say_on_stderr
from flows.project.project import Project

ENDS = (
    *("Completed", "Promoted", "Refused", "Waiting", "NothingToDo", "SourceMissing"),
    *("Failed", "Drifted", "Cancelled", "Crashed", INTERRUPTED),
)
"""The names of the states in which runs end; Prefect emits the event prefect.flow-run.NAME."""


def set_up(client: SyncPrefectClient) -> None:
    """Create the pool, the deployments of prefect.yaml, and the automation for silent runs.

    What exists stays as it is, with an operator's changes.  Raises UserError (exit 2) if no run could start, since
    prefect.yaml is wrong and the server lacks its deployments.
    """
    make_pool(client, [])
    deploy(client)
    refuse_unknown_parameters(client)
    if not client.read_automations_by_name(silent_runs().name):
        silent_runs().create()


def make_pool(client: SyncPrefectClient, queues: list[str]) -> None:
    """Create the pool and these queues, if they are missing."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    known = {queue.name for queue in client.read_work_queues(POOL)}
    for name in queues:
        if name not in known:
            client.create_work_queue(name, work_pool_name=POOL)


def deploy(client: SyncPrefectClient) -> None:
    """Create the deployments of prefect.yaml that the server lacks.

    An existing one keeps what an operator set, such as its schedules: `prefect deploy --all` would reset them.  A wrong
    prefect.yaml stops nothing if the server knows how to start a run.
    """
    known = {deployment.name for deployment in client.read_deployments(flow_filter=OF_FLOW)}
    try:
        missing = [each.name for each in read_deployments(Project()).deployments if each.name not in known]
        if missing:
            create_deployments(missing)
    except UserError as error:
        if FLOW not in known:
            raise
        say_on_stderr(f"{error}; the server keeps the deployments that it has")


def share_deployments(client: SyncPrefectClient) -> None:
    """Let runs of every deployment share versions, whichever worker takes them; see `flows.orchestration.serve`."""
    for each in client.read_deployments(flow_filter=OF_FLOW):
        environment = (each.job_variables or {}).get("env") or {}
        if "VDM_SHARE" not in environment:
            variables = (each.job_variables or {}) | {"env": environment | {"VDM_SHARE": "1"}}
            path = {"id": each.id}
            client.request("PATCH", "/deployments/{id}", path_params=path, json={"job_variables": variables})


def refuse_unknown_parameters(client: SyncPrefectClient) -> None:
    """Let the server refuse a run with a parameter that the flow lacks, which would crash with a traceback."""
    for each in client.read_deployments(flow_filter=OF_FLOW):
        known = each.parameter_openapi_schema
        if known and "additionalProperties" not in known:
            changed = {"parameter_openapi_schema": known | {"additionalProperties": False}}
            client.request("PATCH", "/deployments/{id}", path_params={"id": each.id}, json=changed)


def create_deployments(names: list[str]) -> None:
    """Create deployments of prefect.yaml.  Raises UserError (exit 2)."""
    command = [sys.executable, "-m", "prefect", "deploy", *(f"--name={name}" for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"{layout.DEPLOYMENTS}: `prefect deploy`: {said[-1]}", Exit.USAGE)


def silent_runs() -> Automation:
    """Return the automation that marks a run without heartbeats as interrupted, so that the next one can start.

    Prefect itself would show a run whose machine failed as running forever.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    message = (
        "No heartbeat for 2 minutes; it goes on when `vdmctl serve` or `vdmctl worker` starts again on its machine."
    )
    return Automation(
        name="vdm: silent runs",
        description=f"A run of {FLOW} without a heartbeat for two minutes is marked as interrupted.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{name}" for name in (*ENDS, CONTINUED))},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOW},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(minutes=2),
        ),
        # Not forced, so Prefect refuses it for a run that has ended meanwhile.
        actions=[ChangeFlowRunState(name=INTERRUPTED, state=StateType.CRASHED, force=False, message=message)],
    )


def automate(client: SyncPrefectClient) -> list[str]:
    """Create the automations of automations.yaml that the server lacks and whose block it has; print a line for each.

    Return a line for everything in the file that is wrong.
    """
    wrong = []
    try:
        entries = read_automations(Project()).automations
    except UserError as error:
        return [str(error)]
    for entry in entries:
        if client.read_automations_by_name(entry.name):
            continue
        block = None
        try:
            if entry.block:
                kind, _, name = entry.block.partition("/")
                block = client.read_block_document_by_name(name, kind).id
        except ObjectNotFound:
            continue  # it is off until somebody makes the block
        try:
            ids = {name: client.read_deployment_by_name(f"{FLOW}/{name}").id for name in entry.deployments}
            client.create_automation(entry.automation(block, ids))
        except ObjectNotFound:
            names = ", ".join(sorted(entry.deployments))
            wrong.append(f"{layout.AUTOMATIONS}: {entry.name}: the server does not have every deployment of {names}")
        except HTTPStatusError as error:
            wrong.append(f"{layout.AUTOMATIONS}: {entry.name}: the server refuses it: {brief(error.response.text)}")
        else:
            since = f", since the block {entry.block} exists" if entry.block else ""
            off = f"off; `prefect automation resume '{entry.name}'` switches it on"
            say_on_stderr(f"{entry.name}: {f'on{since}' if entry.enabled else off}")
    return wrong
