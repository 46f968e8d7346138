"""Whether what the parameters ask for fits into memory: asked before anything is allocated."""

import torch

from flows.core.errors import Exit, UserError
from vdm.memory import available


def require(num_bytes: int, device: torch.device, advice: str) -> None:
    """Raise UserError (exit 2) with what to lower, unless the device has so much memory left."""
    left = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
    if num_bytes > left:
        needed, free = (f"{size / 2**30:,.1f} GiB" for size in (num_bytes, left))
        raise UserError(f"{advice}: they ask for {needed} of memory or more, and {free} are free", Exit.USAGE)
