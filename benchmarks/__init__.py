"""Measurements of speed, likelihood, samples, files and the data contract: `python -m benchmarks.NAME --help`.

speed          a training step, an evaluation, sampling; with --peer against the PyTorch peer
equal_minutes  bits/dim after equal minutes of training, against the peer
likelihood     the variance and the error of the bound's estimate, the numerical error of the ODE
samplers       the quality of samples against their cost
compression    our files and those of general codecs
contract       corruptions of images that the data contract finds
gpu_day        everything about one card, in ten minutes

What they share is here: options, the machine, figures as text or JSON, charts.
"""

import argparse
import json
import math
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flows.commands import summary
from flows.core.errors import UserError


def positive(text: str) -> int:
    """Parse an integer of at least 1.  Raises ArgumentTypeError."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def duration(text: str) -> float:
    """Parse a finite duration of at least 0.  Raises ArgumentTypeError."""
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number from 0, got {text}")
    return number


def picture(text: str) -> Path:
    """Parse the path of a picture that can be written at the end.  Raises ArgumentTypeError."""
    path = Path(text)
    if path.suffix not in (".png", ".svg") or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a .png or .svg file in a folder that exists, got {text}")
    return path


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option of all benchmarks, --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


@contextmanager
def explained(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn a UserError or ValueError in the block into a usage error of the parser (exit 2)."""
    try:
        yield
    except (UserError, ValueError) as error:
        parser.error(str(error))


def show(figures: dict[str, Any], *, as_json: bool, device: torch.device | None = None) -> None:
    """Print the machine and the figures: as one JSON object, or a line for each figure and a table for a list of rows.

    A row is a mapping.
    """
    figures = {**describe(device), **figures}
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    for key, value in figures.items():
        match value:
            case [dict(), *_]:
                keys = list(dict.fromkeys(key for row in value for key in row))
                print(f"\n{key}\n{summary.table(keys, [[cell(row.get(key)) for key in keys] for row in value])}")
            case _:
                print(f"{key}: {cell(value)}")


def cell(value: Any) -> str:
    """Return a figure as text: a float with five digits, "" for a missing one."""
    match value:
        case None:
            return ""
        case float():
            return f"{value:.5g}"
        case list():
            return " to ".join(map(cell, value))
        case _:
            return str(value)


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
    """Return the name of the CPU and its bfloat16 instructions, or its architecture if the system names neither."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{names[0] if names else platform.machine()} ({', '.join(known)})"


def commit() -> str:
    """Return the commit that is checked out, with `-dirty` if tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=-dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
