"""Announce the outcome of a run: an event, to which automations can react, and a tag on the run in Prefect's UI."""

from typing import Literal

from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows.orchestration.artifacts import dispensable

Outcome = Literal["promoted", "refused", "failed", "drifted"]
ENDS = {"vdm.promoted", "vdm.refused", "vdm.failed"}
"""The tags that exclude each other."""
ALL = {*ENDS, "vdm.drifted"}


def announce(outcome: Outcome, reason: str, *, model: str = "", bpd: float | None = None) -> None:
    """Emit the event vdm.OUTCOME with the reason and the model, if there is one; tag the run with its name."""
    name = f"vdm.{outcome}"
    run = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
        "prefect.resource.name": flow_run.name,
        "prefect.resource.role": "flow-run",
    }
    with dispensable():
        emit_event(
            name,
            {"prefect.resource.id": f"vdm.model.{model or 'none'}", "prefect.resource.name": model or "no model"},
            related=[run],
            payload={"model": model or None, "bpd": bpd, "reason": reason},
        )
        with get_client(sync_client=True) as client:
            tags = set(client.read_flow_run(flow_run.id).tags)
            if name in ENDS:  # a run can promote its model and then fail to publish it
                tags -= ENDS
            client.update_flow_run(flow_run.id, tags=sorted({*tags, name}))


def forget_outcome() -> None:
    """Remove the tags of an earlier attempt from a run that is repeated, as by Prefect's "Retry"."""
    with dispensable(), get_client(sync_client=True) as client:
        tags = set(client.read_flow_run(flow_run.id).tags)
        if tags & ALL:
            client.update_flow_run(flow_run.id, tags=sorted(tags - ALL))


def announce_drift(line: str) -> None:
    """Announce a drift if the line is the warning that a validation logs under `contract.on_drift: warn`."""
    if "warning: " in line and "reference's" in line:
        announce("drifted", line.strip())
