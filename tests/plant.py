"""Run the whole retraining loop with `vdmctl serve`: a real Prefect server and worker on a loopback port."""

import http
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
from project import Project, run_vdmctl

from flows.core.errors import Exit

# Training that goes on until a test ends it, and may be continued then.
ENDLESS = {"train.steps": 1_000_000, "train.checkpoint_every_steps": 20, "train.log_every": 1000}

# An endless training mostly sleeps after its first saved state, and leaves the processor to the other tests.
PATIENT = {
    "        for _ in progress:\n": "        for _ in progress:\n"
    f"            time.sleep(1.0 * (steps == {ENDLESS['train.steps']} and trainer.done > 20))\n"
}

# How often the server's services work: schedules more often than by default, for shorter waits, and the others seldom,
# since those of three servers take 8% of a core.
SELDOM = ("PAUSE_EXPIRATIONS", "CLEANUP_RECONCILER", "REPOSSESSOR", "CANCELLATION_CLEANUP", "FOREMAN", "LATE_RUNS")
SERVICES = {"SCHEDULER": 5, "SCHEDULER_RECENT_DEPLOYMENTS": 60} | dict.fromkeys(SELDOM, 60)
# A worker asks for runs every two seconds by default.
WORKER = {"PREFECT_WORKER_QUERY_SECONDS": "4"}
LOOPS = {f"PREFECT_SERVER_SERVICES_{name}_LOOP_SECONDS": str(seconds) for name, seconds in SERVICES.items()}
# Below the ports that systems give to programs which do not choose one, and others for every pytest process.
PORTS = count(20_000 + 4 * (os.getpid() % 3000))


