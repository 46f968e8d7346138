"""Measure `vdmctl app`: its start, its answers, many requests at once, and what it and a training cost each other.

    python -m benchmarks.app [--model pretrained/digits_classes] [--requests 200] [--clients 8] [--seconds 20]

The training is that of `benchmarks.speed` on the same device, in one process.  A row of `beside a training` holds the
lock of the device, as a trainer does, so that the app takes one thread, or does not hold it, for comparison.
"""

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import httpx
import numpy as np
import psutil
import torch

from benchmarks import duration, explained, new_parser, positive, show
from flows.process.locks import claim

Figures = dict[str, Any]
REPEATS = 3
ROWS = ["the app alone", "the training alone", "both", "both, without the lock"]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", default="pretrained/digits_classes", help="a model folder or a version")
    parser.add_argument("--requests", type=positive, default=200, help="from all clients together")
    parser.add_argument("--clients", type=positive, default=8)
    parser.add_argument("--seconds", type=duration, default=20.0, help="of the training, for each row")
    parser.add_argument("--steps", type=positive, help="of a drawing; default: as in params.yaml")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="of the app beside a training")
    chosen = parser.parse_args()
    with TemporaryDirectory() as locks, explained(parser):
        os.environ["VDM_LOCK_DIR"] = locks  # other trainers of this machine, if any, are not told from ours
        measure(chosen)


def measure(chosen: argparse.Namespace) -> None:
    """Start an app, ask it, and print the figures."""
    with app(chosen.model) as (client, process, seconds):
        start = {"": "the page, from the command on", "seconds": seconds, "processor_seconds": busy(process)}
        while not {"figures", "problem"} & {key for key, value in client.get("/model").json().items() if value}:
            time.sleep(0.1)  # it reads the results of the model in the background
        asked = {"num_images": 16, "stream": True} | ({"steps": chosen.steps} if chosen.steps else {})
        pictures = {"pictures": [digits(client, asked)]}
        answered = list(answers_of(client, process, asked, pictures))
        together = many(client, process, asked | {"num_images": 4, "stream": False}, pictures, chosen)
        trained = [beside(client, row, asked, chosen.seconds) for row in chosen.rows]
    show({"answers": [start, *answered], **together, "beside a training": trained}, as_json=chosen.json)


def answers_of(client: httpx.Client, process: psutil.Process, drawn: Figures, scored: Figures) -> Iterator[Figures]:
    """Yield the least seconds of some answers, and the processor's, which other programs on the machine do not change.

    Waiting in a loop for another thread counts as a processor's second.
    """
    before = busy(process)
    found = [drawing(client, drawn) for _ in range(REPEATS)]
    spent = (busy(process) - before) / REPEATS
    yield {"": "the first picture of 16", "seconds": min(each["first_picture_s"] for each in found)}
    yield {"": "16 pictures", "seconds": min(each["drawing_s"] for each in found), "processor_seconds": spent}
    before = busy(process)
    seconds = min(seconds_of(client, "/score", scored) for _ in range(REPEATS))
    yield {"": "8 scores", "seconds": seconds, "processor_seconds": (busy(process) - before) / REPEATS}


def busy(process: psutil.Process) -> float:
    """Return the processor's seconds of a process."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def app(model: str) -> Iterator[tuple[httpx.Client, psutil.Process, float]]:
    """Yield a client of a new app, its process, and the seconds until it sent its page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", "app", model, "--port", str(port), "--device", "cpu"]
    with TemporaryFile() as said:
        process = subprocess.Popen(command, stderr=said)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as client:
                while not answers(client):
                    if process.poll() is not None:
                        said.seek(0)
                        raise ValueError(said.read().decode().strip())
                    time.sleep(0.02)
                yield client, psutil.Process(process.pid), time.perf_counter() - begin
        finally:
            process.terminate()
            process.wait()


def answers(client: httpx.Client) -> bool:
    """Whether the app sends its page."""
    try:
        return client.get("/").is_success
    except httpx.TransportError:
        return False


def digits(client: httpx.Client, asked: Figures) -> dict[str, str]:
    """Return eight drawings as a file in a request."""
    found = client.post("/sample", json=asked | {"stream": False}).raise_for_status().json()
    content = BytesIO()
    np.save(content, np.load(BytesIO(base64.b64decode(found["npy"])))[:8])
    return {"name": "drawn.npy", "data": base64.b64encode(content.getvalue()).decode()}


def drawing(client: httpx.Client, asked: Figures) -> Figures:
    """Return the seconds until the first picture of a drawing appears, and until it is finished."""
    begin, first = time.perf_counter(), 0.0
    with client.stream("POST", "/sample", json=asked) as response:
        for line in response.iter_lines():
            if not first and json.loads(line).get("x_hat"):
                first = time.perf_counter() - begin
    return {"first_picture_s": first, "drawing_s": time.perf_counter() - begin}


def seconds_of(client: httpx.Client, path: str, asked: Figures) -> float:
    """Return the seconds until a request is answered."""
    begin = time.perf_counter()
    client.post(path, json=asked).raise_for_status()
    return time.perf_counter() - begin


def many(
    client: httpx.Client, process: psutil.Process, drawn: Figures, scored: Figures, chosen: argparse.Namespace
) -> Figures:
    """Return how many requests of several clients were answered how, how fast, and the app's memory before and after.

    Every other one is a drawing, and a score.  The memory before is that after as many requests as there are clients.
    """

    def ask(number: int) -> tuple[int, float]:
        begin = time.perf_counter()
        path, asked = ("/score", scored) if number % 2 else ("/sample", drawn)
        return client.post(path, json=asked).status_code, time.perf_counter() - begin

    with ThreadPoolExecutor(chosen.clients) as clients:
        list(clients.map(ask, range(chosen.clients)))
        before, begin = process.memory_info().rss, time.perf_counter()
        found = list(clients.map(ask, range(chosen.requests)))
        seconds = time.perf_counter() - begin
    statuses = Counter(status for status, _ in found)
    return {
        **{f"requests_answered_{status}": count for status, count in sorted(statuses.items())},
        "requests_per_second": len(found) / seconds,
        "longest_answer_s": max(each for _, each in found),
        "memory_before_mib": before / 2**20,
        "memory_after_mib": process.memory_info().rss / 2**20,
    }


def beside(client: httpx.Client, row: str, asked: Figures, seconds: float) -> Figures:
    """Return the speed of drawings and of a training, alone or both together."""
    figures: Figures = {"": row}
    if row == "the app alone":
        figures["drawing_s"] = sorted(drawing(client, asked)["drawing_s"] for _ in range(REPEATS))[1]
    elif row == "the training alone":
        figures["training_images_per_second"] = finished(training(seconds))
    else:
        with claim(torch.device("cpu")) if row == "both" else nullcontext():
            process, times = training(seconds), []
            while process.poll() is None:
                times.append(drawing(client, asked)["drawing_s"])
            figures["drawing_s"] = sorted(times)[len(times) // 2]
            figures["training_images_per_second"] = finished(process)
    return figures


def training(seconds: float) -> "subprocess.Popen[str]":
    """Start a training of the digits for so long."""
    options = ["--preset", "digits", "--num-devices", "1", "--device", "cpu", "--seconds", str(seconds), "--json"]
    command = [sys.executable, "-m", "benchmarks.speed", "train", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def finished(process: "subprocess.Popen[str]") -> float:
    """Return the images per second of a training, after its end."""
    output, _ = process.communicate()
    return float(json.loads(output)["images_per_second"])


if __name__ == "__main__":
    main()
