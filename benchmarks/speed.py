r"""Measure the speed and memory of a training step, of an evaluation or of sampling, on random images.

    python -m benchmarks.speed train --preset fashion_mnist --width 32 --blocks 4 --batch-size 64 \
        --peer bsi --checkout FOLDER

`train` takes steps: forward, backward, clipping, the optimizer and averaging, in as many processes as the preset or
--num-devices says; their memory is added up.  `evaluate` computes the bound with one network evaluation per image.
`sample` draws images by the preset's solver.  `profile` gives the milliseconds of each operation of a training step, in
one process.

With --peer NAME, ours and the peer's run alternately, each in a new process.  A peer's recipe is in its file in
benchmarks/peers:

addtt      a checkout of addtt/variational-diffusion-models; packages accelerate, ema-pytorch, torchinfo, pyyaml
bsi        a checkout of martenlienen/bsi; packages einops, jaxtyping; --peer-precision bfloat16 is by autocast
diffusers  the package diffusers; its UNet2DModel with as many parameters as ours
google     a checkout of google-research/vdm, and --peer-python: packages jax, flax, optax, chex
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import PRESETS, duration, explained, new_parser, positive, preset_params, show
from benchmarks.peers import Peer, class_of, peer_arguments, peer_options, require_peer
from flows.core.device import find_compile, find_device, find_precision
from flows.core.model import arguments_of
from flows.core.params import Params, device_name
from flows.core.params_file import preset_names
from flows.training.distributed import any_process, launch, local_rank, process_group
from flows.training.fitting import resolve
from vdm.evaluation import BoundSettings, evaluate
from vdm.model import VDM
from vdm.sampling import Solver, sample
from vdm.training.settings import TrainingSettings
from vdm.training.trainer import Trainer

SHAPES = {
    "digits": (1, 8, 8, 17),
    "mnist": (1, 28, 28, 256),
    "fashion_mnist": (1, 28, 28, 256),
    "cifar10": (3, 32, 32, 256),
    "imagenet32": (3, 32, 32, 256),
    "imagenet64": (3, 64, 64, 256),
}
PROFILED = 5
"""The number of steps of a profile."""
SHARE_SHOWN = 0.005
"""Of the step, the least that an operation takes to have a row of the comparison."""
SAMPLED = 64
"""The number of images that are drawn at a time by default."""
RATIOS = {
    "speed": "images_per_second",
    "processor": "images_per_processor_second",
    "memory": "peak_memory_mib",
    "operations": "step_tflop",
}
"""The figures whose ratios are ours / peer."""
Figures = dict[str, Any]


class Problem(NamedTuple):
    """A preset, the arguments of its model, and random images of its shape."""

    params: Params
    model: dict[str, Any]
    images: torch.Tensor


class Times(NamedTuple):
    """The seconds of the first step, and the mean seconds of a later one, by the clock and on this process's cores."""

    first: float
    step: float
    processor: float


