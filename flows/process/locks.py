"""Lock files with flock, which the kernel releases when the process that holds the lock ends.

A lock's file says which process holds it.  The locks of devices are in one folder for each user of a machine.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_state_path

from flows.core.documents import Count, Document, parse
from flows.core.errors import Exit, UserError
from flows.core.files import name_in_errors

if TYPE_CHECKING:
    import torch

# `holder_of` takes a lock for a moment to see whether it is free.  So a lock that is taken is tried again after this.
LOOK_SECONDS = 0.1


class Holder(Document):
    """The process that holds a lock; all is None while it has not said so."""

    process: Count | None = None
    folder: str | None = None
    """Where it works, or for which folder it does."""
    url: str | None = None
    """Where it answers, or the API that it uses."""

    def __str__(self) -> str:
        if self.process is None:
            return "another process"
        return f"process {self.process} in {self.folder}" if self.folder else f"process {self.process}"


@contextmanager
def lock_file(path: Path, holder: Holder | None = None, *, wait: bool = False) -> Iterator[Holder | None]:
    """Hold the lock of a file, and write the holder into it.

    Yields None if this process now holds the lock, else the process that does.  With `wait`, waits until the lock is
    free.  Raises OSError that names the file.
    """
    # Without a holder the file may be one that another user made.
    descriptor = os.open(path, os.O_CREAT | (os.O_RDWR if holder else os.O_RDONLY), 0o666)
    other = None
    try:
        with name_in_errors(path, path):  # a file system may have no locks
            if wait:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            elif not try_lock(descriptor, fcntl.LOCK_EX):
                time.sleep(LOOK_SECONDS)
                if not try_lock(descriptor, fcntl.LOCK_EX):
                    other = read_holder(descriptor)
            if holder and not other:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder.model_dump()).encode(), 0)
        yield other
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, kind: int) -> bool:
    """Try to lock an open file, and return whether this process now holds the lock."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_holder(descriptor: int) -> Holder:
    """Return what the file of a lock that is held says of its holder."""
    try:
        return parse(Holder, os.pread(descriptor, 2**16, 0), "")
    except UserError:  # not written yet
        return Holder()


def holder_of(path: Path) -> Holder | None:
    """Return the process that holds the lock of a file; None if no process does."""
    with suppress(OSError), path.open() as file:
        if not try_lock(file.fileno(), fcntl.LOCK_SH):
            return read_holder(file.fileno())
    return None


def list_held_locks(folder: Path) -> dict[str, Holder]:
    """Return the processes that hold locks in a folder, by the name of the lock's file."""
    holders = {path.name: holder_of(path) for path in folder.glob("*.lock")}
    return {name: holder for name, holder in holders.items() if holder is not None}


def folder_of_devices() -> Path:
    """Return the folder with the locks of this machine's devices.  Raises UserError (exit 2) for a relative path."""
    folder = Path(os.environ.get("VDM_LOCK_DIR") or user_state_path("vdm"))
    if not folder.is_absolute():  # another folder in every worktree
        raise UserError(f"VDM_LOCK_DIR: {folder} is not an absolute path; set one", Exit.USAGE)
    return folder


@contextmanager
def claim(device: "torch.device") -> Iterator[None]:
    """Hold the lock of a device while the block runs.

    Raises UserError: exit 6 that names the process which holds it, 2 if VDM_LOCK_DIR is relative.
    """
    path = device_lock(device)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_file(path, Holder(process=os.getpid(), folder=str(Path.cwd()))) as other:
        if other:
            raise UserError(f"{device} is busy: {other} trains on it; wait for it or stop it", Exit.BUSY)
        yield


def device_lock(device: "torch.device") -> Path:
    """Return the file of the lock of a device.  Raises UserError (exit 2) if VDM_LOCK_DIR is relative."""
    name = device.type
    if device.type == "cuda":
        import torch

        # CUDA_VISIBLE_DEVICES changes a card's number, and not its UUID.
        name = f"cuda-{getattr(torch.cuda.get_device_properties(device), 'uuid', device.index or 0)}"
    return folder_of_devices() / f"{name}.lock"
