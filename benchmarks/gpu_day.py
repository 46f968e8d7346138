"""Measure everything about one card that the choice of `auto` rests on, in ten minutes: parity, speed, memory.

    python -m benchmarks.gpu_day --out FOLDER [--peer FOLDER] [--minutes 9]

Rows of speed are runs of `benchmarks.speed`, each in a new process: training steps of the paper's CIFAR-10 network in
bfloat16 and float32, compiled and not, in a process group (NCCL on a card), then evaluation, sampling and, with --peer,
the peer's.  `losses` takes the same first steps in bfloat16 and in float32, and once more from a saved state: their
bits/dim say how close both precisions are, and whether a training that continues takes the same steps.

The most useful rows come first.  A row that would begin after --minutes is left out, and the table says so.  FOLDER
gets results.json and table.md, the table for docs/results.md.  On a machine without a card everything runs on the CPU.
"""

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from benchmarks import describe, duration, explained
from benchmarks.speed import Problem, given, parser, read_problem, require_peer, run, settings_of, trainer_of
from flows.core.device import find_device
from vdm.choices import Precision

COMPARED_STEPS = 20
ROWS = {
    "train, bfloat16": ["train", "--precision", "bfloat16", "--compile", "false"],
    "train, bfloat16, compiled": ["train", "--precision", "bfloat16", "--compile", "true"],
    "evaluate": ["evaluate"],
    "sample": ["sample"],
    "losses": ["losses"],
    "train, float32": ["train", "--precision", "float32", "--compile", "false"],
    "train, float32, compiled": ["train", "--precision", "float32", "--compile", "true"],
    "evaluate, float32": ["evaluate", "--precision", "float32"],
    "sample, float32": ["sample", "--precision", "float32"],
}
PEER_ROWS = {f"{kind}, peer": [kind, "--who", "peer"] for kind in ("train", "evaluate", "sample")}
COLUMNS = ("steps_per_second", "images_per_second", "peak_memory_mib", "share_of_matrix_rate", "time_to_first_step_s")


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(preset="cifar10", seconds=5.0)
    options.add_argument("--out", type=Path, help="the folder to write")
    options.add_argument("--peer", type=Path, help="a checkout of the PyTorch peer to measure, too")
    options.add_argument("--minutes", type=duration, default=9.0, help="no row begins after this time")
    options.add_argument("what", nargs="?", choices=["losses"], help=argparse.SUPPRESS)
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
        if chosen.peer:
            require_peer(chosen.peer)
        if not chosen.out and not chosen.what:
            raise ValueError("--out names the folder to write")
    if chosen.what:
        print(json.dumps(losses(chosen, problem)))
        return
    deadline = time.monotonic() + 60 * chosen.minutes
    chosen.out.mkdir(parents=True, exist_ok=True)
    common = [*given(argparse.Namespace(**{**vars(chosen), "out": None, "minutes": None}))]
    peer = {name: [*row, "--peer", str(chosen.peer)] for name, row in PEER_ROWS.items()} if chosen.peer else {}
    rows = {name: measured([row[0], *common, *row[1:]], deadline) for name, row in (ROWS | peer).items()}
    table = markdown(rows)
    results = {"preset": chosen.preset, **describe(device), "table": table, "rows": rows}
    (chosen.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    text = f"{describe(device)}\n\n{table}\n"
    (chosen.out / "table.md").write_text(text)
    print(json.dumps(results, indent=2) if chosen.json else text)


def measured(arguments: list[str], deadline: float) -> dict[str, Any]:
    """Return the figures of a row.  Without figures, `left_out` says why: no time was left, or the process failed."""
    if time.monotonic() >= deadline:
        return {"left_out": "no time"}
    module = "benchmarks.gpu_day" if arguments[0] == "losses" else "benchmarks.speed"
    try:
        return run(arguments, module)
    except CalledProcessError:
        return {"left_out": "failed"}


def losses(chosen: argparse.Namespace, problem: Problem) -> dict[str, float]:
    """Return the largest relative differences of the first losses: of bfloat16 from float32, of a run that continues.

    The latter starts at half the steps from a saved state; 0 says that it takes the very same steps.
    """
    reference, _ = first_losses(chosen, problem, "float32")
    whole, state = first_losses(chosen, problem, "bfloat16")
    continued, _ = first_losses(chosen, problem, "bfloat16", state)

    def differ(found: list[float], expected: list[float]) -> float:
        return max(abs(loss / other - 1) for loss, other in zip(found, expected, strict=True))

    return {
        "bfloat16_from_float32": differ(whole, reference),
        "continued_from_whole": differ(continued, whole[COMPARED_STEPS // 2 :]),
    }


def first_losses(
    chosen: argparse.Namespace, problem: Problem, precision: Precision, state: dict[str, Any] | None = None
) -> tuple[list[float], dict[str, Any]]:
    """Return the losses of the first steps, or of those after `state`, in bits/dim, and the state at half the steps."""
    device = find_device(chosen.device)
    settings = replace(settings_of(chosen, problem, device), precision=precision, compile=False, log_every=1)
    trainer = trainer_of(problem, settings, device)
    if state:
        trainer.load_state(state)
    found, half = [], state or {}
    while trainer.done < COMPARED_STEPS:
        if record := trainer.step():
            found.append(record.bpd)
        if trainer.done == COMPARED_STEPS // 2:
            half = copy.deepcopy(trainer.state())
    return found, half


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Return all figures as a Markdown table, and those of `losses` below it."""
    lines = [f"| what | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, found in rows.items():
        if name != "losses":
            cells = [f"{found[column]:.4g}" if column in found else "" for column in COLUMNS]
            cells[0] = cells[0] or found.get("left_out", "")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    compared = [f"{name.replace('_', ' ')}: {value}" for name, value in rows["losses"].items()]
    return "\n".join([*lines, "", "Relative difference of the first losses: " + ", ".join(compared)])


if __name__ == "__main__":
    main()
