"""What the stories of a running loop do: train without an end, cancel, and wait until an interrupted run goes on."""

from interrupted import has_state, states
from plant import ENDLESS, Plant, wait_until
from prefect.client.schemas.objects import FlowRun, State, StateType


def last_step(plant: Plant) -> int:
    """Return the step of the newest saved state; 0 without one."""
    return max((int(path.stem.removeprefix("step-")) for path in states(plant.project)), default=0)


def train(plant: Plant) -> FlowRun:
    """Start an endless run, which continues the one before it, and wait until its trainer has saved a new state."""
    saved = last_step(plant)
    run = plant.retrain(overrides=ENDLESS)
    wait_until(lambda: has_state(plant.project, saved + 100) or plant.state(run).is_final(), 300, plant.log)
    assert not plant.state(run).is_final(), plant.state(run)
    return run


def cancel(plant: Plant, run: FlowRun) -> str:
    """Cancel a run as Prefect's UI does, wait for its end, and return its log."""
    plant.client.set_flow_run_state(run.id, State(type=StateType.CANCELLING, name="Cancelling"))
    assert plant.finish(run)[0] == "Cancelled"
    return plant.logged(run)


def goes_on(plant: Plant, run: FlowRun) -> FlowRun:
    """Wait until another run has taken up the interrupted one and trains on; return it."""
    wait_until(lambda: plant.state(run).name == "Continued", 300, plant.log)
    (again,) = [each for each in plant.client.read_flow_runs(limit=200) if each.name in str(plant.state(run).message)]
    assert again.parameters == run.parameters
    saved = last_step(plant)
    wait_until(lambda: has_state(plant.project, saved + 100), 180, plant.log)
    assert plant.state(again).is_running()
    return again
