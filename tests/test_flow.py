"""The flow under a real Prefect server and a real process worker, on a loopback port."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import Project


class Plant:
    """A project with a Prefect server, and with a worker that runs its deployment."""

    def __init__(self, folder: Path) -> None:
        self.project = Project(folder / "project")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.environment = self.project.environment | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_CLI_PROMPT": "false",
        }
        self.log = (folder / "log").open("w+")
        self.processes = [self.start("server", "start", "--host", "127.0.0.1", "--port", str(port))]
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/api/health"), 60)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "prefect", *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.project.folder,
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def prefect(self, *arguments: str) -> str:
        """Run a command of Prefect's that must succeed."""
        result = subprocess.run(
            self.command(*arguments),
            cwd=self.project.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def api(self, path: str, **body: object) -> list[dict[str, object]]:
        """Post to the server's API."""
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)  # type: ignore[no-any-return]

    def stop(self) -> None:
        for process in reversed(self.processes):
            os.killpg(process.pid, signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.log.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    (folder / "project").mkdir()
    plant = Plant(folder)
    try:
        plant.prefect("work-pool", "create", "vdm", "--type", "process")
        plant.prefect("deploy", "--all")
        plant.processes.append(plant.start("worker", "start", "--pool", "vdm"))
        yield plant
    finally:
        plant.stop()


def run_deployment(plant: Plant) -> tuple[dict[str, object], list[dict[str, object]], str]:
    """The flow run, its task runs in order, and the text of its log."""
    result = subprocess.run(
        plant.command("deployment", "run", "train-vdm/train-vdm", "--watch"),
        cwd=plant.project.folder,
        env=plant.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    runs = plant.api("flow_runs/filter", sort="START_TIME_DESC", limit=1)
    assert runs, result.stdout + result.stderr
    chosen = {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}}
    tasks = plant.api("task_runs/filter", sort="EXPECTED_START_TIME_ASC", **chosen)
    logs: list[dict[str, object]] = []

    def read_logs() -> bool:
        # Log lines are sent in batches; the last one may come after the run has ended.
        logs[:] = plant.api("logs/filter", logs={"flow_run_id": {"any_": [runs[0]["id"]]}}, limit=200)
        return any("Finished in state" in str(line["message"]) for line in logs)

    wait_until(read_logs, 30)
    return runs[0], tasks, "\n".join(str(line["message"]) for line in logs)


def test_the_deployment_runs_every_stage_then_nothing_then_says_why_it_failed(plant: Plant) -> None:
    run, tasks, log = run_deployment(plant)
    assert run["state_type"] == "COMPLETED"
    names = ["download", "validate", "train", "register", "evaluate", "sample"]
    assert [task["name"] for task in tasks] == names
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    assert (plant.project.folder / "models" / "vdm" / "weights.safetensors").is_file()
    assert "Running stage 'train'" in log
    assert "step 20:" in log

    run, tasks, log = run_deployment(plant)
    assert run["state_type"] == "COMPLETED"
    assert log.count("didn't change, skipping") == len(names)

    plant.project.edit("params.yaml", **{"steps: 20": "steps: 0"})
    run, tasks, log = run_deployment(plant)
    assert run["state_type"] == "FAILED"
    assert [task["state_type"] for task in tasks] == ["COMPLETED", "COMPLETED", "FAILED"]
    assert "stage train failed: params.yaml:" in log
    assert "train.steps: input should be greater than or equal to 1, got 0" in log


def test_a_flow_that_is_stopped_leaves_no_trainer(plant: Plant) -> None:
    project = plant.project
    project.git("checkout", "--quiet", "params.yaml")
    project.edit("params.yaml", **{"steps: 20": "steps: 100000"})
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.train_vdm"],
        cwd=project.folder,
        env=plant.environment,
        stdout=plant.log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    curves = project.folder / "reports" / "training" / "curves.csv"
    curves.unlink(missing_ok=True)
    wait_until(lambda: curves.is_file() and curves.stat().st_size > 100, 60)
    assert trainers(project.folder)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert trainers(project.folder) == []
    project.git("checkout", "--quiet", "params.yaml")


def trainers(folder: Path) -> list[int]:
    """Processes that train in that folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"flows.cli" in command and (entry / "cwd").resolve() == folder.resolve():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found
