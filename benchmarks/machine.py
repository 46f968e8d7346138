"""What a figure was measured on."""

import platform
import subprocess
from pathlib import Path

import torch


def describe(device: torch.device | None = None) -> dict[str, str | int]:
    """The card or, without a device, the CPU; threads, versions and commit."""
    on_card = device is not None and device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_card else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is checked out, marked when tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=-dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