def main() -> None:
    options = parser(__doc__)
    options.add_argument("what", choices=["train", "evaluate", "sample", "profile"])
    peer_options(options, default=None)
    options.add_argument("--rounds", type=positive, default=3, help="rounds of the comparison")
    options.add_argument("--who", default="ours", choices=["ours", "peer"], help=argparse.SUPPRESS)
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
        if chosen.peer or chosen.checkout:
            require_peer(chosen.peer, chosen.checkout, chosen.peer_python)
        if chosen.what == "profile" and chosen.peer == "google":
            raise ValueError("a profile is of torch's operations, and --peer google is in JAX")
        if chosen.what == "train":
            chosen.num_devices = chosen.num_devices or problem.params.train.num_devices
            find_device(chosen.device, chosen.num_devices)
    if chosen.who == "peer":
        figures = of_peer(chosen, problem, device)
    elif chosen.peer:
        figures = (profiles_against_peer if chosen.what == "profile" else against_peer)(chosen)
    else:
        measure = {"train": training, "evaluate": evaluating, "sample": sampling, "profile": profiling}[chosen.what]
        figures = measure(chosen, problem, device)
    sizes = {name: problem.model[name] for name in ("width", "blocks")}
    show({"what": chosen.what, "preset": chosen.preset, **sizes, **figures}, as_json=chosen.json, device=device)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that describe a problem and how long it is measured."""
    options = new_parser(description)
    options.add_argument("--preset", default="digits", choices=preset_names(PRESETS))
    options.add_argument("--width", type=positive, help="network width instead of the preset's")
    options.add_argument("--blocks", type=positive, help="number of blocks instead of the preset's")
    options.add_argument("--batch-size", type=positive, help="images per batch instead of the preset's")
    options.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="of ours")
    options.add_argument("--seconds", type=duration, default=20.0, help="seconds to measure, after the first steps")
    compiled = ["auto", "true", "false", "graphs"]
    options.add_argument("--compile", default="auto", choices=compiled, help="of train; true: also of the others")
    options.add_argument("--num-devices", type=positive, help="of train: cards or, on a CPU, processes")
    options.add_argument("--num-timesteps", type=positive, default=20, help="of sample: steps from noise to image")
    return options


def given(chosen: argparse.Namespace) -> list[str]:
    """Return the options of `parser` that were chosen, for another process."""
    options = {name: value for name, value in vars(chosen).items() if value is not None}
    for name in ("what", "peer", "checkout", "peer_python", "peer_precision", "rounds", "who", "json"):
        options.pop(name, None)
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def read_problem(options: argparse.Namespace) -> Problem:
    """Return the problem that the options describe.  Raises ValueError if no model can be built from them."""
    params = preset_params(options.preset, model={"width": options.width, "blocks": options.blocks})
    *shape, num_levels = SHAPES[params.data.name]
    model = arguments_of(params.model, tuple(shape), num_levels)
    with torch.device("meta"):
        VDM(**model)
    generator = torch.Generator().manual_seed(0)
    count = max(2048, options.batch_size or 0)
    images = torch.randint(num_levels, (count, *shape), generator=generator, dtype=torch.uint8)
    return Problem(params, model, images)


def clock(
    step: Callable[[], object], device: torch.device, seconds: float, over: Callable[[bool], bool] = bool
) -> Times:
    """Return the seconds of the first step, and the mean ones of at least three steps after the third.

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
    begin, processor, count = finished(), time.process_time(), 0
    while count < 3 or not over(finished() - begin >= seconds):
        step()
        count += 1
    return Times(first, (finished() - begin) / count, (time.process_time() - processor) / count)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in MiB: on CUDA what torch allocated, on the CPU what the whole process occupied."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def training(chosen: argparse.Namespace, problem: Problem, device: torch.device) -> Figures:
    """Return the figures of a training step."""
    count = chosen.num_devices
    timed = partial(timed_training, chosen)
    parts = np.stack(launch(timed, num_processes=count) if count > 1 else [timed()])
    (first, seconds), (processor, memory) = parts[0, :2], parts[:, 2:].sum(axis=0)
    settings = settings_of(chosen, problem, device)
    flop = count_flop(problem, settings, device)
    # On a CPU the processes share the cores that the rate is measured with.
    rate = matrix_rate(device, getattr(torch, settings.precision)) * (count if device.type == "cuda" else 1)
    return {
        "batch_size": settings.batch_size,
        "precision": settings.precision,
        "compile": settings.compile,
        "num_devices": count,
        "images_per_second": settings.batch_size / seconds,
        "images_per_processor_second": settings.batch_size / processor,
        "steps_per_second": 1 / seconds,
        "time_to_first_step_s": first,
        "peak_memory_mib": memory,
        "step_tflop": flop / 1e12,
        "matrix_rate_tflops": rate / 1e12,
        "share_of_matrix_rate": flop / seconds / rate,
    }


def timed_training(chosen: argparse.Namespace) -> np.ndarray:
    """Return the times and the peak memory in MiB of this process: (4,)."""
    device = find_device(chosen.device, chosen.num_devices, local_rank())
    with process_group(device):
        problem = read_problem(chosen)
        trainer = trainer_of(problem, settings_of(chosen, problem, device), device)
        times = clock(trainer.step, device, chosen.seconds, over=any_process)
        return np.array([*times, peak_memory(device)])


def settings_of(chosen: argparse.Namespace, problem: Problem, device: torch.device) -> TrainingSettings:
    """Return the settings of the training that the options describe."""
    return replace(
        resolve(problem.params.train, device),
        precision=find_precision(chosen.precision, device),
        compile=find_compile({"true": True, "false": False}.get(chosen.compile, chosen.compile), device),
        batch_size=chosen.batch_size or problem.params.train.batch_size,
    )


def trainer_of(problem: Problem, settings: TrainingSettings, device: torch.device) -> Trainer:
    """Return a run on the problem before its first step."""
    torch.manual_seed(0)
    return Trainer(VDM(**problem.model).to(device), problem.images.to(device), settings)


