"""Create at the Prefect server what the loop needs and is missing: pool, queues, deployments, automations."""

import subprocess
import sys
from datetime import timedelta
from typing import Any

from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.core import layout
from flows.core.errors import Exit, UserError, brief
from flows.orchestration.runs import CONTINUED, FLOW, INTERRUPTED, OF_FLOW
from flows.process.streams import say_on_stderr

POOL = "vdm"
ENDS = ("Completed", "Promoted", "Refused", "NothingToDo", "Failed", "Drifted", "Cancelled", "Crashed", INTERRUPTED)
"""The names of the states in which runs end; Prefect emits the event prefect.flow-run.NAME."""


def set_up(client: SyncPrefectClient) -> None:
    """Create the pool, the deployments of prefect.yaml, and the automation for silent runs.

    What exists stays as it is, with an operator's changes.  Raises UserError (exit 2) if `prefect deploy` refuses
    prefect.yaml.
    """
    make_pool(client, [])
    deploy(client)
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

    An existing one keeps what an operator set, such as its schedules: `prefect deploy --all` would reset them.
    """
    known = {deployment.name for deployment in client.read_deployments(flow_filter=OF_FLOW)}
    names = [entry["name"] for entry in parsed(layout.DEPLOYMENTS)["deployments"]]
    if missing := [f"--name={name}" for name in names if name not in known]:
        command = [sys.executable, "-m", "prefect", "deploy", *missing]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr + done.stdout).strip().splitlines() or ["no reason given"]
            raise UserError(f"{layout.DEPLOYMENTS}: `prefect deploy`: {said[-1]}", Exit.USAGE)


def parsed(path: Any) -> dict[str, Any]:
    """Return a YAML file of the project's own commit.  Raises UserError (exit 2)."""
    try:
        found: dict[str, Any] = YAML(typ="safe").load(path)
        return found
    except (OSError, YAMLError) as error:
        raise UserError(f"{path}: {brief(error)}", Exit.USAGE) from error


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
        # Not forced, so Prefect refuses it for a run that has ended.  The trigger may miss that end: Prefect holds an
        # event for up to 15 minutes until the one before it arrives.
        actions=[ChangeFlowRunState(name=INTERRUPTED, state=StateType.CRASHED, force=False, message=message)],
    )


def notify(client: SyncPrefectClient) -> None:
    """Create the notifications of automations.yaml that the server lacks and whose block it has; print a line for each.

    Raises UserError (exit 2) for a file that Prefect does not accept.
    """
    entries = parsed(layout.AUTOMATIONS)["automations"] if layout.AUTOMATIONS.exists() else []
    for entry in entries:
        kind, _, block = entry.pop("block").partition("/")
        if client.read_automations_by_name(entry["name"]):
            continue
        try:
            found = client.read_block_document_by_name(block, kind)
        except ObjectNotFound:
            continue
        for action in entry["actions"]:
            action["block_document_id"] = found.id
        try:
            client.create_automation(AutomationCore.model_validate(entry))
        except ValidationError as error:
            raise UserError(f"{layout.AUTOMATIONS}: {entry['name']}: {brief(error)}", Exit.USAGE) from error
        say_on_stderr(f"{entry['name']}: on, since the block {kind}/{block} exists")
