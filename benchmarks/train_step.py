"""Measure the speed and memory of a training step: forward, backward, clipping, AdamW and averaging, on random images.

The shares of time spent on saved states and on validation are computed from the preset's intervals and the time that
one takes here.
With --peer FOLDER, a checkout of addtt/variational-diffusion-models, ours and the peer's step run alternately, each in
a new process.  The peer needs the packages accelerate, ema-pytorch, torchinfo and pyyaml.
"""

import math
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
from flows.core.checkpoint import save_state
from flows.core.device import find_compile, find_device, find_precision
from flows.images.catalogue import PUBLISHED
from flows.training.fitting import resolve
from vdm.model import VDM
from vdm.training.trainer import Trainer
from vdm.training.validation import Validation

NUM_TRAINING_DIGITS = 1438


def build(problem: Problem, device: torch.device, precision: str, compile: bool, **changes: Any) -> Trainer:
    """Return the preset's run before its first step."""
    torch.manual_seed(0)
    settings = replace(resolve(problem.params.train, device), precision=precision, compile=compile, **changes)
    return Trainer(VDM(**problem.model).to(device), problem.images.to(device), settings)


def saving_time(trainer: Trainer) -> float:
    """Return the seconds that it takes to save a state in the current folder's file system."""
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        begin = time.perf_counter()
        save_state(Path(folder) / "state", trainer.state())
        return time.perf_counter() - begin


def validation_time(problem: Problem, trainer: Trainer) -> float:
    """Return the seconds that a validation with the preset's number of images takes, from that of a few images."""
    data, train = problem.params.data, problem.params.train
    num_train = PUBLISHED[data.name].num_train if data.name in PUBLISHED else NUM_TRAINING_DIGITS
    few = problem.images[: train.batch_size].numpy()
    options = {"every_steps": 1, "times_per_image": train.validation_times, "keep": train.keep, "patience": None}
    validation = Validation(few, batch_size=train.batch_size, seed=0, **options)
    validation.evaluate(trainer.averaged, lambda: False)
    begin = time.perf_counter()
    validation.evaluate(trainer.averaged, lambda: False)
    return (time.perf_counter() - begin) / len(few) * round(data.validation_fraction * num_train)


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
    figures = {"preset": chosen.preset, "precision": precision, "compile": compile}
    figures |= measure(problem, trainer, device, precision, size, chosen.seconds)
    report(figures, device, as_json=chosen.json)


def measure(
    problem: Problem, trainer: Trainer, device: torch.device, precision: str, size: int, seconds: float
) -> dict[str, Any]:
    """Return the figures of a trainer's step on `size` images, timed for `seconds`."""
    times = clock(trainer.step, device, seconds)
    memory = peak_memory(device)
    saving, validation = saving_time(trainer), validation_time(problem, trainer)
    validated = (problem.params.train.validate_every_steps or math.inf) * times["step_s"]
    interval = 60 * problem.params.train.checkpoint_every_minutes
    interval = min(interval, problem.params.train.checkpoint_every_steps * times["step_s"])
    flop = count_flop(build(problem, device, "float32", False, batch_size=size).step)
    rate = matrix_rate(device, getattr(torch, precision))
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "width": problem.model["width"],
        "blocks": problem.model["blocks"],
        "batch_size": size,
        "images_per_second": size / times["step_s"],
        "steps_per_second": 1 / times["step_s"],
        "time_to_first_step_s": times["first_step_s"],
        "peak_memory_mib": memory,
        "saved_state_s": saving,
        "saved_states_share_of_time": saving / (interval + saving),
        "validation_s": validation,
        "validation_share_of_time": validation / (validated + validation),
        "step_tflop": flop / 1e12,
        "matrix_rate_tflops": rate / 1e12,
        "share_of_matrix_rate": flop / times["step_s"] / rate,
    }


if __name__ == "__main__":
    main()
