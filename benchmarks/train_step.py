"""Speed and memory of a training step: forward, backward, clipping, AdamW and averaging, on random images.

The share of time that saved states cost follows from the preset's intervals and the time that one took here.
With --peer FOLDER, a checkout of addtt/variational-diffusion-models, its step is measured in turns with ours, each
run in a process of its own.  Its imports must be installed: accelerate, ema-pytorch, torchinfo, pyyaml.
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.options import explained, positive
from benchmarks.speed import (
    Problem,
    against_peer,
    clock,
    count_flop,
    matrix_rate,
    parser,
    peak_memory,
    read_problem,
    report,
)
from flows.core.device import find_compile, find_device, find_precision
from flows.training.fitting import resolve
from vdm.checkpoint import save_state
from vdm.model import VDM
from vdm.training import Trainer


def build(problem: Problem, device: torch.device, precision: str, compile: bool, **changes: Any) -> Trainer:
    """Return the preset's run before its first step."""
    torch.manual_seed(0)
    settings = replace(resolve(problem.params.train, device), precision=precision, compile=compile, **changes)
    return Trainer(VDM(**problem.model).to(device), problem.images.to(device), settings)


def saving_time(trainer: Trainer) -> float:
    """Seconds to write a state into the current folder's file system."""
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        begin = time.perf_counter()
        save_state(Path(folder) / "state", trainer.state())
        return time.perf_counter() - begin


def main() -> None:
    options = parser(__doc__, peer=True)
    options.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    options.add_argument("--compile", default="auto", choices=["auto", "true", "false"])
    options.add_argument("--activation-checkpointing", action="store_true")
    options.add_argument("--accumulation", type=positive)
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
    size = chosen.batch_size or problem.params.train.batch_size
    if chosen.peer:
        extra = ["--precision", chosen.precision, "--compile", chosen.compile]
        figures = against_peer("train_step", chosen, problem, size, *extra)
        report(figures, device, as_json=chosen.json)
        return
    precision = find_precision(chosen.precision, device)
    compile = find_compile({"true": True, "false": False}.get(chosen.compile, "auto"), device)
    changes = {"batch_size": size, "activation_checkpointing": chosen.activation_checkpointing}
    if chosen.accumulation:
        changes["accumulation"] = chosen.accumulation
    with explained(options):
        trainer = build(problem, device, precision, compile, **changes)
    times = clock(trainer.step, device, chosen.seconds)
    memory = peak_memory(device)
    saving = saving_time(trainer)
    interval = 60 * problem.params.train.checkpoint_every_minutes
    interval = min(interval, problem.params.train.checkpoint_every_steps * times["step_s"])
    flop = count_flop(build(problem, device, "float32", False, batch_size=size).step)
    rate = matrix_rate(device, getattr(torch, precision))
    figures = {
        "preset": chosen.preset,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "width": problem.model["width"],
        "blocks": problem.model["blocks"],
        "batch_size": size,
        "precision": precision,
        "compile": compile,
        "images_per_second": size / times["step_s"],
        "steps_per_second": 1 / times["step_s"],
        "time_to_first_step_s": times["first_step_s"],
        "peak_memory_mib": memory,
        "saved_state_s": saving,
        "saved_states_share_of_time": saving / (interval + saving),
        "step_tflop": flop / 1e12,
        "matrix_rate_tflops": rate / 1e12,
        "share_of_matrix_rate": flop / times["step_s"] / rate,
    }
    report(figures, device, as_json=chosen.json)


if __name__ == "__main__":
    main()
