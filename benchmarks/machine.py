"""Print figures with the machine, the versions and the commit of their measurement, and draw them."""

import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flows.commands import summary


def show(figures: dict[str, Any], *, as_json: bool, device: torch.device | None = None) -> None:
    """Print the figures and the machine: as one JSON object, or a line for each figure and a table for a list of rows.

    A row is a mapping.
    """
    figures = {**describe(device), **figures}
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    for key, value in figures.items():
        match value:
            case [dict(), *_]:
                print(f"\n{table(value)}")
            case _:
                print(f"{key}: {value}")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text, with a column for each of their keys."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return summary.table(keys, [[cell(row.get(key)) for key in keys] for row in rows])


def cell(value: Any) -> str:
    """Return a figure as text: a float with five digits, "" for a missing one."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@contextmanager
def chart(path: Path, **options: Any) -> Iterator[Any]:
    """Yield the axes of a chart with these options, such as its labels; then add a legend and write the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    yield axes
    axes.set(**options)
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


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
