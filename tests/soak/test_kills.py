"""Processes of the retraining loop are killed: the run goes on, or says that it ended, and nothing is left.

The tests are one story, in the order of the file: all of them use one plant.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from plant import Plant, at_work, served, trainers, wait_until
from stories import cancel, goes_on, train

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Plant]:
    """Return a running retraining loop for these tests."""
    yield from served(Plant(tmp_path_factory.mktemp("plant")), empty_database)


def test_a_run_goes_on_by_itself_after_its_worker_and_after_the_loop_were_killed(plant: Plant) -> None:
    """The loop is killed as when a machine fails.  A run that a person cancelled stays cancelled."""
    run = train(plant)
    worker = plant.engine().parent()
    assert worker is not None
    worker.kill()
    second = goes_on(plant, run)
    assert [each["name"] for each in plant.status()["server"]["runs"]] == [second.name]
    plant.process.kill()
    plant.process.wait()
    wait_until(lambda: at_work(plant.project.folder) == [], 180, plant.log)
    plant.serve()
    cancel(plant, goes_on(plant, second))


@pytest.mark.parametrize("victim", ["prefect.engine", "dvc"])
def test_a_process_that_is_killed_leaves_no_orphan_and_the_run_says_that_it_ended(plant: Plant, victim: str) -> None:
    run = train(plant)
    engine = plant.engine()
    (killed,) = [each for each in (engine, *engine.children()) if victim in each.cmdline()]
    killed.kill()
    name, message = plant.finish(run)
    assert name == ("Crashed" if victim == "prefect.engine" else "Failed"), message
    wait_until(lambda: trainers(plant.project.folder) == [], 60, plant.log)
    assert any(f"the last run, {run.name}, " in line for line in plant.status()["problems"])
