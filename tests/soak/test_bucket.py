"""Pictures and files in S3, which moto serves, in the retraining loop, where an event starts the runs.

The tests are one story, in the order of the file: all of them use one plant, and three runs.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket import Bucket
from events import AUTOMATION, by_event, emit, told_by
from plant import Plant, served, wait_until

from flows.core import bounded_yaml

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """Return a bucket with 200 pictures."""
    with Bucket(tmp_path_factory.mktemp("bucket")) as bucket:
        bucket.put(range(200))
        yield bucket


@pytest.fixture(scope="module")
def plant(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Plant]:
    """Return a running retraining loop, set up as docs/operations.md says, in which an event starts a run at once."""
    plant = Plant(tmp_path_factory.mktemp("plant"))
    plant.project.edit("automations.yaml", **{"schedule_after: 60": "schedule_after: 0"})
    bucket.import_pictures(plant.project)
    yield from served(plant, empty_database)


@pytest.fixture(scope="module")
def told(plant: Plant) -> Iterator[list[str]]:
    """Return the texts that arrive at a webhook."""
    with told_by(plant) as texts:
        yield texts


def test_the_first_run_makes_the_champion(plant: Plant, told: list[str]) -> None:
    run = plant.retrain()
    assert plant.finish(run)[0] == "Promoted", plant.logged(run)
    assert not any("NewImages" in text for text in told)


def test_a_run_brings_the_import_up_to_date_and_somebody_is_told(plant: Plant, bucket: Bucket, told: list[str]) -> None:
    assert plant.prefect("automation", "resume", AUTOMATION).returncode == 0
    bucket.put(range(200, 240))
    while not by_event(plant):
        emit(plant)
        time.sleep(2)
    (run,) = by_event(plant)
    name, message = plant.finish(run)
    assert name in ("Promoted", "Refused"), f"{message}\n{plant.logged(run)}"
    assert "; images: 40 added and 0 removed since vdm@v1.0.0; cost: " in message
    ran = plant.tasks(run)
    assert (ran["source"], ran["images"]) == ("Completed", "NewImages")
    left = bounded_yaml.parse(plant.project.git("show", "vdm@v1.1.0:data/pictures.dvc"))
    assert left["outs"][0]["nfiles"] == 240
    text = f"vdm: NewImages: 40 added and 0 removed since vdm@v1.0.0 ({run.name}: "
    wait_until(lambda: any(each.startswith(text) for each in told), 60, plant.log)


def test_nothing_more_is_found_and_the_remote_has_all(plant: Plant) -> None:
    run = plant.retrain(publish=True)
    assert plant.finish(run)[0] == "NothingToDo", plant.logged(run)
    assert plant.tasks(run)["publish"] == "Completed"
    cache = plant.project.folder / ".dvc" / "cache"
    cache.rename(plant.project.folder.parent / "lost")
    verified = plant.project.new_vdmctl("verify", "v1.1.0")
    assert verified.returncode == 0, verified.stderr
