"""Measure everything about one card that the choice of `auto` rests on, in ten minutes: parity, speed, memory.

    python -m benchmarks.gpu_day --out FOLDER [--peer NAME --checkout FOLDER] [--minutes 9] [--rows NAME ...]

Rows of speed are runs of `benchmarks.speed`, each in a new process: training steps of the paper's CIFAR-10 network in
bfloat16 and float32, compiled and not, with and without CUDA graphs, then evaluation, sampling and, with --peer, the
peer's.  `losses` takes the same first steps in bfloat16 and in float32, and once more from a saved state, then
evaluates the model in both: bits/dim say how close the precisions are, and whether a training that continues takes the
same steps.

A line is printed as soon as it is measured, the most useful first, with the card's name and the commit.  A row that
would begin after --minutes is left out, one that takes a minute longer is stopped, and the line says so.  FOLDER gets
results.json and table.md, the table for docs/results.md.  On a machine without a card everything runs on the CPU.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import cell, describe, duration, explained
from benchmarks.peers import peer_arguments, peer_options, require_peer
from benchmarks.speed import Problem, given, parser, read_problem, settings_of, trainer_of
from flows.core.device import find_device
from vdm.choices import Precision
from vdm.evaluation import BoundSettings, evaluate
from vdm.model import VDM

COMPARED_STEPS = 20
NOT_COMPILED, COMPILED, GRAPHS = (["--compile", choice] for choice in ("false", "true", "graphs"))
BFLOAT16, FLOAT32 = (["--precision", precision] for precision in ("bfloat16", "float32"))
ROWS = {
    "train, bfloat16": ["train", *BFLOAT16, *NOT_COMPILED],
    "train, bfloat16, compiled": ["train", *BFLOAT16, *COMPILED],
    "evaluate": ["evaluate", *BFLOAT16, *NOT_COMPILED],
    "sample": ["sample", *BFLOAT16, *NOT_COMPILED],
    "losses": ["losses"],
    "train, bfloat16, graphs": ["train", *BFLOAT16, *GRAPHS],
    "evaluate, compiled": ["evaluate", *BFLOAT16, *COMPILED],
    "sample, compiled": ["sample", *BFLOAT16, *COMPILED],
    "train, float32": ["train", *FLOAT32, *NOT_COMPILED],
    "train, float32, compiled": ["train", *FLOAT32, *COMPILED],
    "evaluate, float32": ["evaluate", *FLOAT32, *NOT_COMPILED],
    "sample, float32": ["sample", *FLOAT32, *NOT_COMPILED],
}
PEER_ROWS = {f"{kind}, peer": [kind, "--who", "peer"] for kind in ("train", "evaluate", "sample")}
SPEEDS = ("steps_per_second", "images_per_second", "peak_memory_mib", "share_of_matrix_rate", "time_to_first_step_s")
LOSSES = ("bfloat16_from_float32", "continued_from_whole", "evaluated_bfloat16_minus_float32")
COLUMNS = ("what", *SPEEDS, *LOSSES, "left_out", "device", "commit")


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(preset="cifar10", seconds=5.0)
    options.add_argument("--out", type=Path, help="the folder to write")
    peer_options(options, default=None)
    options.add_argument("--minutes", type=duration, default=9.0, help="no row begins after this time")
    options.add_argument("--rows", nargs="+", choices=[*ROWS, *PEER_ROWS], help="only these rows")
    options.add_argument("what", nargs="?", choices=["losses"], help=argparse.SUPPRESS)
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
        if chosen.peer or chosen.checkout:
            require_peer(chosen.peer, chosen.checkout, chosen.peer_python)
        if not chosen.out and not chosen.what:
            raise ValueError("--out names the folder to write")
    if chosen.what:
        print(json.dumps(losses(chosen, problem)))
        return
    chosen.out.mkdir(parents=True, exist_ok=True)
    common = given(argparse.Namespace(**{**vars(chosen), "out": None, "minutes": None, "rows": None, "compile": None}))
    peer = {name: [*row, *peer_arguments(chosen)] for name, row in PEER_ROWS.items()} if chosen.peer else {}
    machine, lines, rows = describe(device), [header()], dict[str, dict[str, Any]]()
    if not chosen.json:
        print(lines[0])
    deadline = time.monotonic() + 60 * chosen.minutes
    for name, row in (ROWS | peer).items():
        if chosen.rows is None or name in chosen.rows:
            rows[name] = machine | measured([row[0], *common, *row[1:]], deadline) | {"what": name}
            lines.append(line(rows[name]))
            if not chosen.json:
                print(lines[-1], flush=True)
    results = {"preset": chosen.preset, **machine, "table": "\n".join(lines), "rows": rows}
    (chosen.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (chosen.out / "table.md").write_text(results["table"] + "\n")
    if chosen.json:
        print(json.dumps(results, indent=2))


def measured(arguments: list[str], deadline: float) -> dict[str, Any]:
    """Return the figures of a row.  Without figures, `left_out` says why: no time was left, or the process failed."""
    if (seconds := deadline - time.monotonic()) <= 0:
        return {"left_out": "no time"}
    module = "benchmarks.gpu_day" if arguments[0] == "losses" else "benchmarks.speed"
    command = [sys.executable, "-m", module, *arguments, "--json"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 60)
    except subprocess.CalledProcessError:
        return {"left_out": "failed"}
    except subprocess.TimeoutExpired:
        return {"left_out": "too long"}
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def losses(chosen: argparse.Namespace, problem: Problem) -> dict[str, float]:
    """Return differences in bits/dim: of bfloat16 from float32, of a run that continues from one in one go.

    The first two are the largest of the first losses.  A run continues at half the steps from a saved state; 0 says
    that it takes the very same steps.  The third is that of the bound of the trained model, with the same noise.
    """
    reference, _, _ = first_losses(chosen, problem, "float32")
    whole, state, model = first_losses(chosen, problem, "bfloat16")
    continued, _, _ = first_losses(chosen, problem, "bfloat16", state)

    def differ(found: list[float], expected: list[float]) -> float:
        return max(abs(loss - other) for loss, other in zip(found, expected, strict=True))

    def bpd(precision: Precision) -> float:
        settings = BoundSettings(times_per_image=8, batch_size=512, seed=0, precision=precision)
        return float(evaluate(model, problem.images[:256].numpy(), settings).bpd.mean())

    found = differ(whole, reference), differ(continued, whole[COMPARED_STEPS // 2 :]), bpd("bfloat16") - bpd("float32")
    return dict(zip(LOSSES, found, strict=True))


def first_losses(
    chosen: argparse.Namespace, problem: Problem, precision: Precision, state: dict[str, Any] | None = None
) -> tuple[list[float], dict[str, Any], VDM]:
    """Return the bits/dim of the first steps, or of those after `state`, the state at half of them, and the model."""
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
    return found, half, trainer.averaged


def header() -> str:
    """Return the first two lines of a Markdown table."""
    return f"| {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    return f"| {' | '.join(cell(row.get(name)) for name in COLUMNS)} |"


if __name__ == "__main__":
    main()
