"""Automations of the server: mark runs as crashed when their process is gone or silent, and notify somebody."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, UnknownAction
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from pydantic import BaseModel, RootModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.core import layout
from flows.core.errors import Exit, UserError, brief
from flows.orchestration.deployments import FLOW, OF_FLOW, OF_POOL
from flows.orchestration.engines import engines
from flows.orchestration.server import Api, Refused
from flows.process.streams import say_on_stderr

Entry = dict[str, Any]

PROCESS_GONE = "Its process is gone; the next run continues from the last saved state."
NO_PAUSE = "A run of train-vdm cannot be paused, so it was cancelled; the next run continues from the last saved state."
UNKNOWN_RUN = "Flow run not found"  # as Prefect says it
TERMINAL = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def silent_runs() -> AutomationCore:
    """Return the automation that marks a run without heartbeats as crashed, so that the next one can start."""
    return AutomationCore(
        name="vdm: crashed or stuck runs",
        description="A run of train-vdm without a heartbeat for two minutes is marked as crashed.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *TERMINAL},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOW},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(minutes=2),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                # Not forced, so Prefect refuses it for a run that has ended.  The trigger may miss that end: Prefect
                # holds an event for up to 15 minutes until the one before it arrives.
                state=StateType.CRASHED,
                force=False,
                message="No heartbeat for 2 minutes; the next run on that machine continues from the last saved state.",
            )
        ],
    )


def end_dead_runs(api: Api, absent: dict[str, float], *, after: float = 0.0) -> None:
    """End the pool's runs that have had no process for `after` seconds, and print a line for each.

    Without this Prefect could show them as running forever: only a worker watches the process of a run, and its report
    is lost if the server fails just then.  While a worker runs, `after` must give it time to start a process.

    `absent` maps the runs that the last call found without a process to the time when that was first seen.  It is
    updated.  The times are of this machine's monotonic clock, since the server's clock may differ.  Raises OSError if
    the server fails.
    """
    unfinished = {
        "deployment_id": {"is_null_": False},
        "state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}},
    }
    runs = api.ask("flow_runs/filter", flows=OF_FLOW, work_pools=OF_POOL, flow_runs=unfinished)
    alive, now = engines(api.url), time.monotonic()
    gone = {run["id"]: run for run in runs if run["id"] not in alive}
    for ended in absent.keys() - gone.keys():
        del absent[ended]
    for key, run in gone.items():
        if now - absent.setdefault(key, now) >= after:
            end = "CANCELLED" if run["state"]["type"] == "CANCELLING" else "CRASHED"
            # Not forced, so a run that has ended meanwhile keeps its state.
            answer = api.ask(f"flow_runs/{key}/set_state", state={"type": end, "message": PROCESS_GONE})
            if answer["status"] == "ACCEPT":
                say_on_stderr(f"run {run['name']}: its process was gone, so the run was marked as ended")


def stop_unwanted_runs(api: Api, folder: Path) -> None:
    """Stop the folder's runs that were deleted or paused at the server; print a line for each.

    Otherwise their trainer would keep the device, although Prefect does not list it any more.  Resuming a paused run
    would start a second process of it.  Raises OSError if the server fails.
    """
    for run, pid in engines(api.url, folder).items():
        try:
            found = api.get(f"flow_runs/{run}")
        except Refused as error:
            if UNKNOWN_RUN not in error.said:  # for example, something else answers at this port
                raise
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # its children save their state; the server would refuse its report
            say_on_stderr(f"run {run}: it was deleted while it was in progress, so its process was stopped")
            continue
        if found["state"]["type"] == "PAUSED":
            cancelling = {"type": "CANCELLING", "name": "Cancelling", "message": NO_PAUSE}
            api.ask(f"flow_runs/{run}/set_state", state=cancelling, force=True)  # the worker then stops it
            say_on_stderr(f"run {found['name']}: {NO_PAUSE}")


class Notifications:
    """The notifications of automations.yaml, and for each the block with which it was switched on."""

    def __init__(self) -> None:
        """Read automations.yaml, if the project has it.  Raises UserError (exit 2) for a file that is not valid."""
        self.entries = notifications()
        self.blocks: dict[str, str] = {}

    def look(self, api: Api) -> None:
        """Switch on every notification whose block has appeared or changed; print a line for each.

        A notification that was edited or deleted at the server is restored only with another block or by the next
        `vdmctl serve`.  Raises OSError if the server fails.
        """
        blocks = {name: block(api, name) for name in {entry["block"] for entry in self.entries}}
        for entry in self.entries:
            name, found = entry["name"], blocks[entry["block"]]
            if not found or self.blocks.get(name) == found:
                continue
            try:
                if put(api, automation(entry, found)):
                    say_on_stderr(f"{name}: on, since the block {entry['block']} exists")
            except Refused as error:
                if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:  # it may accept it later, so try again
                    raise
                say_on_stderr(f"{name}: off, since the server refuses it: {error.said}")
            self.blocks[name] = found


def notifications() -> list[Entry]:
    """Return the entries of automations.yaml; none without the file.  Raises UserError (exit 2) if it is not valid."""
    if not layout.AUTOMATIONS.exists():
        return []
    try:
        found: list[Entry] = YAML(typ="safe").load(layout.AUTOMATIONS)["automations"]
        names = {silent_runs().name}
        for entry in found:
            entry["block"].index("/")
            read = AutomationCore.model_validate(automation(entry, str(UUID(int=0))))
            if unknown := ", ".join(ignored({key: value for key, value in entry.items() if key != "block"}, read)):
                raise ValueError(f"{read.name}: Prefect does not know {unknown}")
            if read.name in names:  # `put` finds an automation by its name
                raise ValueError(f"{read.name}: the name of two automations")
            names.add(read.name)
        return found
    except (YAMLError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{layout.AUTOMATIONS}: not a file of automations: {brief(error)}", Exit.USAGE) from error


def ignored(given: Any, read: Any) -> Iterator[str]:
    """Yield the keys and kinds of actions that Prefect does not know, such as misspelt ones: it ignores the keys."""
    if isinstance(read, UnknownAction):
        yield f"the action {read.type}"
    elif isinstance(given, dict) and isinstance(read, BaseModel) and not isinstance(read, RootModel):
        for key, value in given.items():
            if key in type(read).model_fields:
                yield from ignored(value, getattr(read, key))
            else:
                yield str(key)
    elif isinstance(given, list) and isinstance(read, list):
        for one, other in zip(given, read, strict=True):
            yield from ignored(one, other)


def automation(entry: Entry, block: str) -> Entry:
    """Return the automation of an entry with the block's id."""
    found = {key: value for key, value in entry.items() if key != "block"}
    for key in ("actions", "actions_on_trigger", "actions_on_resolve"):
        if key in found:
            found[key] = [{**action, "block_document_id": block} for action in found[key]]
    return found


def block(api: Api, name: str) -> str | None:
    """Return the id of a block TYPE/NAME; None if the server has none."""
    kind, _, own = name.partition("/")
    try:
        return str(api.get(f"block_types/slug/{quote(kind)}/block_documents/name/{quote(own, safe='')}")["id"])
    except Refused as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return None
        raise


def put(api: Api, wanted: Entry) -> bool:
    """Create an automation, or update the one of that name, which stays on or off; return whether it is on."""
    existing = api.ask("automations/filter", automations={"name": {"any_": [wanted["name"]]}})
    for one in existing:
        # The server finds what a trigger waits for by the trigger's id.
        trigger = wanted["trigger"] | {"id": one["trigger"]["id"]}
        api.ask(f"automations/{one['id']}", "PUT", **wanted | {"enabled": one["enabled"], "trigger": trigger})
    return all(one["enabled"] for one in existing or [api.ask("automations/", **wanted)])
