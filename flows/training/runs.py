"""A training run on this machine: its saved states, its curves, and the signals that stop it.

States live outside DVC's outputs, which DVC deletes before a stage runs, in a folder named after everything that the
run depends on.  A run with other parameters, data or code finds another folder.
"""

import csv
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flows.core.errors import Exit, UserError
from flows.process.ending import on_stop
from vdm.checkpoint import load_state, save_state
from vdm.errors import CheckpointError
from vdm.training_log import TrainingRecord

log = logging.getLogger(__name__)

# The packages whose code decides what a training computes.
CODE = ("vdm.", "flows.stages.", "flows.training.", "flows.images.")


class Run:
    """The saved states of one run, newest last; the last `keep` are kept."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def states(self) -> list[Path]:
        """Return the files, oldest first.  What is no file, a FIFO say, is no state."""
        return sorted(path for path in self.folder.glob("step-*.state") if path.is_file())

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a state and drop the oldest ones.  Raises UserError when it cannot, the states before it kept."""
        for pause in (0.5, 2.0, None):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_state(self.folder / f"step-{step:09d}.state", state)
                break
            except OSError as error:
                if pause is None:
                    raise unwritten(f"{self.folder}: the state at step {step}", error) from error
                time.sleep(pause)
        for path in self.states()[: -self.keep]:
            path.unlink(missing_ok=True)

    def newest(self, keys: Collection[str] = ()) -> dict[str, Any] | None:
        """The newest state that is whole and has the keys, None when there is none; damaged ones are said to be so."""
        for path in reversed(self.states()):
            try:
                return load_state(path, keys=keys)
            except CheckpointError as error:
                log.warning("%s; falling back to the state before", error)
        return None

    def remove(self) -> None:
        """Forget the run: it has succeeded, and a forced rerun is to start afresh."""
        shutil.rmtree(self.folder, ignore_errors=True)


def fingerprint(**dependencies: Any) -> str:
    """Return a digest of what a run depends on, and of the modules of `CODE` that this process has imported."""
    code = {
        name: hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
        for name, module in sorted(sys.modules.items())
        if name.startswith(CODE) and module.__file__
    }
    content = json.dumps({"code": code, **dependencies}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def unwritten(what: str, error: OSError) -> UserError:
    """The end of a training that cannot write (exit 1), a full disk for example."""
    reason = f"{what} could not be written: {error.strerror}"
    return UserError(f"{reason}; mend that and run again, which continues from the last saved state", Exit.BUG)


@contextmanager
def writing_curves(path: Path, records: Sequence[TrainingRecord]) -> Iterator[Callable[[TrainingRecord], None]]:
    """Start the CSV file with the records, and return what adds one.  Both raise UserError when they cannot.

    A new file: the old one may share its bytes with DVC's cache, or be a FIFO that nobody reads.
    """

    def add(record: TrainingRecord) -> None:
        try:
            # Without the last field, the images per second: the same run leaves the same bytes.
            writer.writerow(record[:-1])
            file.flush()
        except OSError as error:
            raise unwritten(str(path), error) from error

    try:
        path.unlink(missing_ok=True)
        file = path.open("x", newline="")
        writer = csv.writer(file)
        writer.writerow(TrainingRecord._fields[:-1])
    except OSError as error:
        raise unwritten(str(path), error) from error
    try:
        for record in records:
            add(record)
        yield add
    finally:
        with suppress(OSError):  # of a line that has been given up
            file.close()


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into an answer to "was this run asked to stop?"."""
    received: list[int] = []
    with on_stop(lambda number, frame: received.append(number)):
        yield lambda: bool(received)
