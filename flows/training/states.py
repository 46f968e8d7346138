"""A training on this machine: its saved states and its training log, also in a tracker.

A state holds what the next step needs.  The lines of the log are in a file beside the states, which only grows: before
a state is saved, its lines are on disk.  A training that continues takes the lines up to its state; those after it, of
steps that were lost, are written again.  Of two lines of a step the later one counts.

DVC deletes a stage's outputs before it runs the stage, so states are kept elsewhere.  The name of their folder is a
digest of parameters, data and code: a training that differs in one of them uses another folder.  The last state stays
until the model is registered: if DVC cannot record the outputs of a finished training, it is repeated from that state.
"""

import csv
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

import vdm
from flows.core.errors import CheckpointError, Exit, UserError, brief
from flows.core.files import name_in_errors, read_bounded, write_whole
from flows.core.files import save as sync
from vdm.training.log import TrainingRecord

log = logging.getLogger(__name__)

CODE = [Path(vdm.__file__).parent, Path(__file__).parent]
"""The folders with the code that determines the result of a training."""
MODEL = "model_sha256"
LOG = "log.csv"
END = b"\r\n"
"""The end of a line of a CSV file."""


class DamagedStateError(CheckpointError):
    """A training state that no later attempt can read either; the one before it may be whole."""


class States:
    """The saved states of one training, of which the newest `keep` are kept."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep, self.log = folder, keep, folder / LOG

    def states(self) -> list[Path]:
        """Return the files with states, oldest first."""
        return sorted(self.folder.glob("step-*.state"))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a state after the lines of the log, and delete all but the newest `keep`.

        Raises OSError that names the file if it cannot be written; then the older states stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            with name_in_errors(self.log, self.log), self.log.open("ab") as file:
                sync(file)
        save_state(self.folder / f"step-{step:09d}.state", state)
        for path in self.states()[: -self.keep]:
            path.unlink()

    def newest(self) -> dict[str, Any] | None:
        """Return the newest undamaged state, or None.  Warn of damaged states and rename them.

        Raises CheckpointError if a state cannot be read now; an older one would lose the steps between them.
        """
        for path in reversed(self.states()):
            try:
                return load_state(path)
            except DamagedStateError as error:
                aside = path.with_name(f"{path.name}.damaged")
                log.warning("%s; falling back to the state before, and keeping this one as %s", error, aside.name)
                path.replace(aside)
        return None

    def lines(self, last: int, count: int) -> bytes:
        """Return the `count` lines of the log up to the step `last`, and be ready for those that follow.

        Raises CheckpointError if there are not as many, and OSError that names the file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.log.read_bytes() if self.log.exists() else b""
        if content and not content.endswith(END):  # of a full disk or a power cut
            with name_in_errors(self.log, self.log), self.log.open("ab") as file:
                file.write(END)
        found = {step: line for line in content.split(END) if 0 < (step := step_of(line)) <= last}
        if len(found) != count:
            reason = f"has {len(found)} of the {count} lines up to step {last}"
            raise CheckpointError(f"{self.log}: {reason}; move {self.folder} away to train from the first step")
        return b"".join(found[step] + END for step in sorted(found))

    def finish(self, model: str) -> None:
        """Delete all states but the newest, and note for `forget` the sha256 of the model that it has written."""
        for path in self.states()[:-1]:
            path.unlink()
        (self.folder / MODEL).write_text(model)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state after its sha256.  The file appears whole or not at all."""
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(path, hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())


def load_state(path: Path, *, keys: Collection[str] = ()) -> dict[str, Any]:
    """Return the training state in `path`, on the CPU.

    Raises DamagedStateError if the file is damaged or a key is missing, and CheckpointError if it cannot be read now.
    """
    try:
        content = read_bounded(path, path.stat().st_size)
        digest, payload = content[:32], memoryview(content)[32:]
        if hashlib.sha256(payload).digest() != digest:
            raise DamagedStateError(f"{path}: truncated or damaged")
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # of the disk, or of torch: little memory, or a file of another version
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise CheckpointError(f"{path} could not be read: {reason}; correct that or move it away") from error
    if not isinstance(state, dict) or not set(keys) <= state.keys():
        raise DamagedStateError(f"{path}: must hold {', '.join(sorted(keys))}")
    return state


def forget(trainings: Path, model: str) -> None:
    """Delete the states of finished trainings that wrote the model of this sha256.  A forced rerun then starts anew."""
    for written in trainings.glob(f"*/{MODEL}"):
        if written.read_text() == model:
            shutil.rmtree(written.parent)


def fingerprint(**dependencies: Any) -> str:
    """Return a digest of the dependencies and of the files in `CODE`."""
    code = {
        f"{folder.name}/{path.relative_to(folder)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in CODE
        for path in folder.rglob("*.py")
    }
    content = json.dumps({"code": code, **dependencies}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def step_of(line: bytes) -> int:
    """Return the step of a line of the log, 0 if the line is not whole."""
    step, *others = line.split(b",")
    return int(step) if step.isdigit() and len(others) == len(TrainingRecord._fields) - 2 else 0


def start_curves(path: Path, lines: bytes = b"") -> None:
    """Write a new CSV file with a header and these lines.  Raises OSError that names it."""
    path.unlink(missing_ok=True)  # it may share its bytes with DVC's cache
    add_lines(path, TrainingRecord._fields)
    with name_in_errors(path, path), path.open("ab") as file:
        file.write(lines)


def add_lines(path: Path, *rows: Sequence[Any]) -> None:
    """Append rows to the CSV file, without their last field, the images per second: equal trainings write equal bytes.

    Raises OSError that names the file.
    """
    with name_in_errors(path, path), path.open("a", newline="") as file:
        csv.writer(file).writerows(["nan" if value is None else value for value in row[:-1]] for row in rows)


def make_tracker(tracker: str | None, folder: Path, done: int) -> Callable[[TrainingRecord], None]:
    """Return the function that shows a record in the tracker, where those of the steps after `done` are forgotten.

    Its files lie beside the folder of all trainings.  Raises UserError (exit 2) if the tracker is not installed.
    """
    if tracker is None:
        return lambda record: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        advice = "pip install 'vdm-pipeline[tensorboard]', or set it to null"
        raise UserError(f"train.tracker: TensorBoard is not installed: {advice}", Exit.USAGE) from error
    writer = SummaryWriter(folder.resolve().parent.with_name(tracker) / folder.name, purge_step=done + 1)

    def show(record: TrainingRecord) -> None:
        for name, value in record._asdict().items():
            if value is not None:
                writer.add_scalar(name, value, record.step)
        writer.flush()

    return show
