"""Find the limits of the control groups of this process, and how many cores it may use."""

import math
import os
from contextlib import suppress
from itertools import product
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
QUOTAS = [["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]]
"""The files with the time that a control group may compute in a period, in version 2 and in version 1."""


def control_groups(controller: str, mount: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Return the folders of the control groups whose limits hold for this process: its own and all above it.

    A container often sees its own group at the root.  A service of systemd or a job of Slurm is below it.
    """
    roots = {"": mount, controller: mount / controller}  # version 2 has one tree, version 1 one for each controller
    found = dict.fromkeys(roots.values())
    with suppress(OSError, ValueError):
        for line in MEMBERSHIP.read_text(errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            for root in (roots[name] for name in controllers.split(",") if name in roots):
                group = root / path.lstrip("/")
                found |= dict.fromkeys(folder for folder in (group, *group.parents) if folder.is_relative_to(root))
    return list(found)


def cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by the limits of its control groups."""
    counts = [len(os.sched_getaffinity(0))]
    for folder, names in product(control_groups("cpu"), QUOTAS):
        with suppress(OSError, ValueError):  # no such file, or "max"
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            counts += [math.ceil(quota / period)] if quota > 0 else []
    return min(counts)
