"""Measure everything about one card that the choice of `auto` rests on, in ten minutes: parity, speed, memory.

    python -m benchmarks.gpu_day --out FOLDER [--peer FOLDER] [--minutes 9]

Each row is a training step in a new process: {eager, compile, max-autotune} x {contiguous, channels_last} in bfloat16,
the compiled ones also without TORCHINDUCTOR_LOOP_REINDEXING_AFTER_FUSION, one in float32, and one in a process group
(NCCL on a card).  All rows take the same first steps, so comparing their losses with those in float32 shows parity.
Then come evaluation, sampling and, with --peer, the peer's step, evaluation and sampling.

The most useful rows come first.  A row that would begin after --minutes is left out, and the table says so.  FOLDER
gets results.json and table.md, the table for docs/results.md.  On a machine without a card everything runs on the CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.options import duration, explained
from benchmarks.speed import Problem, clock, common, count_flop, matrix_rate, parser, peak_memory, read_problem
from flows.core.device import find_device
from flows.training.collectives import process_group
from flows.training.distributed import launch
from flows.training.fitting import resolve
from vdm.choices import Precision
from vdm.model import VDM
from vdm.training.optimizer import optimizers
from vdm.training.trainer import Trainer

REINDEXING = "TORCHINDUCTOR_LOOP_REINDEXING_AFTER_FUSION"
MODES = ("eager", "compile", "max-autotune")
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
COMPARED_STEPS = 20
Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A way to take a training step."""

    precision: Precision
    mode: str
    memory_format: str
    reindexing: bool = True
    distributed: bool = False

    @property
    def name(self) -> str:
        """The row's name in the table."""
        parts = [self.mode, self.memory_format, self.precision]
        if not self.reindexing:
            parts.append("no reindexing")
        if self.distributed:
            parts.append("process group")
        return ", ".join(parts)