def is_free(port: int) -> bool:
    """Whether no program listens on the port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Plant:
    """A project with a bare git remote and a DVC remote, served by `vdmctl serve`."""

    def __init__(self, folder: Path, project: Project | None = None, **environment: str) -> None:
        self.project = project or Project(folder / "project")
        if not project:
            self.project.edit("flows/training/fitting.py", **PATIENT)
        self.remote = folder / "remote.git"
        self.project.git("init", "--quiet", "--bare", str(self.remote))
        self.project.git("remote", "add", "origin", str(self.remote))
        self.project.dvc("remote", "add", "--default", "storage", "../storage")
        self.project.git("commit", "--quiet", "--all", "--message=Remote")
        self.port = next(port for port in PORTS if is_free(port))
        home = {"PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        home |= {"PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"}  # seconds of work, and few tests need blocks
        self.environment = self.project.environment | home | LOOPS | WORKER | environment
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.log = folder / "log"
        self.authorization: dict[str, str] = {}
        self.token: dict[str, str] = {}

    def serve(self, *options: str) -> None:
        """Start `vdmctl serve`, and wait until it is ready."""
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "serve", "--port", str(self.port), *options],
                cwd=self.project.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(lambda: "serving at" in self.log.read_text() or self.process.poll() is not None, 600)
        assert self.process.poll() is None, self.log.read_text()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the console script `prefect` in the project's folder."""
        script = str(Path(sys.executable).with_name("prefect"))
        return subprocess.run(
            [script, *arguments], cwd=self.project.folder, env=self.environment, capture_output=True, text=True
        )

    def status(self) -> dict[str, Any]:
        """Return what `vdmctl status` prints."""
        environment = self.environment | {"PREFECT_API_URL": self.url}
        done = run_vdmctl(self.project.folder, environment, "status", "--json")
        assert done.returncode == (Exit.MISSING if json.loads(done.stdout)["problems"] else Exit.DONE), done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def retrain_by_command(self, name: str, **parameters: object) -> str:
        """Start a run of the deployment as a user does, which takes a second of imports; return its id."""
        given = [f"--param={key}={json.dumps(value)}" for key, value in parameters.items()]
        started = self.run("deployment", "run", name, *given)
        assert started.returncode == 0, started.stdout + started.stderr
        return next(line.split()[-1] for line in started.stdout.splitlines() if "UUID" in line)

    def retrain(self, **parameters: object) -> str:
        """Start a run; return its id."""
        return self.retrain_by("train-vdm", **parameters)

    def retrain_by(self, name: str, **parameters: object) -> str:
        """Start a run of a deployment; return its id."""
        deployment = self.api(f"deployments/name/train-vdm/{name}")["id"]
        return str(self.api(f"deployments/{deployment}/create_flow_run", parameters=parameters)["id"])

    def cancel(self, run: str) -> None:
        """Ask a run to stop, and wait until it has."""
        self.api(f"flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
        assert self.finish(run)[0] == "CANCELLED"

    def finish(self, run: str, seconds: float = 600) -> tuple[str, str]:
        """Wait until a run has ended; return its state and message."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
        wait_until(lambda: self.read(run)["state"]["type"] in ends, seconds, self.log, every=2.0)
        state = self.read(run)["state"]
        return state["type"], state["message"]

    def read(self, run: str) -> dict[str, Any]:
        """Return a run as the server describes it."""
        return self.api(f"flow_runs/{run}")  # type: ignore[no-any-return]

    def lines(self, run: str) -> list[str]:
        """Return the lines of the run's log that have arrived."""
        found = self.api("logs/filter", logs={"flow_run_id": {"any_": [run]}}, limit=200, sort="TIMESTAMP_ASC")
        return [line["message"] for line in found]

    def add_schedule(self, name: str, cron: str) -> None:
        """Add a schedule to a deployment, FLOW/DEPLOYMENT."""
        deployment = self.api(f"deployments/name/{name}")["id"]
        self.send(f"deployments/{deployment}/schedules", [{"active": True, "schedule": {"cron": cron}}])

    def remove_schedules(self, name: str) -> None:
        """Remove all schedules of a deployment, FLOW/DEPLOYMENT."""
        deployment = self.api(f"deployments/name/{name}")
        for schedule in deployment["schedules"]:
            self.api(f"deployments/{deployment['id']}/schedules/{schedule['id']}", "DELETE")

    def remove_states(self) -> None:
        """Remove the saved states of all training runs."""
        for folder in (self.project.folder / ".vdm" / "runs").iterdir():
            shutil.rmtree(folder)

    def logged(self, run: str) -> str:
        """Return the run's log.  Wait for its last line, since lines are sent in batches."""
        lines: list[str] = []

        def complete() -> bool:
            lines[:] = self.lines(run)
            return any("Finished in state" in line and not line.endswith("()") for line in lines)

        wait_until(complete, 300, every=2.0)
        return "\n".join(lines)

    def api(self, path: str, method: str | None = None, **body: object) -> Any:
        """Send a request to the server: a GET, or with a body a POST or `method`."""
        return self.send(path, body, method)

    def send(self, path: str, body: object, method: str | None = None) -> Any:
        """Do what `api` does, with any JSON as the body, and a CSRF token for a change."""
        headers = {"Content-Type": "application/json"} | self.authorization
        if body or method:
            headers |= self.csrf_headers()
        content = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{self.url}/{path}", data=content, headers=headers, method=method)
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request) as response:
                    return json.loads(response.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    raise
                error.close()
            time.sleep(1)  # SQLite was busy

    def csrf_headers(self) -> dict[str, str]:
        """Return the headers that permit a change; the server's database keeps them for an hour."""
        if not self.token:
            client = str(uuid.uuid4())
            token = self.api(f"csrf-token?client={client}")["token"]
            self.token = {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token}
        return self.token

    def answers(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(self.api("health"))
        except OSError:
            return False

    def stop(self) -> str:
        """Stop `vdmctl serve` by SIGINT, as Ctrl-C does; return its output."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(300)
        return self.log.read_text()

    def branches(self) -> list[str]:
        """Return the branches of runs."""
        return self.project.git("branch", "--list", "runs/*", "--format=%(refname:short)").split()

    def worktrees(self) -> list[Path]:
        """Return the worktrees of runs."""
        return list((self.project.folder / ".vdm" / "worktrees").glob("*/"))


def served(plant: Plant, database: Path | None) -> Iterator[Plant]:
    """Serve the plant while a fixture is in use, with a copy of an SQLite database if one is given."""
    home = Path(plant.environment["PREFECT_HOME"])
    home.mkdir()
    if database:
        shutil.copy(database, home)
    try:
        plant.serve()
        yield plant
    finally:
        plant.stop()


def wait_until(condition: Callable[[], bool], seconds: float, log: Path | None = None, *, every: float = 0.2) -> None:
    """Wait until the condition holds; fail after `seconds` with the end of the log."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long; {log.read_text()[-3000:] if log else ''}"
        time.sleep(every)


def killed(*pids: int) -> None:
    """Kill processes, and wait until they are gone."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 60)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(pid: int) -> dict[str, int]:
    """Return the children of a process by the Python module and command that they run."""
    found = {}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            command = (Path("/proc") / child / "cmdline").read_text().split("\0")
            found[" ".join(command[2:4])] = int(child)
    return found


def trainers(folder: Path) -> list[int]:
    """Return the processes that train in the folder or below it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            inside = (entry / "cwd").resolve().is_relative_to(folder.resolve())
            if b"flows.cli" in command and b"train" in command and inside:
                found.append(int(entry.name))
        except OSError:
            continue
    return found
