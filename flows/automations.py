"""What happens by itself about runs that crashed or hang."""

from datetime import timedelta

from prefect.automations import Automation
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
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.states import Crashed

from flows.processes import engines

TERMINAL = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def silent_runs() -> Automation:
    """A run whose process no longer gives a heartbeat is marked as crashed, which makes room for the next one."""
    return Automation(
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
                state=StateType.CRASHED,
                force=True,
                message="No heartbeat for two minutes; the next run continues from the last saved state.",
            )
        ],
    )


def install() -> None:
    """Create the automations that the server does not have yet."""
    wanted = silent_runs()
    try:
        Automation.read(name=wanted.name)  # type: ignore[unused-coroutine]  # not one outside an event loop
    except ValueError:
        wanted.create()


def end_dead_runs(url: str) -> list[str]:
    """Mark the runs as crashed whose process is gone, and return their names; there must be no worker.

    Prefect would count them as running for ever: nobody watches the process of a run whose worker died.
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
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    return [run.name for run in dead]
