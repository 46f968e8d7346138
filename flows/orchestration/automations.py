"""Mark runs as crashed when their process is gone or silent."""

from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.states import Cancelled, Crashed

from flows.orchestration.engines import engines

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
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "train-vdm"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(minutes=2),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                # Not forced, so Prefect refuses it for a run that has ended.  The trigger may miss that end, since an
                # event waits up to five minutes for the event that it follows.
                state=StateType.CRASHED,
                force=False,
                message="No heartbeat for two minutes; the next run continues from the last saved state.",
            )
        ],
    )


def install() -> None:
    """Create the automation at the server, or update the one that an earlier version created."""
    wanted = silent_runs()
    with get_client(sync_client=True) as client:
        existing = client.read_automations_by_name(wanted.name)
        for automation in existing:
            client.update_automation(automation.id, wanted.model_copy(update={"enabled": automation.enabled}))
        if not existing:
            client.create_automation(wanted)


def end_dead_runs(url: str) -> list[str]:
    """End the runs whose process is gone, and return their names.  No worker may be running.

    Without this Prefect would show them as running, since only a worker watches the process of a run.
    """
    states = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    unfinished = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(is_null_=False),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
    )
    ours = FlowFilter(name=FlowFilterName(any_=["train-vdm"]))
    message = "Its process is gone; the next run continues from the last saved state."
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=ours, flow_run_filter=unfinished)
        alive = engines(url)
        dead = [run for run in runs if str(run.id) not in alive]
        for run in dead:
            # Not forced, so a run that has ended meanwhile keeps its state.
            cancelled = run.state is not None and run.state.is_cancelling()
            client.set_flow_run_state(run.id, Cancelled(message=message) if cancelled else Crashed(message=message))
    return [run.name for run in dead]
