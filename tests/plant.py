"""Run the whole retraining loop with `vdmctl serve`: a real Prefect server and worker on a loopback port."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from project import Sandbox

from flows.orchestration.runs import engines

# Training that goes on until a test ends it, and may be continued then.
ENDLESS = {"train.steps": 1_000_000, "train.checkpoint_every_steps": 100, "train.log_every": 1000}

# How often the server's services work: schedules more often than by default, for shorter waits, and the others seldom.
SELDOM = ("PAUSE_EXPIRATIONS", "CLEANUP_RECONCILER", "REPOSSESSOR", "CANCELLATION_CLEANUP", "FOREMAN", "LATE_RUNS")
SERVICES = {"SCHEDULER": 5, "SCHEDULER_RECENT_DEPLOYMENTS": 60} | dict.fromkeys(SELDOM, 60)
LOOPS = {f"PREFECT_SERVER_SERVICES_{name}_LOOP_SECONDS": str(seconds) for name, seconds in SERVICES.items()}
# Below the ports that systems give to programs which do not choose one, and others for every pytest process.
PORTS = count(20_000 + 4 * (os.getpid() % 3000))


def is_free(port: int) -> bool:
    """Whether no program listens on the port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Plant:
    """A project with a bare git remote and a DVC remote, served by `vdmctl serve`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.project = Sandbox(folder / "project")
        self.remote = folder / "remote.git"
        self.project.git("init", "--quiet", "--bare", str(self.remote))
        self.project.git("remote", "add", "origin", str(self.remote))
        self.project.dvc("remote", "add", "--default", "storage", "../storage")
        self.project.git("commit", "--quiet", "--all", "--message=Remote")
        self.port = next(port for port in PORTS if is_free(port))
        home = {"PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.environment = self.project.environment | home | LOOPS | environment
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.client = SyncPrefectClient(self.url)
        self.log = folder / "log"
        self.log.touch()

    def serve(self, *options: str) -> None:
        """Start `vdmctl serve`, and wait until it is ready."""
        with self.log.open("a") as log:
            before = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "serve", "--port", str(self.port), *options],
                cwd=self.project.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(lambda: "serving at" in self.log.read_text()[before:] or self.process.poll() is not None, 600)
        assert self.process.poll() is None, self.log.read_text()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop `vdmctl serve` by SIGINT, as Ctrl-C does, or by another signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(300)

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the console script `prefect` in the project's folder."""
        script = str(Path(sys.executable).with_name("prefect"))
        return subprocess.run(
            [script, *arguments], cwd=self.project.folder, env=self.environment, capture_output=True, text=True
        )

    def status(self) -> dict[str, Any]:
        """Return what `vdmctl status` prints."""
        command = [sys.executable, "-m", "flows.cli", "status", "--json"]
        done = subprocess.run(command, cwd=self.project.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode in (0, 5), done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def retrain_by_command(self, name: str, **parameters: object) -> FlowRun:
        """Start a run of the deployment as a user does."""
        given = [f"--param={key}={json.dumps(value)}" for key, value in parameters.items()]
        started = self.prefect("deployment", "run", name, *given)
        assert started.returncode == 0, started.stdout + started.stderr
        return self.read(UUID(next(line.split()[-1] for line in started.stdout.splitlines() if "UUID" in line)))

    def retrain(self, **parameters: object) -> FlowRun:
        """Start a run."""
        deployment = self.client.read_deployment_by_name("train-vdm/train-vdm")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def finish(self, run: FlowRun, seconds: float = 600) -> tuple[str, str]:
        """Wait until a run has ended; return the name of its state and its message."""
        wait_until(lambda: self.state(run).is_final(), seconds, self.log, every=1.0)
        return str(self.state(run).name), str(self.state(run).message)

    def read(self, run: UUID) -> FlowRun:
        """Return a run as the server describes it."""
        return self.client.read_flow_run(run)

    def state(self, run: FlowRun) -> Any:
        """Return the state of a run."""
        return self.read(run.id).state

    def logged(self, run: FlowRun) -> str:
        """Return the run's log.  Wait for its last line, since lines are sent in batches."""
        lines: list[str] = []

        def complete() -> bool:
            chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
            lines[:] = [line.message for line in self.client.read_logs(chosen, limit=200)]
            return any("Finished in state" in line and not line.endswith("()") for line in lines)

        wait_until(complete, 120, self.log, every=1.0)
        return "\n".join(lines)

    def tasks(self, run: FlowRun) -> dict[str, str]:
        """Return the names of the states of a run's tasks, in the order of their start."""
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        listed = self.client.read_task_runs(flow_run_filter=chosen)
        return {each.name: str(each.state_name) for each in sorted(listed, key=lambda each: str(each.start_time))}

    def engine(self) -> psutil.Process:
        """Wait for the process of the only run in progress; return it."""
        name = f"{socket.gethostname()}:{self.project.folder}".replace("/", "\\")
        wait_until(lambda: bool(engines(name)), 120, self.log)
        (found,) = engines(name).values()
        return found

    def branches(self) -> list[str]:
        """Return the branches of runs."""
        return self.project.git("branch", "--list", "runs/*", "--format=%(refname:short)").split()


def served(plant: Plant, database: Path | None) -> Iterator[Plant]:
    """Serve the plant while a fixture is in use, with a copy of an SQLite database if one is given."""
    home = Path(plant.environment["PREFECT_HOME"])
    home.mkdir()
    if database:
        shutil.copy(database, home)
    with plant.client:
        try:
            plant.serve()
            yield plant
        finally:
            plant.stop()


def wait_until(condition: Callable[[], bool], seconds: float, log: Path | None = None, *, every: float = 0.5) -> None:
    """Wait until the condition holds; fail after `seconds` with the end of the log."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long; {log.read_text()[-3000:] if log else ''}"
        time.sleep(every)


def at_work(folder: Path) -> list[str]:
    """Return the command lines of the processes that work in the folder or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def trainers(folder: Path) -> list[str]:
    """Return the command lines of the processes that train in the folder or below it."""
    return [line for line in at_work(folder.resolve()) if {"flows.cli", "train"} <= set(line.split())]
