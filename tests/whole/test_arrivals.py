"""The loop notices new pictures: one story, in the order of the file, of a plant whose source is a folder."""

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plant import Plant, served
from sklearn.datasets import load_digits

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)

FIRST = 900


def draw(folder: Path, first: int, end: int) -> None:
    """Write digits as PNG files of 8 bits, of which they use 17 levels."""
    folder.mkdir(exist_ok=True)
    digits = load_digits().images[first:end].astype(np.uint8) * 15
    for number, image in enumerate(digits, first):
        Image.fromarray(image).save(folder / f"{number:04}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures outside the project."""
    folder = tmp_path_factory.mktemp("source") / "pictures"
    draw(folder, 0, FIRST)
    return folder


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, pictures: Path, empty_database: Path) -> Iterator[Plant]:
    """Return a running loop whose committed parameters name the folder, and limits of the contract for 17 levels."""
    plant = Plant(tmp_path_factory.mktemp("plant"))
    changes = {
        "name: digits ": "name: image_folder ",
        "source: data/published ": f"source: {pictures} ",
        "max_gaps: 0.015": "max_gaps: 0.9",
        "max_skipped: 0.25": "max_skipped: 0.9",
        "min_improvement_bpd: 0.001": "min_improvement_bpd: 0.0",
        "start_from: null ": "start_from: champion ",
    }
    plant.project.edit("params.yaml", **changes)
    plant.project.git("commit", "--quiet", "--all", "--message=Pictures")
    yield from served(plant, empty_database)


def test_the_first_run_makes_the_champion(plant: Plant) -> None:
    run = plant.retrain()
    name, message = plant.finish(run)
    assert (name, message.startswith("vdm@v1.0.0, ")) == ("Promoted", True), message
    found = plant.status()["images"]
    assert (found["state"], found["added"], found["removed"], found["since"]) == ("same", 0, 0, "vdm@v1.0.0")


def test_pictures_that_arrive_make_a_version(plant: Plant, pictures: Path) -> None:
    draw(pictures, FIRST, 1797)
    found = plant.status()["images"]
    assert (found["state"], found["added"], found["removed"], found["since"]) == ("changed", 897, 0, "vdm@v1.0.0")
    run = plant.retrain()
    name, message = plant.finish(run)
    assert name == "Promoted", message
    assert message.startswith("vdm@v1.1.0, ")
    assert "images: 897 added and 0 removed since vdm@v1.0.0" in message
    assert plant.project.vdmctl("verify", "v1.1.0").returncode == 0
    lineage = plant.project.vdmctl("lineage", "v1.1.0", "--json")
    found = json.loads(lineage.stdout)
    assert found["source"]["path"] == str(pictures)


def test_that_version_continued_from_the_champion_and_was_judged_by_images_that_neither_saw(plant: Plant) -> None:
    first, second = (
        json.loads(plant.project.vdmctl("lineage", each, "--json").stdout) for each in ("v1.0.0", "v1.1.0")
    )
    assert (first["parameters"]["train"]["start_from"], first["ancestors"]) == (None, [])
    assert second["parameters"]["train"]["start_from"] == "vdm@v1.0.0"
    (ancestor,) = second["ancestors"]
    assert (ancestor["version"], ancestor["model_sha256"]) == ("vdm@v1.0.0", first["metrics"]["model_sha256"])
    evidence = second["promotions"][0]["evidence"]
    assert (evidence["champion_saw"], evidence["challenger_saw"]) == (0, 0)
    assert (
        evidence["num_decided"] == evidence["comparison"]["num_images"] == second["metrics"]["validation"]["num_images"]
    )
    assert evidence["num_judged"] == 2  # some of them judged v1.0.0
    assert evidence["forgotten"]["num_images"] == first["metrics"]["validation"]["num_images"]


def test_without_new_pictures_there_is_nothing_to_do(plant: Plant, pictures: Path) -> None:
    """A file that is no picture makes no version, either."""
    for extra in (None, "Thumbs.db"):
        if extra:
            (pictures / extra).write_bytes(b"no picture")
        run = plant.retrain()
        name, message = plant.finish(run)
        assert (name, "vdm@v1.1.0 has the results" in message) == ("NothingToDo", True), message
        taken = plant.read(run.id).total_run_time
        assert extra or taken < timedelta(seconds=20), taken  # 1.2 s beside other tests on two cores


def test_a_folder_without_pictures_fails_and_the_champion_stays(plant: Plant, pictures: Path) -> None:
    pictures.rename(pictures.with_name("elsewhere"))
    assert plant.status()["images"]["state"] == "missing"
    name, message = plant.finish(plant.retrain())
    assert (name, message) == (
        "Failed",
        f"data.source: {pictures} is not on this machine; bring it here, or name another place",
    )
    pictures.mkdir()
    name, message = plant.finish(plant.retrain())
    assert (name, "holds no .jpeg, .jpg, .npy, .png" in message) == ("Failed", True), message
    assert plant.status()["registry"]["versions"] == 2
    shutil.rmtree(pictures)
    pictures.with_name("elsewhere").rename(pictures)


def test_pictures_that_are_removed_make_a_version(plant: Plant, pictures: Path) -> None:
    for number in range(50):
        (pictures / f"{number:04}.png").unlink()
    name, message = plant.finish(plant.retrain())
    assert name in ("Promoted", "Refused"), message
    assert "images: 0 added and 50 removed since vdm@v1.1.0" in message
