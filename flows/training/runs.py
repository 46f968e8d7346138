"""A training run on this machine: its saved states and its training log.

DVC deletes a stage's outputs before it runs the stage, so states are kept elsewhere.  The name of their folder is a
digest of parameters, data and code: a run that differs in one of them uses another folder.  The last state stays until
the model is registered: if DVC cannot record the outputs of a finished run, the run is repeated from that state.
"""

import csv
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import vdm
from flows.core.checkpoint import DamagedStateError, load_state, save_state
from flows.core.errors import Exit, UserError
from vdm.training.log import TrainingRecord

log = logging.getLogger(__name__)

CODE = [Path(vdm.__file__).parent, Path(__file__).parent]
"""The folders with the code that determines the result of a training run."""
MODEL = "model_sha256"


class Run:
    """The saved states of one run, of which the newest `keep` are kept."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def states(self) -> list[Path]:
        """Return the files with states, oldest first."""
        return sorted(self.folder.glob("step-*.state"))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a state, and delete all but the newest `keep`.

        Raises UserError (exit 1) if it cannot be written; then the older states stay.
        """
        with reported(f"{self.folder}: the state at step {step}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_state(self.folder / f"step-{step:09d}.state", state)
            for path in self.states()[: -self.keep]:
                path.unlink()

    def newest(self, keys: Collection[str] = ()) -> dict[str, Any] | None:
        """Return the newest undamaged state with the keys, or None.  Warn of damaged states and rename them.

        Raises CheckpointError if a state cannot be read now; an older one would lose the steps between them.
        """
        for path in reversed(self.states()):
            try:
                return load_state(path, keys=keys)
            except DamagedStateError as error:
                aside = path.with_name(f"{path.name}.damaged")
                log.warning("%s; falling back to the state before, and keeping this one as %s", error, aside.name)
                path.replace(aside)
        return None

    def finish(self, model: str) -> None:
        """Delete all states but the newest, and note for `forget` the sha256 of the model that the run has written."""
        for path in self.states()[:-1]:
            path.unlink()
        with reported(self.folder / MODEL):
            (self.folder / MODEL).write_text(model)


def forget(runs: Path, model: str) -> None:
    """Delete the states of finished runs that wrote the model of this sha256.  A forced rerun then starts anew."""
    for written in runs.glob(f"*/{MODEL}"):
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


@contextmanager
def reported(what: Path | str) -> Iterator[None]:
    """Turn an OSError of the block into UserError (exit 1), which says that the run cannot write `what`."""
    try:
        yield
    except OSError as error:
        advice = "correct that and run again; training continues from its last saved state, if it has one"
        raise UserError(f"{what} could not be written: {error.strerror}; {advice}", Exit.BUG) from error


@contextmanager
def writing_curves(path: Path, records: Sequence[TrainingRecord]) -> Iterator[Callable[[TrainingRecord], None]]:
    """Write the records to a new CSV file, and return a function that appends one.  Both raise UserError (exit 1)."""

    def add(record: TrainingRecord) -> None:
        with reported(path):
            # Leave out the last field, the images per second, so that equal runs write equal bytes.
            writer.writerow(["nan" if value is None else value for value in record[:-1]])
            file.flush()

    with reported(path):
        path.unlink(missing_ok=True)  # it may share its bytes with DVC's cache
        file = path.open("x", newline="")
        writer = csv.writer(file)
        writer.writerow(TrainingRecord._fields[:-1])
    try:
        for record in records:
            add(record)
        yield add
    finally:
        with suppress(OSError):  # closing writes again what `add` could not write
            file.close()
