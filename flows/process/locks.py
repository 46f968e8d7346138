"""Locks on files, which the kernel releases when the process that holds one ends, however it ends.

A lock's file contains who holds it.  The locks of devices are in /tmp/vdm-UID, where a login, a cron job and a service
of the same user find the same files.  TMPDIR and XDG_RUNTIME_DIR differ between these, and the folder of the latter is
removed when the user logs out.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.core.errors import Exit, UserError

if TYPE_CHECKING:
    import torch


@contextmanager
def lock_file(path: Path, holder: str = "", *, wait: bool = False) -> Iterator[str | None]:
    """Hold the lock of a file, and write the holder's description into it.

    Yields None when the lock is held, else the description of the process that holds it.  With `wait` the lock is
    always held: the call returns when it is free.  Raises OSError that names the file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield acquire(descriptor, holder, wait=wait)
    finally:
        os.close(descriptor)


def acquire(descriptor: int, holder: str, *, wait: bool = False) -> str | None:
    """Lock an open file; return None, or the description of the process that holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "another process"
    with suppress(OSError):  # on a full disk the lock is held without a description
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}\n".encode(), 0)
    return None


def holder_of(path: Path) -> str | None:
    """Return the description of the process that holds the lock of a file; None when nobody does."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip()
    return None


@contextmanager
def claim(device: "torch.device") -> Iterator[None]:
    """Hold the device for one trainer.

    Raises UserError: exit 6 when another process holds it, which is named, and 2 when other users could take the lock.
    """
    path = Path(os.environ.get("VDM_LOCK_DIR") or f"/tmp/vdm-{os.geteuid()}")
    name = "cpu.lock" if device.type == "cpu" else f"{device.type}-{device.index or 0}.lock"
    with suppress(OSError):  # opening the folder reports what is wrong with it
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        opened(path, os.O_RDONLY | os.O_DIRECTORY) as folder,
        opened(path / name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, folder) as lock,
    ):
        with suppress(OSError):
            os.fchmod(lock, 0o600)  # who can read a lock can hold it
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # systemd-tmpfiles leaves a locked folder alone
        if other := acquire(lock, f"process {os.getpid()} in {Path.cwd()}"):
            raise UserError(f"{device} is busy: {other} trains on it; wait for it or stop it", Exit.BUSY)
        yield


@contextmanager
def opened(path: Path, flags: int, folder: int | None = None) -> Iterator[int]:
    """Open a lock's folder, or a lock in the open folder.

    Raises UserError (exit 2) unless only this user can write to it.  Links are not followed: in a folder that others
    can write to, they may lead elsewhere.
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
            raise unsafe(path, "can be written by others, which `chmod go-w` ends")
        yield descriptor
    finally:
        os.close(descriptor)


def unsafe(path: Path, reason: str) -> UserError:
    """Return the error about a lock that other users could hold or move."""
    advice = "remove it, or name a folder of your own in VDM_LOCK_DIR, the same for all your trainers on this machine"
    return UserError(f"{path} {reason}, so it cannot keep two trainers off one device; {advice}", Exit.USAGE)
