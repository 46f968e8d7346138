"""Which device the parameters mean."""

import torch

from flows.errors import Exit, UserError


def find_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA where there is one, else the CPU.

    Raises UserError (exit 2) when the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    match device.type:
        case "cuda" if not torch.cuda.is_available():
            raise UserError(f"device {name}: torch finds no CUDA device; set device to auto or cpu", Exit.USAGE)
        case "cuda" if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices", Exit.USAGE)
        case "mps" if not torch.backends.mps.is_available():
            raise UserError("device mps: torch finds none; set device to auto or cpu", Exit.USAGE)
    return device
