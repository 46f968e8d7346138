"""docs/operations.md's job for Slurm: the limit of time stops a training or a worker, and the next job goes on.

It ends with the bytes of a training that nothing stopped.

`sbatch` here is a program of a few lines: it runs a job's script at once, sends the signal of `#SBATCH --signal` to the
script alone, as Slurm does with `B:`, and queues what `scontrol requeue` names.  It has no time, but waits for a state.
"""

import hashlib
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from interrupted import has_state, states, wait_for_step
from plant import Plant, wait_until
from project import ROOT, Sandbox, cached

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


def job_script() -> str:
    """Return the job on the page; the programs of the tests' environment are on PATH."""
    page = (ROOT / "docs/operations.md").read_text()
    found = re.search(r"## Slurm\n.*?```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    assert found
    assert ". .venv/bin/activate\n" in found[1]
    return found[1].replace(". .venv/bin/activate\n", "")


def start_job(project: Sandbox, script: str, **variables: str) -> subprocess.Popen[str]:
    """Start a job."""
    programs = project.folder / ".vdm/slurm"
    programs.mkdir(parents=True, exist_ok=True)
    for name, text in {"srun": 'exec "$@"', "scontrol": 'echo "$@" > .vdm/slurm/requeued'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (programs / "job.sh").write_text(script)
    (programs / "requeued").unlink(missing_ok=True)
    environment = project.environment | variables | {"SLURM_JOB_ID": "7"}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    return subprocess.Popen(
        ["bash", programs / "job.sh"], cwd=project.folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def end_time(job: subprocess.Popen[str], script: str) -> None:
    """Send the signal that the script asks for."""
    name = re.search(r"^#SBATCH --signal=B:(\w+)@\d+$", script, re.MULTILINE)
    assert name
    job.send_signal(signal.Signals[f"SIG{name[1]}"])


def ended(project: Sandbox, job: subprocess.Popen[str]) -> tuple[bool, str]:
    """Wait for the end of a job; return if it is requeued, and stderr."""
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    requeued = project.folder / ".vdm/slurm/requeued"
    return requeued.exists() and requeued.read_text() == "requeue 7\n", errors


def sbatch(project: Sandbox, script: str, until: int | None) -> tuple[bool, str]:
    """Run a job, whose time is over when the state of step `until` is there; return if it is requeued, and stderr."""
    job = start_job(project, script)
    if until is not None:
        wait_for_step(project, job, until)
        end_time(job, script)
    return ended(project, job)


def test_a_training_through_three_jobs_ends_with_the_bytes_of_one(project: Sandbox) -> None:
    script = job_script()
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


def test_a_worker_through_three_jobs_ends_its_run_with_the_bytes_of_one_training(
    tmp_path: Path, empty_database: Path
) -> None:
    """The server is on another machine, here in another folder.  The interrupted run goes on in the next job."""
    plant = Plant(tmp_path)
    plant.project.git("push", "--quiet", "--set-upstream", "origin", "main")
    machine = plant.project.copy(tmp_path / "machine")
    script = job_script().replace("vdmctl train", "vdmctl worker")
    chosen = {"train.steps": 1500, "train.checkpoint_every_steps": 50}
    variables = {"PREFECT_API_URL": plant.url, "OMP_NUM_THREADS": "1", "PREFECT_HOME": str(tmp_path / "home")}
    home = Path(plant.environment["PREFECT_HOME"])
    home.mkdir()
    shutil.copy(empty_database, home)
    with plant.client:
        try:
            plant.serve("--no-worker")
            run = plant.retrain(overrides=chosen)
            for _ in range(2):
                job = start_job(machine, script, **variables)
                reached = steps_of(machine) + 50
                wait_until(lambda: steps_of(machine) >= reached or job.poll() is not None, 300, plant.log)  # noqa: B023
                end_time(job, script)
                requeued, errors = ended(machine, job)
                assert requeued
                assert "it goes on when this worker runs again" in errors
                assert steps_of(machine) < 1500
            job = start_job(machine, script, **variables)
            wait_until(lambda: "vdm@v1.0.0" in machine.git("tag"), 300, plant.log)
            wait_until(lambda: all(each.state.is_final() for each in plant.client.read_flow_runs()), 300, plant.log)
            job.terminate()
            ended(machine, job)
            assert plant.state(run).name == "Continued"
        finally:
            plant.stop()
    plant.project.edit("params.yaml", **{"steps: 20\n": "steps: 1500\n"})
    for stage in ("download", "validate", "train"):
        assert plant.project.new_vdmctl(stage).returncode == 0
    assert (plant.project.folder / MODEL).read_bytes() == cached(
        machine, "models/trained", "weights.safetensors", "v1.0.0"
    ).read_bytes()


def steps_of(project: Sandbox) -> int:
    """Return the step of the newest saved state; 0 without one."""
    return max((int(path.stem.removeprefix("step-")) for path in states(project)), default=0)
