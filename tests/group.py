"""A project whose trainings use two processes, which may be stopped, and continue to the same bytes."""

import csv
import subprocess
import sys
from pathlib import Path

from interrupted import remove_finished
from project import Sandbox

PARAMS = {
    "num_devices: 1": "num_devices: 2",
    "accumulation: 1": "accumulation: 2",  # so that both are also asked between micro-batches whether to stop
    "checkpoint_every_steps: 500": "checkpoint_every_steps: 5",
    "log_every: 5": "log_every: 1",
    "steps: 20\n": "steps: 30\n",
}


def prepare(folder: Path) -> Sandbox:
    """Return a project with validated images, set up to train with two processes."""
    project = Sandbox(folder)
    project.edit("params.yaml", **PARAMS)
    for stage in ("download", "validate"):
        assert project.vdmctl(stage).returncode == 0
    return project


def train_undisturbed(project: Sandbox) -> bytes:
    """Return the weights of a run that nothing interrupts."""
    result = project.new_vdmctl("train")
    assert result.returncode == 0, result.stderr
    assert "on 2 x cpu in float32" in result.stderr
    assert result.stderr.count("step 30:") == 1  # one process logs
    return weights(project)


def curves(project: Sandbox) -> list[dict[str, float]]:
    with (project.folder / "reports/training/curves.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def weights(project: Sandbox) -> bytes:
    return (project.folder / "models/trained/weights.safetensors").read_bytes()


def start(project: Sandbox, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a training, which may continue from the states of an unfinished one."""
    remove_finished(project)
    command = [sys.executable, *(arguments or ("-m", "flows.cli", "train"))]
    # The agent that a test kills leaves its folder of temporary files.
    environment = project.environment | {"TMPDIR": str(project.folder.parent)} | environment
    return subprocess.Popen(
        command, cwd=project.folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Return the training processes in the order of their start, which is that of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())


def continued(project: Sandbox, process: subprocess.Popen[str], undisturbed: bytes) -> str:
    """Wait for the end of a run that continues from a saved state, and return what it printed.

    Its log and weights are those of a run in one go.
    """
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "continuing from step" in errors
    assert weights(project) == undisturbed
    assert [row["step"] for row in curves(project)] == list(range(1, 31))
    return errors
