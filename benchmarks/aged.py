"""Make a repository and a Prefect server as they are after years of retraining, in seconds.

The repository has the shape of a real one: a branch and a commit for every run, tags of versions and champions, notes
of refusals, and outputs in DVC's cache, which all versions share.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.options import own_environment
from flows.core import layout
from flows.orchestration.deployments import FLOW, POOL
from flows.orchestration.server import Api, answers

ROOT = Path(__file__).parents[1]
MODEL: dict[str, Any] = {
    "image_shape": [1, 8, 8],
    "num_levels": 17,
    "schedule": "learned_linear",
    "gamma_0": -7.0,
    "gamma_1": 5.0,
    "width": 8,
    "blocks": 1,
    "attention_everywhere": False,
    "fourier_exponents": [2, 3],
    "norm_groups": 4,
    "norm_eps": 1e-6,
    "dropout": 0.0,
    "augmentation_input": False,
}
GRAPH = f"""artifacts:
  vdm:
    path: {layout.REGISTERED}
    type: model
stages:
  all:
    cmd: "true"
    params: [train]
    outs: [{layout.IMAGES}, {layout.REGISTERED}, {layout.VALIDATION}, {layout.PER_IMAGE}]
    metrics:
    - {layout.METRICS}:
        cache: false
"""
JUDGED_BY = "f" * 64
"""The digest of the validation images, as far as the evidence says."""
IDENTITY = "Benchmark <benchmark@example.org>"
FIRST_SECOND = 1_700_000_000
CHAMPION_EVERY = 10
"""Every tenth version is promoted; the others are refused."""
START_SECONDS = 120.0


class Load(NamedTuple):
    """How much there is: versions, runs with a branch and a commit each, runs at the server, rows of per_image.csv."""

    versions: int
    runs: int
    flow_runs: int
    rows: int


def build(root: Path, load: Load) -> None:
    """Make the repository at `root`."""
    write_project(root, load.rows)
    git(root, "init", "--quiet", "--initial-branch=main")
    record_outputs(root)
    commit_all(root)
    (root / layout.PRIVATE).mkdir()
    git(root, "fast-import", "--quiet", stdin=b"".join(history(root, load)))
    git(root, "pack-refs", "--all")  # as `git gc` does, which commits start from time to time
    git(root, "reset", "--quiet", "--hard")


def git(root: Path, *arguments: str, stdin: bytes | None = None) -> None:
    """Run git, which must succeed."""
    subprocess.run(["git", *arguments], cwd=root, input=stdin, check=True)


def commit_all(root: Path) -> None:
    """Commit all files of a repository whose commits are those of the benchmark."""
    for key, value in (("name", "Benchmark"), ("email", "benchmark@example.org")):
        git(root, "config", f"user.{key}", value)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=Start")


def write_project(root: Path, rows: int) -> None:
    """Write the graph, the parameters and the outputs of a model that was never trained, with `rows` test images."""
    import torch

    from flows.core.checkpoint import model_sha256, save_model
    from flows.evaluation.bound import table
    from flows.images.store import data_sha256, save_images
    from vdm.model import VDM

    root.mkdir(parents=True)
    (root / layout.DVC_GRAPH).write_text(GRAPH)
    (root / layout.PARAMS).write_text((ROOT / layout.PRESETS / "digits.yaml").read_text())
    (root / ".gitignore").write_text(f"{layout.PRIVATE}/\n")
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    sizes = {"train": 64, "validation": 64, "test": rows}
    splits = {split: random.integers(0, 17, (size, 1, 8, 8), dtype=np.uint8) for split, size in sizes.items()}
    save_images(root / layout.IMAGES, splits, {"name": "benchmark", "num_levels": 17})
    save_model(root / layout.REGISTERED, VDM(**MODEL), MODEL)
    digests = {
        "data_sha256": data_sha256(root / layout.IMAGES),
        "model_sha256": model_sha256(root / layout.REGISTERED),
    }
    for path in (layout.VALIDATION, layout.METRICS):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / layout.VALIDATION).write_text(json.dumps({"success": True, **digests}))
    header = "image bpd prior_bpd reconstruction_bpd diffusion_bpd"
    (root / layout.PER_IMAGE).write_text(table(header, range(rows), *random.gamma(2.0, 1.0, (4, rows))))
    (root / layout.METRICS).write_text(metrics(0, rows, digests))


def metrics(number: int, rows: int, digests: dict[str, str]) -> str:
    """Return the metrics.json of a run.  Its length is always the same, which dvc.lock states as its size."""
    terms = {f"{name}_bpd": 0.5 for name in ("prior", "reconstruction", "diffusion")}
    bpd = round(2 - 1e-5 * (number % 10_000) + 1e-9, 9)
    figures = {"bpd": bpd, "bpd_standard_error": 0.01, **terms}
    counts = {"num_images": rows, "times_per_image": 1, "num_timesteps": None, "seed": 0}
    return json.dumps(figures | counts | digests, indent=2) + "\n"


def record_outputs(root: Path) -> None:
    """Put the outputs into DVC's cache, and write dvc.lock."""
    for arguments in (["init"], ["config", "core.analytics", "false"], ["commit", "--force"]):
        command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
        subprocess.run(command, cwd=root, env=os.environ | {"DVC_NO_ANALYTICS": "1"}, check=True)


class Run(NamedTuple):
    """A run: its name, the mark of its commit in the stream of `git fast-import`, its files."""

    name: str
    mark: int
    files: dict[Path, str]


