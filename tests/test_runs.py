"""Training loses nothing: real processes, killed and stopped at many points."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from project import ROOT, Project, imports_torch

from flows.errors import Exit, UserError
from flows.params import read_params
from flows.runs import Run
from flows.stages.train import build, resolve
from vdm.checkpoint import save_state


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with validated images and a run of 60 steps that saves its state every 4."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.edit(
        "params.yaml",
        **{
            "checkpoint_every_steps: 500": "checkpoint_every_steps: 4",
            "steps: 20\n": "steps: 60\n",
            "dropout: 0.0": "dropout: 0.2",
            "precision: auto": "precision: float32",
        },
    )
    for stage in ("download", "validate"):
        assert project.vdmctl(stage).returncode == 0
    return project


@pytest.fixture(scope="module")
def undisturbed(project: Project) -> tuple[str, str]:
    """Digests of the weights and of the log of a run that nothing interrupts."""
    result = project.vdmctl("train")
    assert result.returncode == 0, result.stderr
    assert list((project.folder / ".vdm" / "runs").iterdir()) == []  # a run that succeeds is forgotten
    return digests(project)


def digests(project: Project) -> tuple[str, str]:
    names = ("models/trained/weights.safetensors", "reports/training/curves.csv")
    first, second = (hashlib.sha256((project.folder / name).read_bytes()).hexdigest() for name in names)
    return first, second


def start(project: Project) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "train"],
        cwd=project.folder,
        env=project.environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def states(project: Project) -> list[Path]:
    return sorted((project.folder / ".vdm" / "runs").glob("*/step-*.state"))


def wait_for_step(project: Project, process: subprocess.Popen[str], step: int) -> None:
    """Until a state at or after that step is on disk."""
    while not any(int(path.stem.removeprefix("step-")) >= step for path in states(project)):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)


def test_a_run_killed_at_many_points_ends_with_the_same_bits(project: Project, undisturbed: tuple[str, str]) -> None:
    for step in (4, 16, 28, 40, 52):
        process = start(project)
        wait_for_step(project, process, step)
        process.kill()
        process.communicate()
    result = project.vdmctl("train")
    assert result.returncode == 0, result.stderr
    assert "continuing from step" in result.stderr
    assert digests(project) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_saves_and_exits_75(
    number: signal.Signals, project: Project, undisturbed: tuple[str, str]
) -> None:
    process = start(project)
    wait_for_step(project, process, 8)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.RESUMABLE
    assert "vdmctl: stopped at step" in errors.splitlines()[-1]
    assert project.vdmctl("train").returncode == 0
    assert digests(project) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_while_it_starts_exits_75_too(number: signal.Signals, project: Project) -> None:
    process = start(project)
    while not imports_torch(process.pid):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, "vdmctl: stopped; run again\n")


def test_a_second_trainer_is_told_who_holds_the_device(project: Project, undisturbed: tuple[str, str]) -> None:
    process = start(project)
    wait_for_step(project, process, 4)
    os.kill(process.pid, signal.SIGSTOP)
    second = project.vdmctl("train")
    os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.communicate()
    assert second.returncode == Exit.BUSY
    busy = f"cpu is busy: process {process.pid} in {project.folder} trains on it; wait for it or stop it"
    assert busy in second.stderr.splitlines()[-1]
    assert project.vdmctl("train").returncode == 0  # the lock went with its process


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncate, "truncated or damaged"), (lambda path: save_state(path, {"done": 12}), "must hold average, done, ")],
    ids=["truncated", "keys"],
)
def test_a_damaged_newest_state_is_passed_over(
    damage: Callable[[Path], None], reason: str, project: Project, undisturbed: tuple[str, str]
) -> None:
    process = start(project)
    wait_for_step(project, process, 12)
    process.kill()
    process.communicate()
    newest = states(project)[-1]
    damage(newest)
    result = project.vdmctl("train")
    assert f"{newest.name}: {reason}" in result.stderr
    assert "falling back to the state before" in result.stderr
    assert digests(project) == undisturbed


def test_other_parameters_start_afresh(project: Project, undisturbed: tuple[str, str]) -> None:
    process = start(project)
    wait_for_step(project, process, 12)
    process.kill()
    process.communicate()
    project.edit("params.yaml", **{"weight_decay: 0.01": "weight_decay: 0.02"})
    result = project.vdmctl("train")
    project.edit("params.yaml", **{"weight_decay: 0.02": "weight_decay: 0.01"})
    assert result.returncode == 0
    assert "continuing" not in result.stderr
    assert digests(project) != undisturbed
    assert project.vdmctl("train").returncode == 0
    assert digests(project) == undisturbed


def test_a_warmup_longer_than_the_run_is_told(caplog: pytest.LogCaptureFixture) -> None:
    params = read_params(ROOT / "presets" / "digits.yaml")
    config = {"image_shape": (1, 8, 8), "num_levels": 17, **params.model.model_dump()}
    arguments = resolve(params.train, torch.device("cpu"))
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    build(config, arguments | {"steps": 100}, images)
    assert "warmup_steps" not in caplog.text
    build(config, arguments | {"steps": 99}, images)
    assert "train.warmup_steps 100 is above train.steps 99" in caplog.text


def test_a_step_that_does_not_fit_says_what_to_change(project: Project) -> None:
    project.edit("params.yaml", **{"batch_size: 64\n": "batch_size: 300000\n"})
    command = f"ulimit -v 4000000; exec {sys.executable} -m flows.cli train"
    result = project.run("bash", "-c", command)
    project.edit("params.yaml", **{"batch_size: 300000\n": "batch_size: 64\n"})
    assert result.returncode == Exit.USAGE, result.stderr
    assert result.stderr.splitlines()[-1] == (
        "vdmctl: out of memory with 300000 images of train.batch_size at a time; "
        "set train.accumulation: 2 or train.activation_checkpointing: true"
    )


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_state_before(full_disk: Path) -> None:
    run = Run(full_disk / "run", keep=2)
    run.save(1, {"done": 1, "weights": torch.zeros(10_000)})
    with pytest.raises(UserError, match="could not be written: No space left on device") as error:
        run.save(2, {"done": 2, "weights": torch.zeros(100_000)})
    assert error.value.code == Exit.BUG
    assert [path.name for path in run.folder.iterdir()] == ["step-000000001.state"]
    newest = run.newest()
    assert newest is not None
    assert newest["done"] == 1


def test_the_last_states_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", keep=2)
    for step in (5, 10, 15):
        run.save(step, {"done": step})
    assert [path.name for path in run.states()] == ["step-000000010.state", "step-000000015.state"]
    run.remove()
    assert run.newest() is None
