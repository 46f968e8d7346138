"""Training that is killed or stopped at any point loses nothing; in real processes."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from interrupted import SLOW, read_until, remove_finished, states, stopped_in_validation, wait_for_step
from plant import trainers, wait_until
from project import Project

from flows.core.errors import Exit


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with validated images, set up for 60 steps with a saved state every 4."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.edit(
        "params.yaml",
        **{
            "checkpoint_every_steps: 500": "checkpoint_every_steps: 4",
            "keep_checkpoints: 2": "keep_checkpoints: 3",
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
    """Return the digests of weights and log of a run that nothing interrupts."""
    result = project.vdmctl("train")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in states(project)] == ["step-000000060.state"]
    return digests(project)


class Killed(NamedTuple):
    """A run that was killed after step 12."""

    process: int
    states: Path
    second: subprocess.CompletedProcess[str]
    """What a second trainer met while the run was stopped."""


@pytest.fixture(scope="module")
def saved(project: Project, undisturbed: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Return a run that was killed after step 12, with a copy of its saved states."""
    process = start(project)
    wait_for_step(project, process, 12)
    os.kill(process.pid, signal.SIGSTOP)
    second = project.vdmctl("train")
    process.kill()
    process.communicate()
    copy = tmp_path_factory.mktemp("states") / "runs"
    (project.folder / ".vdm" / "runs").rename(copy)
    return Killed(process.pid, copy, second)


@pytest.fixture
def killed(project: Project, saved: Killed) -> Project:
    """Return the project as it is after that run was killed."""
    remove_finished(project)
    shutil.copytree(saved.states, project.folder / ".vdm" / "runs", dirs_exist_ok=True)
    return project


def digests(project: Project) -> tuple[str, str]:
    names = ("models/trained/weights.safetensors", "reports/training/curves.csv")
    first, second = (hashlib.sha256((project.folder / name).read_bytes()).hexdigest() for name in names)
    return first, second


def start(project: Project) -> subprocess.Popen[str]:
    """Start a training, which may continue from the states of an unfinished one."""
    remove_finished(project)
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "train"],
        cwd=project.folder,
        env=project.environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_killed_and_stopped_many_times_ends_with_the_same_bits(
    project: Project, undisturbed: tuple[str, str]
) -> None:
    """Also when SIGTERM stops it in its last validation."""
    project.edit("vdm/training/validation.py", **SLOW)
    for number, step in ((signal.SIGINT, 4), (signal.SIGKILL, 16)):
        process = start(project)
        wait_for_step(project, process, step)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        if number is not signal.SIGKILL:
            assert process.returncode == Exit.RESUMABLE
            assert "vdmctl: stopped at step" in errors.splitlines()[-1]
    errors = stopped_in_validation(start(project), after="step 55:")
    assert errors.splitlines()[-1] == "vdmctl: stopped at step 60 of 60; run again to continue"
    assert states(project)[-1].name == "step-000000060.state"
    result = project.new_vdmctl("train")
    project.edit("vdm/training/validation.py", **{new: old for old, new in SLOW.items()})
    assert result.returncode == 0, result.stderr
    assert "continuing from step 60 of 60" in result.stderr
    assert digests(project) == undisturbed
    remove_finished(project)  # it is that of other code


def test_a_finished_run_is_repeated_from_its_last_state_until_its_model_is_registered(
    project: Project, undisturbed: tuple[str, str]
) -> None:
    """So nothing is lost if DVC cannot record the outputs."""
    assert project.vdmctl("train").returncode == 0
    shutil.rmtree(project.folder / "models")
    result = project.vdmctl("train")
    assert "continuing from step 60 of 60" in result.stderr
    assert digests(project) == undisturbed
    (run,) = {path.parent for path in states(project)}
    other = run.with_name("other")
    shutil.copytree(run, other)
    (other / "model_sha256").write_text("0" * 64)
    assert project.vdmctl("register").returncode == 0
    assert list(run.parent.iterdir()) == [other]
    shutil.rmtree(other)


