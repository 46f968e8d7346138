"""Lock files with flock, which the kernel releases when the process that holds the lock ends.

A lock's file describes the process that holds it.  The locks of devices are in one folder for each user of a machine.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_state_path

from flows.core.errors import Exit, UserError
from flows.core.files import naming, open_regular

if TYPE_CHECKING:
    import torch

# `holder_of` takes a lock for a moment to see whether it is free.  So `acquire` waits this long and tries again.
LOOK_SECONDS = 0.1


@contextmanager
def lock_file(path: Path, holder: str = "", *, wait: bool = False) -> Iterator[str | None]:
    """Hold the lock of a file, and write the holder's description into it.

    Yields None if this process now holds the lock, else the description of the process that does.  With `wait`, waits
    until the lock is free.  Raises OSError that names the file.
    """
    # Without a description the file may be one that another user made.
    descriptor = os.open(path, os.O_CREAT | os.O_CLOEXEC | (os.O_RDWR if holder else os.O_RDONLY), 0o666)
    try:
        with naming(path, path):  # a file system may have no locks
            other = acquire(descriptor, holder, wait=wait)
        yield other
    finally:
        os.close(descriptor)


def acquire(descriptor: int, holder: str, *, wait: bool) -> str | None:
    """Lock an open file.  Return None, or the description of another process that holds the lock."""
    if not locked(descriptor, wait=wait):
        time.sleep(LOOK_SECONDS)
        if not locked(descriptor, wait=wait):
            return os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "another process"
    if holder:
        with suppress(OSError):  # a full disk; the lock then has no description
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, os.fsencode(f"{holder}\n"), 0)
    return None


def locked(descriptor: int, *, wait: bool) -> bool:
    """Try to lock an open file, and return whether this process now holds the lock.  With `wait`, wait for it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder_of(path: Path) -> str | None:
    """Return the description of the process that holds the lock of a file; None if no process does."""
    with suppress(OSError), open_regular(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(4096).decode(errors="replace").strip()
    return None


def held_locks(folder: Path) -> dict[str, str]:
    """Return the descriptions of the processes that hold locks in a folder, by the name of the lock's file."""
    holders = {path.name: holder_of(path) for path in folder.glob("*.lock")}
    return {name: holder for name, holder in holders.items() if holder is not None}


def folder_of_devices() -> Path:
    """Return the folder with the locks of this machine's devices.  Raises UserError (exit 2) for a relative path."""
    folder = Path(os.environ.get("VDM_LOCK_DIR") or user_state_path("vdm"))
    if not folder.is_absolute():
        reason = "is another folder in every working directory, so it cannot keep two trainers off one device"
        raise UserError(f"VDM_LOCK_DIR: {folder} {reason}; set an absolute path", Exit.USAGE)
    return folder


def lock_of(device: "torch.device") -> str:
    """Return the name of a device's lock: a card's has its UUID, since CUDA_VISIBLE_DEVICES changes its number."""
    if device.type != "cuda":
        return f"{device.type}.lock"
    import torch

    properties = torch.cuda.get_device_properties(device)
    return f"cuda-{getattr(properties, 'uuid', device.index or 0)}.lock"


@contextmanager
def claim(device: "torch.device") -> Iterator[None]:
    """Hold the lock of a device while the block runs.

    Raises UserError: exit 6 that names the process which holds it, 2 if VDM_LOCK_DIR is relative.
    """
    folder = folder_of_devices()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_file(folder / lock_of(device), f"process {os.getpid()} in {Path.cwd()}") as other:
        if other:
            raise UserError(f"{device} is busy: {other} trains on it; wait for it or stop it", Exit.BUSY)
        yield