def history(root: Path, load: Load) -> Iterator[bytes]:
    """Yield the stream for `git fast-import`: a commit to main before every run, the runs, the versions."""
    runs = []
    start = b"from refs/heads/main^0\n"
    for number, run in enumerate(described(root, load)):
        # Some file changes between two runs, since people work on the project.
        yield commit("refs/heads/main", run.mark - 1, "Work", {Path("notes.txt"): f"{number}\n"}, start)
        start = b""
        message = f"Retrain\n\nRun: {run.name}"
        yield commit(
            f"refs/heads/{layout.RUN_BRANCHES}{run.name}", run.mark, message, run.files, b"from :%d\n" % (run.mark - 1)
        )
        runs.append(run)
    every = max(1, len(runs) // max(1, load.versions))
    yield from versions(runs[::every][: load.versions])


def described(root: Path, load: Load) -> Iterator[Run]:
    """Yield the runs, each with its own seed in params.yaml and dvc.lock, and its own metrics."""
    params, lock = ((root / path).read_text() for path in (layout.PARAMS, layout.DVC_LOCK))
    before = (root / layout.METRICS).read_text()
    stated = json.loads(before)
    digests = {name: stated[name] for name in ("data_sha256", "model_sha256")}
    for number in range(load.runs):
        found = metrics(number, load.rows, digests)
        seeded = re.sub(r"(?m)^(train:\n(?:  .*\n)*?  seed:) 0", rf"\1 {number + 1}", params)
        locked = re.sub(r"(?m)^( +seed:) 0", rf"\1 {number + 1}", lock).replace(md5(before), md5(found))
        files = {layout.PARAMS: seeded, layout.DVC_LOCK: locked, layout.METRICS: found, layout.RUN_CARD: "# A model\n"}
        yield Run(f"20260101-000000-{number:05x}", 2 * number + 2, files)


def md5(text: str) -> str:
    """Return the md5 of a text."""
    return hashlib.md5(text.encode()).hexdigest()


def versions(runs: list[Run]) -> Iterator[bytes]:
    """Yield the tags of versions and champions, and the notes of refusals."""
    refused = []
    for number, run in enumerate(runs):
        name = f"vdm@v1.{number}.0"
        yield tag(name, run.mark, "Retrain")
        if number % CHAMPION_EVERY == 0:
            yield tag(f"vdm#champion#{number // CHAMPION_EVERY + 1}", run.mark, evidence("promote", name))
        else:
            refused.append(b"N inline :%d\n%s" % (run.mark, data(evidence("refuse", name))))
    if refused:
        yield commit("refs/notes/vdm-refusals", None, "Notes", {}, b"".join(refused))


def evidence(decision: str, version: str) -> str:
    """Return the message of a champion's tag, or the note on a refused version."""
    found = {"decision": decision, "reason": "measured", "challenger": version, "validation_sha256": JUDGED_BY}
    return f"{decision} {version}\n\n{json.dumps(found | {'split': 'validation'}, indent=2)}\n"


def commit(ref: str, mark: int | None, message: str, files: dict[Path, str], rest: bytes = b"") -> bytes:
    """Return a commit in the format of `git fast-import`; `rest` comes after the message."""
    marked = b"" if mark is None else b"mark :%d\n" % mark
    head = f"commit {ref}\n".encode() + marked + f"committer {IDENTITY} {FIRST_SECOND + (mark or 0)} +0000\n".encode()
    changes = b"".join(f"M 644 inline {path}\n".encode() + data(text) for path, text in files.items())
    return head + data(message) + rest + changes + b"\n"


def tag(name: str, mark: int, message: str) -> bytes:
    """Return an annotated tag in the format of `git fast-import`."""
    tagger = f"tagger {IDENTITY} {FIRST_SECOND + mark} +0000"
    return f"tag {name}\nfrom :{mark}\n{tagger}\n".encode() + data(message)


def data(text: str) -> bytes:
    """Return a text in the format of `git fast-import`."""
    content = text.encode()
    return b"data %d\n%s\n" % (len(content), content)


class History:
    """The runs of the flow at a server.  Every tenth failed, the others are completed."""

    def __init__(self, url: str) -> None:
        """Create the work pool and a deployment."""
        self.api = Api(url, 60.0)  # while the server's database is busy
        self.count = 0
        create(self.api, "work_pools/", name=POOL, type="process")
        self.flow = create(self.api, "flows/", name=FLOW)
        self.deployment = create(self.api, "deployments/", name=FLOW, flow_id=self.flow, work_pool_name=POOL)

    def grow(self, count: int) -> None:
        """Create runs until there are `count`."""
        ids = {"flow_id": self.flow, "deployment_id": self.deployment}
        for number in range(self.count, count):
            kind = "FAILED" if number % 10 == 9 else "COMPLETED"
            state = {"type": kind, "name": kind.title(), "message": "measured"}
            create(self.api, "flow_runs/", **ids, name=f"run-{number}", state=state)
        self.count = count


def create(api: Api, path: str, **body: Any) -> str:
    """Create something at the server and return its id."""
    return str(api.ask(path, **body)["id"])


def free_port() -> int:
    """Return the number of a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(home: Path) -> Iterator[History]:
    """Run a Prefect server; yield its history, which is empty."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    settings = {"PREFECT_HOME": str(home), "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=own_environment(**settings), **quiet)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no Prefect server answers at {url}")
            time.sleep(0.3)
        yield History(url)
    finally:
        process.terminate()
        process.wait()
