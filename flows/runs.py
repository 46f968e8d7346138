"""A training run on this machine: its saved states, its claim on the device, and the signals that stop it.

States live outside DVC's outputs, which DVC deletes before a stage runs, in a folder named after everything that the
run depends on.  A run with other parameters, data or code finds another folder.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flows.ending import on_stop
from flows.errors import Exit, UserError
from vdm.checkpoint import CheckpointError, load_state, save_state

log = logging.getLogger(__name__)


class Run:
    """The saved states of one run, newest last; the last `keep` are kept."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def states(self) -> list[Path]:
        """The files, oldest first."""
        return sorted(self.folder.glob("step-*.state"))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a state and drop the oldest ones.  Raises UserError when it cannot, the states before it kept."""
        for pause in (0.5, 2.0, None):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_state(self.folder / f"step-{step:09d}.state", state)
                break
            except OSError as error:
                if pause is None:
                    raise UserError(
                        f"{self.folder}: the state at step {step} could not be written: {error.strerror}; "
                        f"make room and run again, which continues from the state before",
                        Exit.BUG,
                    ) from error
                time.sleep(pause)
        for path in self.states()[: -self.keep]:
            path.unlink()

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
    """A digest of what a run depends on, with the code of every module of ours that is loaded."""
    code = {
        name: hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
        for name, module in sorted(sys.modules.items())
        if (name.startswith("vdm.") or name.startswith("flows.stages.")) and module.__file__
    }
    content = json.dumps({"code": code, **dependencies}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


@contextmanager
def claim(device: torch.device) -> Iterator[None]:
    """Hold the device for one trainer.  Raises UserError (exit 6) naming the process that holds it already.

    A lock of the kernel's: it goes when its process goes, however that ends.
    """
    folder = Path(os.environ.get("VDM_LOCK_DIR", f"{tempfile.gettempdir()}/vdm-{os.getuid()}"))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{str(device).replace(':', '-')}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{device} is busy: {file.read().strip()} trains on it; wait for it or stop it", Exit.BUSY
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} in {Path.cwd()}\n")
        file.flush()
        yield


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into an answer to "was this run asked to stop?"."""
    received: list[int] = []
    with on_stop(lambda number, frame: received.append(number)):
        yield lambda: bool(received)