def model_of(chosen: argparse.Namespace, problem: Problem, device: torch.device) -> VDM:
    """Return a model to evaluate or to sample from, compiled with `--compile true`."""
    model = VDM(**problem.model).to(device).eval()
    if chosen.compile == "true":
        model.compile_network()
    return model


def evaluating(chosen: argparse.Namespace, problem: Problem, device: torch.device) -> Figures:
    """Return the figures of an evaluation of the bound, with one network evaluation per image."""
    size = chosen.batch_size or problem.params.evaluate.batch_size
    precision = find_precision(chosen.precision, device)
    model = model_of(chosen, problem, device)
    images = problem.images[:size].numpy()
    settings = BoundSettings(times_per_image=1, batch_size=size, seed=0, precision=precision)
    times = clock(lambda: evaluate(model, images, settings), device, chosen.seconds)
    return {
        "batch_size": size,
        "precision": precision,
        "images_per_second": size / times.step,
        "images_per_processor_second": size / times.processor,
        "time_to_first_step_s": times.first,
        "peak_memory_mib": peak_memory(device),
    }


def sampling(chosen: argparse.Namespace, problem: Problem, device: torch.device) -> Figures:
    """Return the figures of sampling with the preset's solver."""
    size, steps = chosen.batch_size or SAMPLED, chosen.num_timesteps
    model = model_of(chosen, problem, device)
    changes = {"num_timesteps": steps, "precision": chosen.precision}
    settings = problem.params.sample.model_copy(update=changes)
    options = settings.model_dump(include=set(Solver._fields) - {"precision"})
    solver = Solver(precision=find_precision(settings.precision, device), **options)
    times = clock(lambda: sample(model, range(size), solver, seed=0), device, chosen.seconds)
    return {
        "batch_size": size,
        **solver._asdict(),
        "images_per_second": size / times.step,
        "images_per_processor_second": size / times.processor,
        "images_x_steps_per_second": size * steps / times.step,
        "peak_memory_mib": peak_memory(device),
    }


def profiling(chosen: argparse.Namespace, problem: Problem, device: torch.device) -> Figures:
    """Return the milliseconds of each operation of a training step."""
    settings = settings_of(chosen, problem, device)
    return {"precision": settings.precision, **profile_of(trainer_of(problem, settings, device).step, device)}


def profile_of(step: Callable[[], object], device: torch.device) -> Figures:
    """Return the count of each operation in a step and its milliseconds, without those of operations within it."""
    from torch.profiler import profile

    self_time = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    for _ in range(3):
        step()
    with profile() as found:
        for _ in range(PROFILED):
            step()
    rows = [
        {"operation": each.key, "count": each.count / PROFILED, "ms": getattr(each, self_time) / PROFILED / 1000}
        for each in found.key_averages()
    ]
    return {"step_ms": sum(row["ms"] for row in rows), "rows": sorted(rows, key=lambda row: -row["ms"])}


def count_flop(problem: Problem, settings: TrainingSettings, device: torch.device) -> int:
    """Return the floating-point operations of the matrix products and convolutions in one training step."""

    # Image by image, which takes little memory, in float32.
    slow = replace(settings, precision="float32", compile=False, accumulation=settings.batch_size)
    return flop_of(trainer_of(problem, slow, device).step)


class Whole(nullcontext[None]):
    """What the counter asks for the module that runs: not by its hooks, which a step with autograd.grad cannot have."""

    parents: ClassVar = {"Global"}


