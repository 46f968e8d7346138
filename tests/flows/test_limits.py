"""What control groups and variables allow: memory, cores, and threads."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from flows.core import device, limits, memory
from flows.core.memory import available, left
from flows.process.environment import settle
from flows.training.distributed import configure_environment


def test_the_limits_of_a_service_and_of_all_groups_above_it_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Path("/sys/fs/cgroup/system.slice/vdm.service")
    (tmp_path / "membership").write_text("3:cpu,memory:/slurm/job:1\n2:cpuset:/other\n0::/system.slice/vdm.service\n")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")
    job = Path("/sys/fs/cgroup/memory/slurm/job:1")
    assert set(limits.control_groups("memory")) == {service, *service.parents[:2], job, *job.parents[:2]}
    monkeypatch.setattr(memory, "left", lambda folder, *names: 5 if folder == service.parent else None)
    assert available() == 5
    (tmp_path / "membership").unlink()  # as in a container without /proc
    assert limits.control_groups("memory") == [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")]


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    group = (tmp_path, "limit", "used", ("active_file", "inactive_file"))
    assert left(*group) is None
    (tmp_path / "limit").write_text("max\n")
    (tmp_path / "used").write_text("700\n")
    (tmp_path / "memory.stat").write_text("active_file 50\ninactive_file 100\n")
    assert left(*group) is None
    (tmp_path / "limit").write_text("1000\n")
    assert left(*group) == 1000 - 700 + 50 + 100  # also of files that were read twice, as images are
    (tmp_path / "used").write_text("2000\n")
    assert left(*group) == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "400000 100000\n", "system.slice/vdm.service/cpu.max": "150000 100000\n"}, 2),
        ({"cpu/slurm/cpu.cfs_quota_us": "300000\n", "cpu/slurm/cpu.cfs_period_us": "100000\n"}, 3),
        ({"system.slice/other/cpu.max": "100000 100000\n", "cpu/slurm/7/cpu.max": "100000 100000\n"}, 8),
        ({}, 8),
    ],
)
def test_a_control_group_may_allow_fewer_cores_than_the_machine_has(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    (tmp_path / "membership").write_text("4:cpu,cpuacct:/slurm/job\n2:memory:/slurm/7\n0::/system.slice/vdm.service\n")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(limits, "control_groups", partial(limits.control_groups, mount=tmp_path))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert limits.cores() == expected


@pytest.mark.parametrize(("threads", "count", "expected"), [(8, 1, 8), (8, 2, 4), (8, 16, 1), (2, 2, 2), (16, 1, 8)])
def test_processes_share_the_cores(threads: int, count: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert device.threads_each(count) == expected


@pytest.mark.parametrize(
    ("allowed", "chosen", "threads"), [(3, {}, "3"), (3, {"OMP_NUM_THREADS": "7"}, "7"), (8, {}, None)]
)
def test_torch_and_numpy_have_no_more_threads_than_control_groups_allow(
    allowed: int, chosen: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr("flows.process.environment.cores", lambda: allowed)
    environment = dict(chosen)
    settle(environment)
    assert environment.get("OMP_NUM_THREADS") == threads


@pytest.mark.processes
def test_processes_have_their_share_of_threads_whatever_the_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of two threads each on two cores would be 20 times slower."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr("flows.training.distributed.threads_each", lambda count: 1)
    configure_environment(2, str(tmp_path))
    program = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    assert subprocess.check_output(program, env=environment, text=True) == "1\n"
