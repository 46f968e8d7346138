"""Training that is killed or stopped at any point loses nothing; in real processes."""

import hashlib
import shutil
import signal
import subprocess
import sys

import pytest
from interrupted import SLOW, read_until, remove_finished, states, stopped_in_validation, wait_for_step
from plant import trainers, wait_until
from project import Sandbox

from flows.core.errors import Exit


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return a project with validated images, set up for 60 steps with a saved state every 4."""
    project = Sandbox(tmp_path_factory.mktemp("project"))
    project.edit(
        "params.yaml",
        **{
            "checkpoint_every_steps: 500": "checkpoint_every_steps: 4",
            "keep_checkpoints: 2": "keep_checkpoints: 3",
            "steps: 20\n": "steps: 60\n",
            "dropout: 0.0": "dropout: 0.2",
        },
    )
    for stage in ("download", "validate"):
        assert project.vdmctl(stage).returncode == 0
    return project


@pytest.fixture(scope="module")
def undisturbed(project: Sandbox) -> tuple[str, str]:
    """Return the digests of weights and log of a run that nothing interrupts."""
    result = project.vdmctl("train")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in states(project)] == ["step-000000060.state"]
    return digests(project)


def digests(project: Sandbox) -> tuple[str, str]:
    names = ("models/trained/weights.safetensors", "reports/training/curves.csv")
    first, second = (hashlib.sha256((project.folder / name).read_bytes()).hexdigest() for name in names)
    return first, second


def start(project: Sandbox) -> subprocess.Popen[str]:
    """Start a training, which may continue from the states of an unfinished one."""
    remove_finished(project)
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "train"],
        cwd=project.folder,
        env=project.environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_killed_and_stopped_often_ends_with_the_same_bits(project: Sandbox, undisturbed: tuple[str, str]) -> None:
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


def test_a_finished_run_is_repeated_until_its_model_is_registered(
    project: Sandbox, undisturbed: tuple[str, str]
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


def test_a_trainer_saves_and_ends_when_dvc_is_killed(project: Sandbox) -> None:
    """The steps since the last planned state are saved."""
    remove_finished(project)
    changes = {"checkpoint_every_steps: 4\n": "checkpoint_every_steps: 5000\n", "steps: 60\n": "steps: 6000\n"}
    project.edit("params.yaml", **changes)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "train"]
    process = subprocess.Popen(command, cwd=project.folder, env=project.environment, stderr=subprocess.PIPE, text=True)
    read_until(process, "step 5:")
    process.kill()
    process.wait()
    wait_until(lambda: not trainers(project.folder), 60)
    assert process.stderr is not None
    assert "vdmctl: stopped" in process.stderr.read()
    process.stderr.close()
    (run,) = {path.parent for path in states(project)}
    shutil.rmtree(run)
    project.edit("params.yaml", **{new: old for old, new in changes.items()})


def test_a_step_that_does_not_fit_says_what_to_change(project: Sandbox) -> None:
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
