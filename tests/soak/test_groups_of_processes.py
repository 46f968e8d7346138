"""Training in several processes of which one dies or is stopped, under torchrun, and without a terminal."""

import os
import re
import signal
import threading
import time

import psutil
import pytest
from group import continued, prepare, start, train_undisturbed, workers
from interrupted import wait_for_step
from project import Sandbox, one_line, session

from flows.core.errors import Exit


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return a project with validated images, set up to train with two processes."""
    return prepare(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def undisturbed(project: Sandbox) -> bytes:
    """Return the weights of a run that nothing interrupts."""
    return train_undisturbed(project)


def test_a_group_that_dies_or_of_which_one_is_stopped_continues_under_torchrun(
    project: Sandbox, undisturbed: bytes
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


def test_a_group_outlives_its_terminal_and_listens_on_loopback_alone(project: Sandbox, undisturbed: bytes) -> None:
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
            time.sleep(0.5)

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
