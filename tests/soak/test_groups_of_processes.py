"""Training in several processes of which one dies or is stopped, and under torchrun."""

import os
import re
import signal

import pytest
from group import continued, prepare, start, train_undisturbed, workers
from interrupted import wait_for_step
from project import Project

from flows.core.errors import Exit


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with validated images, set up to train with two processes."""
    return prepare(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def undisturbed(project: Project) -> bytes:
    """Return the weights of a run that nothing interrupts."""
    return train_undisturbed(project)


def test_a_group_that_dies_or_of_which_one_is_stopped_continues_under_torchrun(
    project: Project, undisturbed: bytes
) -> None:
    """One run is ended by a process that dies, and by SIGTERM to one process.  It ends with its images on the host."""
    project.edit("params.yaml", **{"max_restarts: 3": "max_restarts: 0"})
    process = start(project)
    wait_for_step(project, process, 5)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    project.edit("params.yaml", **{"max_restarts: 0": "max_restarts: 3"})
    assert process.returncode == Exit.BUG
    (line,) = [line for line in errors.splitlines() if line.startswith("vdmctl:")]
    reason = r"process 1 of 2: Signal 9 \(SIGKILL\) .* \(out of memory\?\), on the last of 1 starts; run again"
    assert re.match(f"vdmctl: {reason}", line)
    assert "Traceback" not in errors
    process = start(project)
    wait_for_step(project, process, 10)
    os.kill(workers(process)[1], signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == Exit.RESUMABLE, errors
    assert "continuing from step" in errors
    assert "torch/distributed" not in errors  # the agent adds no output
    assert re.match(r"vdmctl: stopped at step \d+ of 30; run again to continue", errors.splitlines()[-1])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "flows.cli", "train"]
    project.edit("params.yaml", **{"images_on: auto": "images_on: host"})  # which changes no byte
    continued(project, start(project, *torchrun), undisturbed)
    project.edit("params.yaml", **{"images_on: host": "images_on: auto"})
