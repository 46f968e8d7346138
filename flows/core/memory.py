"""Refuse sizes that do not fit into memory before anything is allocated."""

from typing import TYPE_CHECKING

import psutil

from flows.core.errors import Exit, UserError

if TYPE_CHECKING:
    import torch


def available() -> int:
    """Return the number of bytes of this machine's memory that are free or can be freed."""
    return int(psutil.virtual_memory().available)


def require(num_bytes: int, device: "torch.device", advice: str, processes: int = 1) -> None:
    """Raise UserError (exit 2), beginning with the advice, if the device has fewer than `num_bytes` bytes free.

    On a CPU, each of the `processes` takes as much of the same memory.
    """
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
    else:
        num_bytes, free = processes * num_bytes, available()
    if num_bytes > free:
        sizes = f"at least {num_bytes / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free"
        raise UserError(f"{advice}: this needs {sizes}", Exit.USAGE)
