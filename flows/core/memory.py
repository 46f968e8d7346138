"""Find how much memory this process may still take, to refuse sizes before anything is allocated."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from flows.core.errors import Exit, UserError

if TYPE_CHECKING:
    import torch


class Group(NamedTuple):
    """The files of a control group, such as a container's, with its limit, its use, and the part that can be freed."""

    limit: Path
    used: Path
    details: Path
    reclaimable: str


GROUPS = [
    Group(folder / limit, folder / used, folder / "memory.stat", reclaimable)
    for folder, limit, used, reclaimable in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
]


def available() -> int:
    """Return the number of bytes that are free or can be freed, on the machine and within the container's limit."""
    found = [psutil.virtual_memory().available, *map(left, GROUPS)]
    return int(min(size for size in found if size is not None))


def left(group: Group) -> int | None:
    """Return the number of bytes that a control group still allows; None without a group or a limit."""
    with suppress(OSError, ValueError, LookupError):
        details = dict(line.split() for line in group.details.read_text().splitlines())
        cache = int(details[group.reclaimable])
        return max(0, int(group.limit.read_text()) - int(group.used.read_text()) + cache)
    return None


def require(num_bytes: int, device: "torch.device", advice: str) -> None:
    """Raise UserError (exit 2), beginning with the advice, if the device has fewer than `num_bytes` bytes free."""
    free = available()
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
    if num_bytes > free:
        sizes = f"at least {num_bytes / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free"
        raise UserError(f"{advice}: this needs {sizes}", Exit.USAGE)
