"""An app that runs in the process of the tests, at a real address."""

import base64
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from project import ROOT

from flows.app.application import Settings, application
from flows.app.champion import Following
from flows.app.listening import open_socket, server_of
from flows.app.queue import Queue
from flows.commands.app import MOST_EVALUATIONS
from flows.commands.arguments import override
from flows.core.model import TrainedModel, open_model
from flows.core.params_file import read_params
from flows.project.project import Project
from flows.registry.versions import Version

DIGITS = ROOT / "pretrained/digits_classes"


class App(NamedTuple):
    """A client of an app, what answers there, and the requests that wait."""

    client: httpx.Client
    following: Following
    queue: Queue

    def post(self, path: str, **asked: Any) -> Any:
        """Return the answer to what is asked."""
        response = self.client.post(path, json=asked)
        assert response.status_code == 200, response.text
        return response.json()

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Wait until no request waits or is worked on."""
        self.wait_until(lambda: not self.client.get("/health").json()["waiting"], seconds)

    @staticmethod
    def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until it is true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.02)


@contextmanager
def run_app(
    model: TrainedModel | None = None,
    version: Version | None = None,
    *,
    root: Path = ROOT,
    password: str | None = None,
    names: Collection[str] = (),
    sampling: dict[str, Any] | None = None,
    most_evaluations: int = MOST_EVALUATIONS,
    **following: bool,
) -> Iterator[App]:
    """Yield an app of a model, by default of the digits with classes, which few steps and times make quick."""
    params = read_params(ROOT / "params.yaml")
    evaluate = override(params.evaluate, {"device": "cpu", "times_per_image": 4, "class_times": 2})
    sample = override(params.sample, {"device": "cpu", "num_timesteps": 3} | (sampling or {}))
    model = model or open_model(DIGITS, name="pretrained/digits_classes")
    followed = Following(Project(root), model, version, sample, **{"follows": False, "share": False, **following})
    queue = Queue(model.device)
    server = server_of(
        application(followed, Settings(evaluate, sample, most_evaluations), queue, password, names), queue
    )
    with open_socket("127.0.0.1", 0) as at:
        thread = Thread(target=server.run, args=([at],))
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{at.getsockname()[1]}", timeout=60) as client:
                client.get("/health")
                yield App(client, followed, queue)
        finally:
            server.should_exit = True
            thread.join()


def npy(array: Any, name: str = "images.npy") -> dict[str, str]:
    """Return an array as a file in a request."""
    content = BytesIO()
    np.save(content, np.asarray(array))
    return sent(name, content.getvalue())


def sent(name: str, content: bytes) -> dict[str, str]:
    """Return a file in a request."""
    return {"name": name, "data": base64.b64encode(content).decode()}


def png(pixels: np.ndarray, name: str = "image.png") -> dict[str, str]:
    """Return a picture in a request."""
    content = BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return sent(name, content.getvalue())


def array(text: str) -> np.ndarray:
    """Return the array in the .npy file of an answer."""
    return np.asarray(np.load(BytesIO(base64.b64decode(text)), allow_pickle=False))


def picture(text: str) -> np.ndarray:
    """Return the pixels of an image in an answer."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))
