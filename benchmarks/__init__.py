"""Measurements of speed, likelihood, samples, files and the data contract: `python -m benchmarks.NAME --help`.

speed          a training step, an evaluation, sampling; with --peer against another code
equal_minutes  bits/dim after equal minutes of training, against another code
continuing     training that goes on from a model when images arrive, against training anew
likelihood     the variance and the error of the bound's estimate, the numerical error of the ODE
few_steps      the bound in few steps, with other ends and other variances
judging        how often the judge of challengers is wrong, in a simulation
samplers       the quality of samples against their cost
surprise       which foreign and changed images are found to be odd
compression    our files and those of general codecs
sixteen_bits   a radiograph of 15 bits beside lossless codecs, and the time of 65,536 levels
contract       corruptions of images that the data contract finds
registry       the processor seconds of commands in a project with hundreds of versions
many_images    what the stages take of processor, memory and disk with a million images
app            the app: its start, many requests, and a training beside it
gpu_day        everything about one card, in ten minutes

What they share is here: options, presets, the machine, figures as text or JSON, charts.
"""

import argparse
import json
import math
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flows.core.errors import UserError
from flows.core.params import Params
from flows.core.params_file import parse_params, read_preset
from flows.core.tables import table

PRESETS = Path(__file__).parents[1] / "presets"


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


def preset_params(name: str, **changes: dict[str, Any]) -> Params:
    """Return a preset's parameters with changes of its sections, unchecked; None changes nothing.

    `classes: auto`, which would count those of the labels, is 10: the sets of all presets that say so have ten.
    """
    params = parse_params(read_preset(name, PRESETS), name)
    if params.model.classes == "auto":
        params = params.model_copy(update={"model": params.model.model_copy(update={"classes": 10})})
    for section, values in changes.items():
        given = {key: value for key, value in values.items() if value is not None}
        params = params.model_copy(update={section: getattr(params, section).model_copy(update=given)})
    return params


def show(figures: dict[str, Any], *, as_json: bool, device: torch.device | None = None) -> None:
    """Print the machine and the figures: as one JSON object, or a line for each figure and a table for each list."""
    figures = {**describe(device), **figures}
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    for key, value in figures.items():
        match value:
            case [dict(), *_]:
                keys = list(dict.fromkeys(key for row in value for key in row))
                print(f"\n{key}\n{table(keys, [[cell(row.get(key)) for key in keys] for row in value])}")
            case [low, high]:
                print(f"{key}: {cell(low)} to {cell(high)}")
            case _:
                print(f"{key}: {cell(value)}")


def cell(value: Any) -> str:
    """Return a figure as text: a float with five digits, "" for a missing one."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@contextmanager
def chart(path: Path, **options: Any) -> Iterator[Any]:
    """Yield the axes of a chart with these options, such as its labels; then add a legend and write the file."""
    from matplotlib.figure import Figure  # which would add to the peak memory of others

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    yield axes
    axes.set(**options)
    axes.legend()
    figure.savefig(path)


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
    """Return the name of the CPU and its vector and bfloat16 instructions, as far as the system names them."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in text]
    return f"{name[1] if name else platform.machine()} ({', '.join(known)})"


def commit() -> str:
    """Return the commit that is checked out, with `-dirty` if tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=-dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