REFERENCE = Row("float32", "eager", "contiguous")
ROWS = [
    REFERENCE,
    *(Row("bfloat16", mode, memory_format) for mode in MODES[:2] for memory_format in FORMATS),
    Row("bfloat16", "eager", "channels_last", distributed=True),
    Row("bfloat16", "compile", "channels_last", reindexing=False),
    *(Row("bfloat16", "max-autotune", memory_format) for memory_format in FORMATS),
    Row("bfloat16", "compile", "contiguous", reindexing=False),
    *(Row("bfloat16", "max-autotune", memory_format, reindexing=False) for memory_format in FORMATS),
]


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(preset="cifar10", seconds=5.0)
    options.add_argument("--out", type=Path, required=True, help="the folder to write")
    options.add_argument("--peer", type=Path, help="a checkout of the PyTorch peer to measure, too")
    options.add_argument("--minutes", type=duration, default=9.0, help="no row begins after this time")
    options.add_argument("--row", type=int, help=argparse.SUPPRESS)  # of the processes that this one starts
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
    if chosen.row is not None:
        measure(ROWS[chosen.row], problem, chosen, device)
        return
    deadline = time.monotonic() + 60 * chosen.minutes
    chosen.out.mkdir(parents=True, exist_ok=True)
    steps = [(row, step(number, chosen, deadline)) for number, row in enumerate(ROWS)]
    others = {name: run(module, deadline, {}) for name, module in commands(chosen).items()}
    table = markdown(steps, others)
    results = {"preset": chosen.preset, **describe(device), "table": table, "others": others}
    results["rows"] = [{"row": row.name, **found} for row, found in steps]
    (chosen.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    text = f"{describe(device)}\n\n{table}\n\n{proposal(steps)}\n"
    (chosen.out / "table.md").write_text(text)
    print(json.dumps(results, indent=2) if chosen.json else text)


def step(number: int, chosen: argparse.Namespace, deadline: float) -> Figures:
    """Return the figures of a row, see `run`."""
    command = ["benchmarks.gpu_day", *common(chosen), "--out", str(chosen.out), "--row", str(number)]
    return run(command, deadline, {REINDEXING: str(int(ROWS[number].reindexing))})


def commands(chosen: argparse.Namespace) -> dict[str, list[str]]:
    """Return the commands of the other figures by name."""
    kinds = ("evaluate", "sample")
    ours = {f"{kind}, ours": [f"benchmarks.{kind}", *common(chosen), "--json"] for kind in kinds}
    if not chosen.peer:
        return ours
    theirs = ("train_step", *kinds)
    peer = {f"{kind}, peer": ["benchmarks.peer", kind, str(chosen.peer), *common(chosen), "--json"] for kind in theirs}
    return ours | peer


def run(module: list[str], deadline: float, variables: dict[str, str]) -> Figures:
    """Return the JSON object that a module prints in a new process with these environment variables, too.

    Without figures, `left_out` says why: no time was left, or the process failed.
    """
    if time.monotonic() >= deadline:
        return {"left_out": "no time"}
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    return json.loads(done.stdout) if done.returncode == 0 else {"left_out": "failed"}


def measure(row: Row, problem: Problem, chosen: argparse.Namespace, device: torch.device) -> None:
    """Print the figures of a row."""
    job = partial(in_a_group, row, problem, chosen, device)
    if row.distributed:
        launch(job, num_processes=1, max_restarts=0, again="run again")
    else:
        job()


def in_a_group(row: Row, problem: Problem, chosen: argparse.Namespace, device: torch.device) -> None:
    """Print the figures of a row, in a process group if `launch` started this process."""
    size = chosen.batch_size or problem.params.train.batch_size
    with process_group(device):
        print(json.dumps(figures(row, problem, size, chosen.seconds, device)))


def figures(row: Row, problem: Problem, size: int, seconds: float, device: torch.device) -> Figures:
    """Return the first losses of a row in bits/dim, then its speed and memory."""
    trainer = build(row, problem, size, device)
    losses = [record.bpd for _ in range(COMPARED_STEPS) if (record := trainer.step())]
    times = clock(trainer.step, device, seconds)
    memory = peak_memory(device)
    flop = count_flop(build(replace(row, mode="eager", distributed=False), problem, size, device).step)
    rate = matrix_rate(device, getattr(torch, row.precision))
    return {
        "losses": losses,
        "steps_per_second": 1 / times["step_s"],
        "images_per_second": size / times["step_s"],
        "peak_memory_mib": memory,
        "share_of_matrix_rate": flop / times["step_s"] / rate,
    }


def build(row: Row, problem: Problem, size: int, device: torch.device) -> Trainer:
    """Return the preset's run before its first step, with a line of the log for each step."""
    torch.manual_seed(0)
    settings = resolve(problem.params.train, device)
    settings = replace(settings, precision=row.precision, compile=False, batch_size=size, log_every=1, warmup_steps=0)
    trainer = Trainer(VDM(**problem.model).to(device), problem.images.to(device), settings)
    for module in (trainer.model, trainer.average):
        module.to(memory_format=FORMATS[row.memory_format])  # type: ignore[call-overload]
    # Their state must have the layout of the weights, or AdamW's fused kernel for CUDA refuses it.
    options = {"betas": settings.betas, "weight_decay": settings.weight_decay}
    trainer.optimizers = optimizers(trainer.model, settings.optimizer, **options)
    if row.mode != "eager":
        trainer.network.compile(mode="default" if row.mode == "compile" else "max-autotune-no-cudagraphs")
    return trainer


def parity(found: Figures, reference: Figures) -> str:
    """Return the largest relative difference of the first losses from those of the reference."""
    if "losses" not in reference:
        return "unknown"
    pairs = zip(found["losses"], reference["losses"], strict=True)
    return f"{max(abs(loss / expected - 1) for loss, expected in pairs):.1e}"


def markdown(steps: list[tuple[Row, Figures]], others: dict[str, Figures]) -> str:
    """Return all figures as a Markdown table."""
    reference = steps[0][1]
    lines = ["| what | steps/s | images/s | peak memory, MiB | share of the matrix rate | loss, from float32 |"]
    lines.append("|---|---|---|---|---|---|")
    named = {**{row.name: found for row, found in steps}, **others}
    for name, found in named.items():
        cells = [found.get("left_out", "")] + [""] * 4
        if "images_per_second" in found:
            cells[1:3] = [f"{found['images_per_second']:.0f}", f"{found['peak_memory_mib']:.0f}"]
        if "losses" in found:
            cells[0] = f"{found['steps_per_second']:.2f}"
            cells[3:] = [f"{found['share_of_matrix_rate']:.2f}", parity(found, reference)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def proposal(steps: list[tuple[Row, Figures]]) -> str:
    """Return which of the measured ways `auto` should choose: the fastest one in bfloat16."""
    speeds = {
        row.name: found["steps_per_second"]
        for row, found in steps
        if "losses" in found and row.precision == "bfloat16" and not row.distributed
    }
    if not speeds:
        return "No step in bfloat16 was measured."
    best = max(speeds, key=lambda name: speeds[name])
    return f"`auto` should choose: {best} ({speeds[best]:.2f} steps/s)."


if __name__ == "__main__":
    main()
