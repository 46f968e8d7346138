"""Find how much memory this process may still take, to refuse sizes before anything is allocated."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flows.core.errors import Exit, UserError
from flows.core.limits import control_groups

if TYPE_CHECKING:
    import torch


PROCESS_BYTES = 2**28
"""The memory of a process that has loaded torch."""
LIMITS = [
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
]
"""The names that `left` takes, in version 2 of control groups and in version 1."""


def available() -> int:
    """Return the number of bytes that are free or can be freed, on the machine and within its control groups."""
    limits = [left(folder, *names) for folder in control_groups("memory") for names in LIMITS]
    return int(min(size for size in (psutil.virtual_memory().available, *limits) if size is not None))


def left(folder: Path, limit: str, used: str, reclaimable: Sequence[str]) -> int | None:
    """Return the number of bytes that a control group still allows; None without a group or a limit.

    `limit` and `used` are files in its folder, and `reclaimable` are the parts in `memory.stat` that can be freed:
    Linux drops also files that were read twice, such as images, before it refuses memory.
    """
    with suppress(OSError, ValueError, LookupError):
        details = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        free = int((folder / limit).read_text()) - int((folder / used).read_text())
        return max(0, free + sum(int(details[name]) for name in reclaimable))
    return None


def require(num_bytes: int, device: "torch.device", advice: str, processes: int = 1) -> None:
    """Raise UserError (exit 2), beginning with the advice, if the device has fewer than `num_bytes` bytes free.

    On a CPU, each of the `processes` takes as much of the same memory, so the error also advises to lower their number.
    """
    if device.type == "cpu" and processes > 1:
        num_bytes = processes * num_bytes + (processes - 1) * PROCESS_BYTES
        advice += ", or lower num_devices"
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = available()
    if num_bytes > free:
        sizes = f"at least {num_bytes / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free"
        raise UserError(f"{advice}: this needs {sizes}", Exit.USAGE)
