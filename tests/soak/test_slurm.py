"""docs/operations.md's job for Slurm: the limit of time stops a training, and the next job goes on, to the same bytes.

`sbatch` here is a program of a few lines: it runs a job's script at once, sends the signal of `#SBATCH --signal` to the
script alone, as Slurm does with `B:`, and queues what `scontrol requeue` names.  It has no time, but waits for a state.
"""

import hashlib
import re
import signal
import subprocess
from pathlib import Path

import pytest
from interrupted import has_state, states, wait_for_step
from project import ROOT, Sandbox

MODEL, CURVES = "models/trained/weights.safetensors", "reports/training/curves.csv"


@pytest.fixture
def project(tmp_path: Path) -> Sandbox:
    """Return a project with validated images, and 60 steps of training with a saved state every 4."""
    project = Sandbox(tmp_path / "project")
    steps = {"steps: 20\n": "steps: 60\n", "checkpoint_every_steps: 500": "checkpoint_every_steps: 4"}
    project.edit("params.yaml", **steps)
    for stage in ("download", "validate"):
        assert project.vdmctl(stage).returncode == 0
    return project


def digests(project: Sandbox) -> list[str]:
    return [hashlib.sha256((project.folder / name).read_bytes()).hexdigest() for name in (MODEL, CURVES)]


def sbatch(project: Sandbox, script: str, until: int | None) -> tuple[bool, str]:
    """Run a job, whose time is over when the state of step `until` is there; return if it is requeued, and stderr."""
    programs = project.folder / ".vdm/slurm"
    programs.mkdir(parents=True, exist_ok=True)
    for name, text in {"srun": 'exec "$@"', "scontrol": 'echo "$@" > .vdm/slurm/requeued'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (programs / "job.sh").write_text(script)
    (programs / "requeued").unlink(missing_ok=True)
    environment = project.environment | {"SLURM_JOB_ID": "7"}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    job = subprocess.Popen(
        ["bash", programs / "job.sh"], cwd=project.folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    if until is not None:
        wait_for_step(project, job, until)
        name = re.search(r"^#SBATCH --signal=B:(\w+)@\d+$", script, re.MULTILINE)
        assert name
        job.send_signal(signal.Signals[f"SIG{name[1]}"])
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    return (programs / "requeued").exists() and (programs / "requeued").read_text() == "requeue 7\n", errors


def test_a_training_through_three_jobs_ends_with_the_bytes_of_one(project: Sandbox) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    found = re.search(r"## Slurm\n.*?```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    assert found
    script = found[1].replace(". .venv/bin/activate\n", "")  # the programs of the tests' environment are on PATH
    assert script != found[1]
    for until in (8, 28):
        assert not has_state(project, until)
        requeued, errors = sbatch(project, script, until)
        assert requeued
        assert "run again to continue" in errors
    requeued, errors = sbatch(project, script, None)
    assert not requeued
    assert "continuing from step" in errors
    assert states(project)[-1].name == "step-000000060.state"
    through_jobs = digests(project)
    undisturbed = project.copy(project.folder.parent / "undisturbed")  # without the states
    for name in (MODEL, CURVES):
        (undisturbed.folder / name).unlink()
    assert undisturbed.new_vdmctl("train").returncode == 0
    assert digests(undisturbed) == through_jobs
