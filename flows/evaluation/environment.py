"""What decides the last digits of a figure besides data, parameters and code: the libraries and the processor."""

import platform
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from flows.core.files import file_sha256
from flows.evaluation.results import Environment


def environment(device: torch.device, requirements: Path) -> Environment:
    """Return the environment of figures that are computed on the device by this process."""
    digest = None
    with suppress(OSError):
        digest = file_sha256(requirements)
    return Environment(
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        torch=torch.__version__,
        numpy=np.__version__,
        processor=processor(device),
        requirements_sha256=digest,
    )


def processor(device: torch.device) -> str:
    """Return the name of the GPU, or the kind of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    vendor = "unknown"
    with suppress(OSError, IndexError):
        vendor = Path("/proc/cpuinfo").read_text().partition("vendor_id")[2].split()[1]
    return f"{platform.machine()} {vendor} {torch.backends.cpu.get_cpu_capability()}"
