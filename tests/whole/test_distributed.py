"""Training in several real processes, started by torch's agent, killed and stopped."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import patch

import jobs
import psutil
import pytest
import torch
from interrupted import read_until, remove_finished, states, wait_for_step
from plant import wait_until
from project import Project, one_line, run_vdmctl, session
from small import Small

from flows.core.errors import Exit
from flows.training.distributed import launch

PARAMS = {
    "num_devices: 1": "num_devices: 2",
    "accumulation: 1": "accumulation: 2",  # so that both are also asked between micro-batches whether to stop
    "checkpoint_every_steps: 500": "checkpoint_every_steps: 5",
    "log_every: 5": "log_every: 1",
    "steps: 20\n": "steps: 30\n",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with validated images, set up to train with two processes."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.edit("params.yaml", **PARAMS)
    for stage in ("download", "validate"):
        assert project.vdmctl(stage).returncode == 0
    return project


def curves(project: Project) -> list[dict[str, float]]:
    with (project.folder / "reports/training/curves.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(project: Project) -> bytes:
    """Return the weights of a run that nothing interrupts."""
    result = project.new_vdmctl("train")
    assert result.returncode == 0, result.stderr
    assert "on 2 x cpu in float32" in result.stderr
    assert result.stderr.count("step 30:") == 1  # one process logs
    return weights(project)


def weights(project: Project) -> bytes:
    return (project.folder / "models/trained/weights.safetensors").read_bytes()


def start(project: Project, *arguments: str, **environment: str) -> subprocess.Popen[str]:
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


def test_two_processes_follow_the_losses_of_one(project: Project, undisturbed: bytes) -> None:
    two = curves(project)
    project.edit("params.yaml", **{"num_devices: 2": "num_devices: 1"})
    assert project.vdmctl("train").returncode == 0
    project.edit("params.yaml", **{"num_devices: 1": "num_devices: 2"})
    for row, expected in zip(curves(project), two, strict=True):
        # 30 steps amplify rounding; other times or noise would change the second digit.
        assert row == pytest.approx(expected, rel=2e-4, nan_ok=True)
    assert weights(project) != undisturbed  # different rounding proves a different computation


def continued(project: Project, process: subprocess.Popen[str], undisturbed: bytes) -> str:
    """Wait for the end of a run that continues from a saved state, and return what it printed.

    Its log and weights are those of a run in one go.
    """
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "continuing from step" in errors
    assert weights(project) == undisturbed
    assert [row["step"] for row in curves(project)] == list(range(1, 31))
    return errors


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


def test_processes_do_not_outlive_the_one_that_started_them(project: Project) -> None:
    """The steps since the last planned state are saved, too."""
    every = {"checkpoint_every_steps: 5\n": "checkpoint_every_steps: 1000\n", "steps: 30\n": "steps: 3000\n"}
    project.edit("params.yaml", **every)
    process = start(project)
    read_until(process, "step 3:")
    process.kill()
    process.wait()
    wait_until(lambda: not session(process.pid), 60)
    assert process.stderr is not None
    process.stderr.close()
    project.edit("params.yaml", **{new: old for old, new in every.items()})
    (state,) = states(project)
    shutil.rmtree(state.parent)


def listening(leader: int) -> set[str]:
    """Return the addresses at which the processes of a session listen."""
    found = set()
    for process in session(leader):
        try:
            sockets = process.net_connections("inet")
        except psutil.Error:
            continue
        found |= {each.laddr.ip for each in sockets if each.laddr and not each.raddr}
    return found


NOHUP = "import os, sys; os.execvp('nohup', ['nohup', sys.executable, '-m', *sys.argv[1:]])"


def test_a_group_outlives_its_terminal_and_listens_on_loopback_alone(project: Project, undisturbed: bytes) -> None:
    """It is started by nohup.  It restarts from its last state, and no second training gets its device.

    It listens on loopback alone from start to end, whatever interface the environment names.
    """
    addresses = psutil.net_if_addrs().items()
    others = [
        name for name, found in addresses if name != "lo" and any(each.family.name == "AF_INET" for each in found)
    ]
    interfaces = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), others[0] if others else "lo")
    process = start(project, "-c", NOHUP, "flows.cli", "train", **interfaces)
    found: set[str] = set()

    def watch() -> None:
        while process.poll() is None:
            found.update(listening(process.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wait_for_step(project, process, 5)
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGSTOP)
    second = project.vdmctl("train")
    os.killpg(process.pid, signal.SIGCONT)
    wait_for_step(project, process, 10)
    os.kill(workers(process)[0], signal.SIGKILL)
    watcher.join()
    assert continued(project, process, undisturbed).count("continuing from step") == 1
    assert second.returncode == Exit.BUSY
    assert "vdmctl: cpu is busy: process " in one_line(second)
    assert found == {"127.0.0.1"}


def test_an_error_that_only_one_meets_on_the_way_ends_all(project: Project) -> None:
    """The log cannot be written; the other processes must not go on waiting for the first."""
    remove_finished(project)
    curves = project.folder / "reports/training/curves.csv"
    curves.unlink()
    (curves / "in the way").mkdir(parents=True)
    result = project.vdmctl("train")
    shutil.rmtree(curves)
    assert result.returncode == Exit.MISSING
    assert result.stderr.splitlines()[-1] == "vdmctl: reports/training/curves.csv: Is a directory"


def test_memory_that_one_process_lacks_leaves_nobody_waiting() -> None:
    """No restart would cure it."""
    with patch.dict(os.environ), pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory. Tried"):
        launch(jobs.full, num_processes=2)


def test_processes_ask_about_once_a_second_whether_to_stop_and_stop_together() -> None:
    with patch.dict(os.environ):
        (calls, asked, _), (*other, seconds) = launch(jobs.polling, num_processes=2)
    assert other == [calls, asked]
    assert seconds < 10
    assert calls > 100
    assert asked < 25  # 1, 2, 4 calls and so on up to a second of them


def test_two_processes_draw_and_evaluate_as_one(tmp_path: Path) -> None:
    """The samples, and the figures of every image to the last digit, are those of one process."""
    small = Small(tmp_path / "small")
    evaluate = ("evaluate", "models/vdm", "--out", "reports/evaluation")  # of the test images alone
    params, results = small.folder / "params.yaml", ("samples/samples.npy", "evaluation/per_image.csv")
    # Three images a batch, so that no split of the images alone would give both processes the same batches as one.
    assert "batch_size: 512" in params.read_text()
    text = params.read_text().replace("batch_size: 512", "batch_size: 6")
    params.write_text(text)

    def found() -> list[bytes]:
        files = [small.folder / "reports" / name for name in (*results, "evaluation/metrics.json")]
        contents = [file.read_bytes() for file in files]
        for file in files:
            file.unlink()
        return contents

    for command in (["sample"], evaluate):
        assert run_vdmctl(small.folder, small.environment, *command).returncode == 0
    one = found()
    before, name, after = text.partition("\nevaluate:\n")
    assert after.count("num_devices: 1") == 2  # of `evaluate` and of `sample`
    params.write_text(before + name + after.replace("num_devices: 1", "num_devices: 2"))

    def stop(*_: object) -> None:
        pytest.fail("stopped")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for command in (["sample"], evaluate):
            result = run_vdmctl(small.folder, small.environment, *command)
            assert result.returncode == 0, result.stderr
            assert {signal.getsignal(number) for number in handlers} == {stop}  # torch's agent leaves its own
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert found() == one