def flop_of(step: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products and convolutions in a step."""
    from torch.utils import flop_counter  # loads torch's compiler, which would add to the peak memory

    # Attention as matrix products, which all count, or where the step itself chooses a kernel, by the kernel's formula.
    kernel = "_scaled_dot_product_flash_attention_for_cpu"
    forward, backward = (getattr(torch.ops.aten, name) for name in (kernel, f"{kernel}_backward"))
    formulas = {
        forward: lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(q, k, v),
        backward: lambda gradient, q, k, v, *_, **__: flop_counter.sdpa_backward_flop_count(gradient, q, k, v),
    }
    counting = flop_counter.FlopCounterMode(display=False, custom_mapping=formulas)
    counting.mod_tracker = Whole()
    with sdpa_kernel(SDPBackend.MATH), counting as counter:
        step()
    return counter.get_total_flops()  # type: ignore[no-any-return]


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product, the best of ten measurements."""
    size = 8192 if device.type == "cuda" else 512
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(clock(lambda: first @ second, device, 0.0).step for _ in range(10))


def profiles_against_peer(chosen: argparse.Namespace) -> Figures:
    """Profile ours and the peer's in new processes; return the operations of both side by side."""
    command = ["profile", *given(chosen), "--who"]
    ours, peer = run([*command, "ours"]), run([*command, "peer", *peer_arguments(chosen)])
    of_ours, of_peer = ({row["operation"]: row for row in each["rows"]} for each in (ours, peer))
    least = SHARE_SHOWN * min(ours["step_ms"], peer["step_ms"])
    rows = []
    for name in of_ours | of_peer:
        row: Figures = {"operation": name}
        for who, operations in (("ours", of_ours), ("peer", of_peer)):
            row |= {f"{who}_{key}": operations.get(name, {}).get(key, 0.0) for key in ("count", "ms")}
        if max(row["ours_ms"], row["peer_ms"]) >= least:
            rows.append(row | {"difference_ms": row["ours_ms"] - row["peer_ms"]})
    rows.sort(key=lambda row: -abs(row["difference_ms"]))
    steps = {"ours_step_ms": ours["step_ms"], "peer_step_ms": peer["step_ms"]}
    precisions = {"ours_precision": ours["precision"], "peer_precision": peer["precision"]}
    return {"peer": chosen.peer, **precisions, **steps, "rows": rows}


def against_peer(chosen: argparse.Namespace) -> Figures:
    """Measure ours and the peer's alternately; return the figures of every round and the means of their ratios."""
    rows = [
        {"round": number, "who": who, **run([chosen.what, *given(chosen), "--who", who, *peer])}
        for number in range(1, chosen.rounds + 1)
        for who, peer in (("ours", []), ("peer", peer_arguments(chosen)))
    ]
    shown = ("round", "who", "precision", *RATIOS.values())
    figures: Figures = {"peer": chosen.peer, "rows": [{key: row[key] for key in shown if key in row} for row in rows]}
    for name, key in RATIOS.items():
        if key in rows[0]:
            ratios = [ours[key] / peer[key] for ours, peer in zip(rows[::2], rows[1::2], strict=True)]
            figures |= {f"{name}_ratio": sum(ratios) / len(ratios), f"{name}_ratio_range": [min(ratios), max(ratios)]}
    return figures


def run(arguments: list[str], module: str = "benchmarks.speed") -> Figures:
    """Run a benchmark in a new process and return its figures."""
    done = subprocess.run([sys.executable, "-m", module, *arguments, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def of_peer(chosen: argparse.Namespace, problem: Problem, device: torch.device) -> Figures:
    """Return the figures of the peer, which does as its own scripts do."""
    of_train = problem.params.train.batch_size
    default = {"train": of_train, "profile": of_train, "evaluate": problem.params.evaluate.batch_size}
    size, steps = chosen.batch_size or default.get(chosen.what, SAMPLED), chosen.num_timesteps
    kind = class_of(chosen.peer)
    if chosen.peer == "google":
        job = {"model": problem.model, "batch_size": size, "num_timesteps": steps, "seconds": chosen.seconds}
        rate = kind.learning_rates[0]
        found = kind.run(chosen.peer_python, chosen.what, checkout=chosen.checkout, learning_rate=rate, **job)
        return {"precision": "float32"} | found

    def begun(batch_size: int) -> Peer:
        settings = (device, kind.learning_rates[0], chosen.peer_precision, batch_size)
        return kind(chosen.checkout, problem.model, *settings)  # type: ignore[no-any-return]

    pixels, peer = problem.images[:size].to(device), begun(size)
    step = {
        "train": lambda: peer.step(pixels),
        "evaluate": lambda: peer.evaluate(pixels),
        "sample": lambda: peer.sample(size, steps),
        "profile": lambda: peer.step(pixels),
    }[chosen.what]
    if chosen.what == "profile":
        return {"precision": chosen.peer_precision, **profile_of(step, device)}
    times = clock(step, device, chosen.seconds)
    figures = {
        "precision": chosen.peer_precision,
        "images_per_second": size / times.step,
        "images_per_processor_second": size / times.processor,
        "peak_memory_mib": peak_memory(device),
    }
    if chosen.what == "train":
        few = min(size, 4)  # the operations of an image are the same in every batch
        another = begun(few)
        figures["step_tflop"] = flop_of(lambda: another.step(pixels[:few])) * size / few / 1e12
    return figures


if __name__ == "__main__":
    main()
