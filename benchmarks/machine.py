"""Print figures with the machine, the versions and the commit of their measurement."""

import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def show(figures: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print the figures and the machine: as one JSON object, or a line for each number and text and then `lines`."""
    figures = {**describe(), **figures}
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    named = (f"{key}: {value}" for key, value in figures.items() if not isinstance(value, dict | list))
    print(*named, *lines, sep="\n")


def describe(device: torch.device | None = None) -> dict[str, str | int]:
    """Return the name of the CUDA device or else of the CPU, the number of threads, the versions and the commit."""
    on_card = device is not None and device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_card else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def cpu_name() -> str:
    """Return the name of the CPU, or its architecture if the system does not know the name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit that is checked out, with `-dirty` if tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=-dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
