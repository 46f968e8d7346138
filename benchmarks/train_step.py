"""Measure the speed and memory of a training step: forward, backward, clipping, AdamW and averaging, on random images.

The preset's `train.num_devices`, or --num-devices, is the number of processes that share each batch; their memory is
added up.  The shares of time spent on saved states and on validation are computed from the preset's intervals and the
time that one takes here.

With --peer FOLDER, a checkout of addtt/variational-diffusion-models, ours and the peer's step run alternately, each in
a new process.  The peer needs the packages accelerate, ema-pytorch, torchinfo and pyyaml.
"""

import argparse
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
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
from flows.training.collectives import any_process, process_group
from flows.training.distributed import results_of
from flows.training.fitting import micro_batch, resolve
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


def validation_time(problem: Problem, chosen: argparse.Namespace, trainer: Trainer) -> float:
    """Return the seconds that a validation with the preset's number of images takes, from that of a few images."""
    from flows.images.catalogue import PUBLISHED  # loads torchvision, which would add to the peak memory of training

    data, train = problem.params.data, problem.params.train
    sizes = {"batch_size": chosen.batch_size, "accumulation": chosen.accumulation or train.accumulation}
    batch_size = micro_batch(train.model_copy(update=sizes), chosen.num_devices)
    num_train = PUBLISHED[data.name].num_train if data.name in PUBLISHED else NUM_TRAINING_DIGITS
    few = problem.images[: train.batch_size].numpy()
    options = {"every_steps": 1, "times_per_image": train.validation_times, "keep": train.keep, "patience": None}
    validation = Validation(few, batch_size=batch_size, seed=0, **options)
    validation.evaluate(trainer.averaged, lambda: False)
    begin = time.perf_counter()
    validation.evaluate(trainer.averaged, lambda: False)
    return (time.perf_counter() - begin) / len(few) * round(data.validation_fraction * num_train)


def main() -> None:
    options = parser(__doc__, peer=True)
    options.add_argument("--compile", default="auto", choices=["auto", "true", "false"])
    options.add_argument("--activation-checkpointing", action="store_true")
    options.add_argument("--accumulation", type=positive)
    options.add_argument("--num-devices", type=positive, help="cards or, on a CPU, processes instead of the preset's")
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
    train = problem.params.train
    chosen.batch_size = chosen.batch_size or train.batch_size
    chosen.num_devices = chosen.num_devices or train.num_devices
    if chosen.peer:
        extra = ["--compile", chosen.compile, "--num-devices", str(chosen.num_devices)]
        extra += ["--accumulation", str(chosen.accumulation)] if chosen.accumulation else []
        extra += ["--activation-checkpointing"] if chosen.activation_checkpointing else []
        figures = against_peer("train_step", chosen, *extra)
        report(figures, device, as_json=chosen.json)
        return
    with explained(options):
        if chosen.batch_size % (parts := chosen.num_devices * (chosen.accumulation or train.accumulation)):
            raise ValueError(
                f"batch_size {chosen.batch_size} is not a multiple of num_devices x accumulation = {parts}"
            )
        find_device(chosen.device, chosen.num_devices)
    if chosen.num_devices > 1:
        times = np.stack(results_of(partial(timed, chosen), num_processes=chosen.num_devices))
    else:
        times = timed(chosen, 0)[None]
    report(measure(problem, chosen, device, *times[0, :2], times[:, 2].sum()), device, as_json=chosen.json)


def trainer_of(problem: Problem, chosen: argparse.Namespace, device: torch.device, parts: int = 1) -> Trainer:
    """Return the run that the options describe, with `parts` times as many micro-batches."""
    precision = find_precision(chosen.precision, device)
    compile = find_compile({"true": True, "false": False}.get(chosen.compile, "auto"), device)
    changes = {"batch_size": chosen.batch_size, "activation_checkpointing": chosen.activation_checkpointing}
    changes["accumulation"] = parts * (chosen.accumulation or problem.params.train.accumulation)
    return build(problem, device, precision, compile, **changes)


def timed(chosen: argparse.Namespace, rank: int) -> np.ndarray:
    """Return the seconds of the first and of a later step, and the peak memory in MiB of this process: (3,)."""
    device = find_device(chosen.device, chosen.num_devices, rank)
    with process_group(device):
        trainer = trainer_of(read_problem(chosen), chosen, device)
        times = clock(trainer.step, device, chosen.seconds, over=lambda passed: any_process(passed)[0])
        return np.array([times["first_step_s"], times["step_s"], peak_memory(device)])


def measure(
    problem: Problem, chosen: argparse.Namespace, device: torch.device, first: float, seconds: float, memory: float
) -> dict[str, Any]:
    """Return the figures of a step that takes `seconds`, `first` the first time, and `memory` MiB in all processes."""
    # One process takes the parts of all, one after the other, so that they fit into memory as they did.
    trainer, train = trainer_of(problem, chosen, device, parts=chosen.num_devices), problem.params.train
    trainer.step()
    saving, validation = saving_time(trainer), validation_time(problem, chosen, trainer)
    validated = (train.validate_every_steps or math.inf) * seconds
    interval = min(60 * train.checkpoint_every_minutes, train.checkpoint_every_steps * seconds)
    size = chosen.batch_size  # image by image, which takes as many operations and little memory
    flop = count_flop(build(problem, device, "float32", False, batch_size=size, accumulation=size).step)
    rate = matrix_rate(device, getattr(torch, trainer.settings.precision))
    if device.type == "cuda":  # on a CPU the processes share the cores that the rate was measured with
        rate *= chosen.num_devices
    return {
        "preset": chosen.preset,
        "precision": trainer.settings.precision,
        "compile": trainer.settings.compile,
        "num_devices": chosen.num_devices,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "width": problem.model["width"],
        "blocks": problem.model["blocks"],
        "batch_size": chosen.batch_size,
        "images_per_second": chosen.batch_size / seconds,
        "steps_per_second": 1 / seconds,
        "time_to_first_step_s": first,
        "peak_memory_mib": memory,
        "saved_state_s": saving,
        "saved_states_share_of_time": saving / (interval + saving),
        "validation_s": validation,
        "validation_share_of_time": validation / (validated + validation),
        "step_tflop": flop / 1e12,
        "matrix_rate_tflops": rate / 1e12,
        "share_of_matrix_rate": flop / seconds / rate,
    }


if __name__ == "__main__":
    main()
