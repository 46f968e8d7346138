"""One trainer per device: locks of the kernel's, each of which goes with its process, however that ends.

A user's locks lie in /tmp/vdm-UID, where a login, a cron job and a service of the same user meet.  Neither TMPDIR nor
XDG_RUNTIME_DIR decides: those differ between them, and the latter's folder goes when the user logs out.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from flows.core.errors import Exit, UserError


@contextmanager
def claim(device: torch.device) -> Iterator[None]:
    """Hold the device for one trainer.

    Raises UserError naming the process that holds it already (exit 6), or when the lock is not safe from others (2).
    """
    path = Path(os.environ.get("VDM_LOCK_DIR") or f"/tmp/vdm-{os.geteuid()}")
    name = "cpu.lock" if device.type == "cpu" else f"{device.type}-{device.index or 0}.lock"
    with suppress(OSError):  # what is wrong with it shows when it is opened
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        opened(path, os.O_RDONLY | os.O_DIRECTORY) as folder,
        opened(path / name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, folder) as lock,
    ):
        with suppress(OSError):
            os.fchmod(lock, 0o600)  # who can read a lock can hold it
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # systemd-tmpfiles leaves a locked folder alone
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 4096, 0).decode(errors="replace").strip() or "another process"
            raise UserError(f"{device} is busy: {holder} trains on it; wait for it or stop it", Exit.BUSY) from error
        with suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} in {Path.cwd()}\n".encode(), 0)
        yield


@contextmanager
def opened(path: Path, flags: int, folder: int | None = None) -> Iterator[int]:
    """Open a lock's folder, or a lock in the open folder.  UserError (exit 2) unless it is this user's alone to write.

    A link is not followed: in a folder that others can write, it may be one of theirs.
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
    """The refusal of a lock that others could hold or move."""
    advice = "remove it, or name a folder of your own in VDM_LOCK_DIR, the same for all your trainers on this machine"
    return UserError(f"{path} {reason}, so it cannot keep two trainers off one device; {advice}", Exit.USAGE)
