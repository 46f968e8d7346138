"""Pictures and files in S3, which moto serves, and runs that an event starts, in the retraining loop.

The tests are one story, in the order of the file: all of them use one plant, and four runs.
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import httpx
import pytest
from pictures import noise
from PIL import Image
from plant import PORTS, Plant, is_free, served, wait_until
from prefect.client.schemas.objects import FlowRun

from flows.core import bounded_yaml
from flows.core.errors import Exit, NetworkError
from flows.orchestration import restoring
from flows.orchestration.looking import look
from flows.orchestration.restoring import update_import
from flows.orchestration.workspace import compose_params, workspace

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)

AUTOMATION = "vdm: run when images arrived"
MAKE_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block
Block(name="vdm", url=sys.argv[1], json_data={"text": "{{subject}}: {{body}}"}).save("vdm")
"""


class Bucket:
    """A bucket of an S3 server, with pictures."""

    def __init__(self, folder: Path) -> None:
        port = next(port for port in PORTS if is_free(port))
        self.url = f"http://127.0.0.1:{port}"
        with (folder / "moto.log").open("w") as log:
            command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: not is_free(port), 60, folder / "moto.log")
        assert httpx.put(f"{self.url}/bucket").status_code == httpx.codes.OK

    def put(self, seeds: range) -> None:
        """Add a picture of 8x8 pixels for each seed."""
        with httpx.Client() as client:
            for seed in seeds:
                file = BytesIO()
                Image.fromarray(noise(8, 8, seed=seed)).save(file, "png")
                put = client.put(f"{self.url}/bucket/pictures/{seed}.png", content=file.getvalue())
                assert put.status_code == httpx.codes.OK

    def stop(self) -> None:
        """Stop the server."""
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """Return the bucket with 200 pictures."""
    bucket = Bucket(tmp_path_factory.mktemp("bucket"))
    try:
        bucket.put(range(200))
        yield bucket
    finally:
        bucket.stop()


@pytest.fixture(scope="module")
def plant(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Plant]:
    """Return a running retraining loop, set up as docs/operations.md says, in which an event starts a run at once."""
    plant = Plant(tmp_path_factory.mktemp("plant"))
    project = plant.project
    project.edit("automations.yaml", **{"schedule_after: 60": "schedule_after: 0"})
    project.edit("params.yaml", **{"name: digits": "name: image_folder", "data/published": "data/pictures"})
    for name, path in (("storage", "vdm"), ("pictures", "pictures")):
        project.dvc("remote", "add", "--force", name, f"s3://bucket/{path}")
        project.dvc("remote", "modify", name, "endpointurl", bucket.url)
        project.dvc("remote", "modify", "--local", name, "access_key_id", "key")
        project.dvc("remote", "modify", "--local", name, "secret_access_key", "secret")
    assert project.new_dvc("import-url", "remote://pictures", "data/pictures").returncode == 0
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message=Pictures")
    yield from served(plant, empty_database)


@pytest.fixture(scope="module")
def told(plant: Plant) -> Iterator[list[str]]:
    """Return the texts that arrive at a webhook, whose block is made while the loop runs."""
    with receiver() as (url, texts):
        away = plant.environment | {"PREFECT_API_URL": plant.url}
        subprocess.run([sys.executable, "-c", MAKE_BLOCK, url], env=away, check=True)
        yield texts


@contextmanager
def receiver() -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a webhook's receiver, and the texts that it gets."""
    texts: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", texts
        server.shutdown()


def emit(plant: Plant) -> None:
    """Say that images arrived."""
    said = plant.prefect("event", "emit", "vdm.images.arrived", "--resource-id", "data/pictures")
    assert said.returncode == 0, said.stdout + said.stderr


def by_event(plant: Plant) -> list[FlowRun]:
    """Return the runs that the automation started, newest first."""
    found = plant.client.read_flow_runs(limit=200)
    runs = [run for run in found if run.created_by and run.created_by.display_value == AUTOMATION]
    return sorted(runs, key=lambda run: str(run.created), reverse=True)


def test_events_start_one_run_which_the_limit_may_drop(plant: Plant, told: list[str]) -> None:
    """It is off until somebody switches it on."""
    emit(plant)
    first = plant.retrain()
    wait_until(lambda: plant.state(first).is_running() and f"{AUTOMATION}: off; " in plant.log.read_text(), 120)
    assert by_event(plant) == []
    assert plant.prefect("automation", "resume", AUTOMATION).returncode == 0
    for _ in range(2):
        emit(plant)
    wait_until(lambda: any(run.state_name == "Cancelled" for run in by_event(plant)), 60, plant.log)
    assert [run.state_name for run in by_event(plant)] == ["Cancelled"]
    assert not plant.state(first).is_final()
    assert plant.status()["problems"] == []
    assert plant.finish(first)[0] == "Promoted", plant.logged(first)
    assert not any("NewImages" in text for text in told)


def test_a_run_brings_the_import_up_to_date_and_somebody_is_told(plant: Plant, bucket: Bucket, told: list[str]) -> None:
    bucket.put(range(200, 240))
    while len(by_event(plant)) == 1:  # the minute of the first test may not be over
        emit(plant)
        time.sleep(2)
    run, _ = by_event(plant)
    name, message = plant.finish(run)
    assert name in ("Promoted", "Refused"), f"{message}\n{plant.logged(run)}"
    assert message.endswith("; images: 40 added and 0 removed since vdm@v1.0.0")
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


def test_a_server_that_does_not_answer_is_one_line(
    plant: Plant, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "get_run_logger", lambda: logging.getLogger(__name__))
    root = plant.project.folder
    bucket.stop()
    params, base = compose_params(root, "HEAD", None, {}), plant.project.git("rev-parse", "HEAD").strip()
    found = look(root, base, bounded_yaml.parse(params))
    assert found.images == "imported"
    with workspace(root, params, base) as place, pytest.raises(NetworkError) as raised:
        update_import(place, found.source, found.newest)
    assert raised.value.code is Exit.MISSING
    assert str(raised.value).startswith("data/pictures cannot be brought up to date: Could not connect to the endpoint")
