"""Start runs by an event, and receive what a webhook is told."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from plant import Plant
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event, Resource

AUTOMATION = "vdm: run when images arrived"
MAKE_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block
Block(name="vdm", url=sys.argv[1], json_data={"text": "{{subject}}: {{body}}"}).save("vdm")
"""


@contextmanager
def told_by(plant: Plant) -> Iterator[list[str]]:
    """Yield the texts that arrive at a webhook, whose block is made while the loop runs."""
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


def emit_by_command(plant: Plant) -> None:
    """Say that images arrived, as a user does."""
    said = plant.prefect("event", "emit", "vdm.images.arrived", "--resource-id", "data/pictures")
    assert said.returncode == 0, said.stdout + said.stderr


def emit(plant: Plant) -> None:
    """Say the same without a new process."""
    event = Event(event="vdm.images.arrived", resource=Resource({"prefect.resource.id": "data/pictures"}))
    plant.client.request("POST", "/events", json=[event.model_dump(mode="json")])  # type: ignore[arg-type]


def by_event(plant: Plant) -> list[FlowRun]:
    """Return the runs that the automation started, newest first."""
    found = plant.client.read_flow_runs(limit=200)
    runs = [run for run in found if run.created_by and run.created_by.display_value == AUTOMATION]
    return sorted(runs, key=lambda run: str(run.created), reverse=True)
