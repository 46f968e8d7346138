"""Shared by the benchmarks of speed: the problem, the clock, memory, and the comparison with the peer."""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.machine import describe
from benchmarks.options import duration, new_parser, positive, require_peer
from flows.core.checkpoint import arguments_of
from flows.core.device import find_precision
from flows.core.fields import device_name
from flows.core.params import Params
from flows.core.params_file import parse_params
from flows.core.presets import read_preset
from vdm.model import VDM

PRESETS = Path(__file__).parents[1] / "presets"
SHAPES = {
    "digits": (1, 8, 8, 17),
    "mnist": (1, 28, 28, 256),
    "fashion_mnist": (1, 28, 28, 256),
    "cifar10": (3, 32, 32, 256),
    "imagenet32": (3, 32, 32, 256),
    "imagenet64": (3, 64, 64, 256),
}
SAMPLED = 64
"""The number of images that are drawn at a time by default."""


class Problem(NamedTuple):
    """A preset, the arguments of its model, and random images of its shape."""

    params: Params
    model: dict[str, Any]
    images: torch.Tensor


def parser(description: str | None, *, peer: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark of speed and, if asked, those of the comparison."""
    options = new_parser(description)
    options.add_argument("--preset", default="digits", choices=sorted(path.stem for path in PRESETS.glob("*.yaml")))
    options.add_argument("--width", type=positive, help="network width instead of the preset's")
    options.add_argument("--blocks", type=positive, help="number of blocks instead of the preset's")
    options.add_argument("--batch-size", type=positive, help="images per batch instead of the preset's")
    options.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--seconds", type=duration, default=20.0, help="seconds to measure, after the first steps")
    if peer:
        options.add_argument("--peer", type=Path, help="a checkout of the PyTorch peer to compare with")
        options.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
        options.add_argument("--rounds", type=positive, default=3, help="rounds of the comparison")
    return options


def read_problem(options: argparse.Namespace) -> Problem:
    """Return the problem that the options describe.  Raises ValueError if no model can be built from them.

    Also raises what `require_peer` raises for the option --peer, before anything is measured.
    """
    if peer := getattr(options, "peer", None):
        require_peer(peer)
    params = parse_params(read_preset(options.preset, PRESETS), options.preset)
    *shape, num_levels = SHAPES[params.data.name]
    sizes = {"width": options.width or params.model.width, "blocks": options.blocks or params.model.blocks}
    model = arguments_of(params.model.model_copy(update=sizes), tuple(shape), num_levels)
    VDM(**model)
    generator = torch.Generator().manual_seed(0)
    count = max(2048, options.batch_size or 0)
    images = torch.randint(num_levels, (count, *shape), generator=generator, dtype=torch.uint8)
    return Problem(params, model, images)


def clock(
    step: Callable[[], object], device: torch.device, seconds: float, over: Callable[[bool], bool] = bool
) -> dict[str, float]:
    """Return the seconds of the first step, and the mean seconds of at least three steps after the third.

    `over` says whether to end, given whether `seconds` have passed; processes that step together must agree on it.
    """

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    begin = finished()
    step()
    first = finished() - begin
    step()
    step()
    begin, count = finished(), 0
    while count < 3 or not over(finished() - begin >= seconds):
        step()
        count += 1
    return {"first_step_s": first, "step_s": (finished() - begin) / count, "steps": count}


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in MiB: on CUDA what torch allocated, on the CPU what the whole process occupied."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def count_flop(step: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products and convolutions in one step."""
    from torch.utils.flop_counter import FlopCounterMode  # loads torch's compiler, which would add to the peak memory

    # Torch counts the fused attention of CUDA, and counts that of CPUs as nothing.
    name, aten = "_scaled_dot_product_flash_attention_for_cpu", torch.ops.aten
    fused = {getattr(aten, name): attention_flop, getattr(aten, f"{name}_backward"): attention_backward_flop}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        step()
    return counter.get_total_flops()  # type: ignore[no-any-return]


def attention_flop(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations of attention's two matrix products, from the shapes (B,heads,N,D) of query and key."""
    return 4 * math.prod(query) * key[2]


def attention_backward_flop(_: Any, query: Sequence[int], key: Sequence[int], *__: Any, **___: Any) -> int:
    """Return the operations of the four matrix products of attention's backward pass."""
    return 2 * attention_flop(query, key)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product, the best of ten measurements.

    On a CPU without instructions for bfloat16 the product is small, since torch computes it number by number.
    """
    size = 8192 if device.type == "cuda" else 1024
    if device.type == "cpu" and dtype == torch.bfloat16 and find_precision("auto", device) == "float32":
        size = 256
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(clock(lambda: first @ second, device, 0.0)["step_s"] for _ in range(10))
    return 2 * size**3 / best


def common(chosen: argparse.Namespace) -> list[str]:
    """Return the options of `parser` that were chosen, for other processes."""
    names = ("preset", "width", "blocks", "batch_size", "device", "seconds")
    given = {name: value for name in names if (value := getattr(chosen, name)) is not None}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def against_peer(name: str, chosen: argparse.Namespace, *extra: str, both: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run our benchmark `name`, with `extra` options, and the peer's alternately; return both and their ratios.

    Both get the options `both`.  A ratio is ours / peer, of images per second and of memory, computed per round.
    """
    options = [*common(chosen), *both]
    ours = [f"benchmarks.{name}", *options, "--precision", chosen.precision, *extra]
    peer = ["benchmarks.peer", name, str(chosen.peer), *options]
    pairs = [(run(ours), run(peer)) for _ in range(chosen.rounds)]
    speed = [mine["images_per_second"] / other["images_per_second"] for mine, other in pairs]
    memory = [mine["peak_memory_mib"] / other["peak_memory_mib"] for mine, other in pairs]
    return {
        "ours": [mine for mine, _ in pairs],
        "peer": [other for _, other in pairs],
        "speed_ratio": sum(speed) / len(speed),
        "speed_ratio_range": [min(speed), max(speed)],
        "memory_ratio": sum(memory) / len(memory),
        "memory_ratio_range": [min(memory), max(memory)],
    }


def run(module: list[str]) -> dict[str, Any]:
    """Run a benchmark in a new process and return its figures."""
    command = [sys.executable, "-m", *module, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def report(figures: dict[str, Any], device: torch.device, *, as_json: bool) -> None:
    """Print the figures and the machine that they were measured on."""
    figures = {**figures, **describe(device)}
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        print(*(f"{key}: {short(value)}" for key, value in figures.items()), sep="\n")


def short(value: Any) -> str:
    """Return a figure as text; of the rounds against the peer only speed and memory."""
    match value:
        case float():
            return str(round(value, 4))
        case [dict(), *_]:
            return "; ".join(
                f"{one['images_per_second']:.1f} images/s, {one['peak_memory_mib']:.0f} MiB" for one in value
            )
        case [low, high]:
            return f"{short(low)} to {short(high)}"
        case _:
            return str(value)
