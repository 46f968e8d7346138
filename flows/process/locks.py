"""Lock files with flock, which the kernel releases when the process that holds the lock ends.

A lock's file describes the process that holds it.  The locks of devices are in /tmp/vdm-UID, where a login, a cron job
and a service of the same user find the same files.  TMPDIR and XDG_RUNTIME_DIR differ between these, and
XDG_RUNTIME_DIR is removed when the user logs out.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

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
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if holder or not path.exists():  # the lock would be held with the description of an earlier holder
            raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # another user of a shared folder made it
    try:
        with naming(path, path):  # a file system may have no locks
            other = acquire(descriptor, holder, wait=wait)
        yield other
    finally:
        os.close(descriptor)


def acquire(descriptor: int, holder: str, *, wait: bool = False) -> str | None:
    """Lock an open file.  Return None, or the description of another process that holds the lock."""
    if not locked(descriptor, wait=wait):
        time.sleep(LOOK_SECONDS)
        if not locked(descriptor, wait=wait):
            return os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "another process"
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
    folder = Path(os.environ.get("VDM_LOCK_DIR") or f"/tmp/vdm-{os.geteuid()}")
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

    Raises UserError: exit 6 that names the process which holds it, or exit 2 if other users could take the lock or
    VDM_LOCK_DIR is relative.
    """
    path, name = folder_of_devices(), lock_of(device)
    with suppress(OSError):  # opening the folder reports the error
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        opened(path, os.O_RDONLY | os.O_DIRECTORY) as folder,
        opened(path / name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, folder) as lock,
    ):
        with suppress(OSError):
            os.fchmod(lock, 0o600)  # whoever can open a lock can hold it
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # systemd-tmpfiles does not clean a locked folder
        try:
            other = acquire(lock, f"process {os.getpid()} in {Path.cwd()}")
        except OSError as error:
            raise unsafe(path / name, f"cannot be locked: {error.strerror}") from error
        if other:
            raise UserError(f"{device} is busy: {other} trains on it; wait for it or stop it", Exit.BUSY)
        yield


@contextmanager
def opened(path: Path, flags: int, folder: int | None = None) -> Iterator[int]:
    """Open a lock's folder, or a lock in the open folder.

    Raises UserError (exit 2) unless only this user can write to it.  Links are not followed, since another user may
    have made them.
    """
    name = path if folder is None else path.name
    try:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        raise unsafe(path, "is a link" if path.is_symlink() else f"cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise unsafe(path, f"belongs to user {status.st_uid}")
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise unsafe(path, "is not a regular file")
        if status.st_mode & 0o022:
            raise unsafe(path, "can be written by others (`chmod go-w` forbids it)")
        yield descriptor
    finally:
        os.close(descriptor)


def unsafe(path: Path, reason: str) -> UserError:
    """Return the error for a lock that other users could hold or move."""
    advice = "remove it, or name a folder of your own in VDM_LOCK_DIR, the same for all your trainers on this machine"
    return UserError(f"{path} {reason}, so it cannot keep two trainers off one device; {advice}", Exit.USAGE)