def test_a_second_trainer_is_refused_by_the_device_lock(project: Project, saved: Killed) -> None:
    assert saved.second.returncode == Exit.BUSY
    busy = f"cpu is busy: process {saved.process} in {project.folder} trains on it; wait for it or stop it"
    assert busy in saved.second.stderr.splitlines()[-1]
    with (project.folder / ".vdm/cpu.lock").open("a") as lock:  # which ended with its process
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_trainer_saves_and_ends_when_dvc_is_killed(project: Project) -> None:
    """The steps since the last planned state are saved, and DVC continues from there, with whatever shell it uses."""
    remove_finished(project)
    changes = {"checkpoint_every_steps: 4\n": "checkpoint_every_steps: 5000\n", "steps: 60\n": "steps: 6000\n"}
    project.edit("params.yaml", **changes)
    command = "python -m flows.cli train"
    for shell, called, awaited in (
        ("/bin/bash", command, "step 5:"),
        ("/bin/dash", f"{command}; exit $?", "continuing from step"),
    ):
        project.edit("dvc.yaml", **{command: called})
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "--single-item", "train"],
            cwd=project.folder,
            env=project.environment | {"SHELL": shell},
            stderr=subprocess.PIPE,
            text=True,
        )
        read_until(process, awaited)
        process.kill()
        process.wait()
        wait_until(lambda: not trainers(project.folder), 60)
        assert process.stderr is not None
        assert "vdmctl: stopped" in process.stderr.read()
        process.stderr.close()
        (run,) = {path.parent for path in states(project)}
        project.edit("dvc.yaml", **{called: command})
    shutil.rmtree(run)
    project.edit("params.yaml", **{new: old for old, new in changes.items()})


def test_damaged_states_are_passed_over(killed: Project, undisturbed: tuple[str, str]) -> None:
    *_, older, newest = states(killed)
    for path in (older, newest):
        path.write_bytes(path.read_bytes()[:-100])
    result = killed.new_vdmctl("train")  # the name of a run's folder depends on the modules that a process has imported
    assert result.stderr.count("truncated or damaged; falling back to the state before") == 2
    assert digests(killed) == undisturbed


def test_other_parameters_start_afresh(killed: Project, undisturbed: tuple[str, str]) -> None:
    """And leave the states of the first ones, from which a run may continue."""
    before = states(killed)
    killed.edit("params.yaml", **{"weight_decay: 0.01": "weight_decay: 0.02"})
    result = killed.new_vdmctl("train")
    killed.edit("params.yaml", **{"weight_decay: 0.02": "weight_decay: 0.01"})
    registered = killed.vdmctl("register")
    assert (registered.returncode, "was trained with other parameters" in registered.stderr) == (Exit.USAGE, True)
    assert result.returncode == 0
    assert "continuing" not in result.stderr
    assert digests(killed) != undisturbed
    assert set(before) <= set(states(killed))


def test_a_step_that_does_not_fit_says_what_to_change(project: Project) -> None:
    project.edit("params.yaml", **{"batch_size: 64\n": "batch_size: 100000\n"})
    program = (
        "import resource, runpy, sys, psutil, torch\n"
        "limit = psutil.Process().memory_info().vms + 1_400_000_000\n"  # torch takes 0.6 GB, or 3 if built for CUDA
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "sys.argv = ['vdmctl', 'train']\n"
        "runpy.run_module('flows.cli', run_name='__main__')\n"
    )
    result = project.run(sys.executable, "-c", program)
    project.edit("params.yaml", **{"batch_size: 100000\n": "batch_size: 64\n"})
    assert result.returncode == Exit.USAGE, result.stderr
    assert result.stderr.splitlines()[-1] == (
        "vdmctl: out of memory with train.batch_size 100000; "
        "raise train.accumulation to a divisor of it, or set train.activation_checkpointing: true"
    )
