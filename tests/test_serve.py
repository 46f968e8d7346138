"""What stops `vdmctl serve` before it serves, and what it survives; the loop itself is in test_flow.py."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from plant import LONG, Plant, children, trainers, wait_until
from project import ROOT, Project

from flows.errors import Exit

RUN = LONG | {"train.steps": 400}


def serve(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve", *arguments],
        cwd=folder,
        env=os.environ | {"PREFECT_HOME": str(folder), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("how", ["environment", "profile"])
def test_a_server_elsewhere_that_does_not_answer(how: str, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://localhost.localdomain:{free.getsockname()[1]}/api"
    if how == "profile":
        (tmp_path / "profiles.toml").write_text(f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{url}"\n')
    result = serve(tmp_path, **({"PREFECT_API_URL": url} if how == "environment" else {}))
    assert result.returncode == Exit.MISSING, result.stderr
    assert result.stderr == f"vdmctl: no Prefect server answers at {url}, which is Prefect's api.url\n"


def test_a_port_that_something_else_has(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serve(tmp_path, "--port", str(port))
    assert result.returncode == Exit.USAGE, result.stderr
    last = result.stderr.splitlines()[-1]
    assert (
        last == f"vdmctl: no server at http://127.0.0.1:{port}/api: Prefect says above why; --port picks another port"
    )


def test_a_folder_that_is_no_project(tmp_path: Path) -> None:
    result = serve(tmp_path)
    assert result.returncode == Exit.USAGE
    told = f"vdmctl: {tmp_path} has no prefect.yaml; `vdmctl serve` works in the project's folder\n"
    assert result.stderr == told
    assert list(tmp_path.iterdir()) == []


def test_a_second_one_in_the_folder_and_one_in_another_leave_the_first_alone(plant: Plant, tmp_path: Path) -> None:
    second = serve(plant.project.folder, "--port", str(plant.port))
    assert second.returncode == Exit.BUSY
    told = f"process {plant.process.pid} serves {plant.project.folder} already; stop it first"
    assert second.stderr == f"vdmctl: {told}\n"
    other = Project(tmp_path)
    result = serve(other.folder, "--port", str(plant.port))
    assert result.returncode == Exit.BUSY, result.stderr
    assert f"serves {plant.project.folder} on {socket.gethostname()} already; `vdmctl serve" in result.stderr
    steps = plant.api("deployments/name/train-vdm/train-vdm")["pull_steps"]
    assert str(plant.project.folder) in str(steps)


def test_a_worker_that_is_killed_is_replaced_and_its_run_is_continued(plant: Plant) -> None:
    run = train(plant, seed=1)
    os.kill(children(plant.process.pid)["prefect worker"], signal.SIGKILL)
    wait_until(lambda: "`prefect worker start` ended; starting it again" in plant.log.read_text(), 60)
    assert plant.finish(run)[0] == "CRASHED"  # nobody reads what it prints any more
    again = plant.retrain(overrides=RUN | {"train.seed": 1})
    assert plant.finish(again)[0] == "COMPLETED"
    assert "continuing from step" in plant.logged(again)


def test_a_server_that_is_killed_is_replaced(plant: Plant) -> None:
    os.kill(children(plant.process.pid)["prefect server"], signal.SIGKILL)
    wait_until(lambda: "`prefect server start` ended; starting it again" in plant.log.read_text(), 60)
    wait_until(plant.answers, 60)
    assert plant.finish(plant.retrain(overrides=RUN | {"train.seed": 1}))[0] == "COMPLETED"


def test_a_loop_that_is_killed_with_its_run_goes_on_when_it_is_served_again(plant: Plant) -> None:
    run = train(plant, seed=3)
    (trainer,) = trainers(plant.project.folder)
    below = children(plant.process.pid)
    (engine,) = children(below["prefect worker"]).values()
    for pid in (plant.process.pid, engine, trainer):
        os.kill(pid, signal.SIGKILL)
    plant.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below.values()), 60)

    plant.serve()
    assert "died unnoticed; it is marked as crashed" in plant.log.read_text()
    assert plant.read(run)["state"]["type"] == "CRASHED"
    again = plant.retrain(overrides=RUN | {"train.seed": 3})
    assert plant.finish(again)[0] == "COMPLETED"
    assert "continuing from step" in plant.logged(again)


def train(plant: Plant, *, seed: int) -> str:
    """Start a run, and wait until it trains and has a saved state; its id."""
    states = plant.project.folder / ".vdm" / "runs"
    before = set(states.glob("*/*.state"))
    run = plant.retrain(overrides=RUN | {"train.seed": seed})
    wait_until(lambda: bool(set(states.glob("*/*.state")) - before), 90, plant.log)
    return run
