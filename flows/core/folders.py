"""Write folders that appear whole or not at all."""

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.core.errors import Exit, UserError
from flows.core.files import naming, unfinished

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # as in linux/fcntl.h and linux/fs.h


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder that replaces `path` if the block raises nothing; else the old folder stays.

    If `path` is a link, the folder to which it leads is replaced.  Raises UserError: exit 2 for a path such as ".", 6
    if another process is writing the folder.  Raises OSError that names `path`, also if the old folder could not be
    removed.
    """
    if path.name in ("", ".."):
        raise UserError(f"{path} cannot be replaced; name another folder", Exit.USAGE)
    place = place_of_folder(path)
    require_removable(place)
    partial = place.with_name(f".{place.name}.partial")
    previous = place.with_name(f".{place.name}.previous")
    place.parent.mkdir(parents=True, exist_ok=True)
    with claimed(place), naming(path, partial), unfinished(partial):
        restore(place, previous)  # it exists if a process was killed between two renames
        clear(previous, partial)
        partial.mkdir()
        yield partial
        try:
            if not exchanged(partial, place):
                if place.exists():
                    place.rename(previous)
                partial.rename(place)
        finally:
            restore(place, previous)
        clear(previous, partial)


def require_removable(folder: Path) -> None:
    """Raise PermissionError if a folder, or one in it, is read-only."""
    for each, _, _ in os.walk(folder):
        if not os.access(each, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), each)


def contains(folder: Path, path: Path) -> bool:
    """Whether `path` is `folder` or lies in it, with links resolved: replacing `folder` would remove `path`."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def has_only(folder: Path, names: str) -> bool:
    """Whether everything in the folder is a file with a name that matches the pattern `names`."""
    return all(re.fullmatch(names, path.name) and path.is_file() for path in folder.iterdir())


def place_of_folder(path: Path) -> Path:
    """Return the folder that a new one replaces: `path`, or where it links to.  DVC makes no links to folders.

    Raises OSError for anything but a folder.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return path.resolve() if path.is_symlink() else path


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the folder while the block runs.  Raises UserError (exit 6) if one does.

    The lock is a file beside the folder that is removed when the block ends.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with naming(folder, path), locked(path) as is_ours:
        if not is_ours:
            raise UserError(f"{folder}: another process is writing it; wait for it or stop it", Exit.BUSY)
        with unfinished(path):
            yield


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, which is made if it does not exist; yield whether no other process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        except OSError:
            pass  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # its holder removed it meanwhile
    try:
        yield True
    finally:
        os.close(descriptor)


def exchanged(first: Path, second: Path) -> bool:
    """Exchange two files or folders in one step.  Return false if one is missing or the system cannot do it."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:  # not Linux
        return False
    return bool(rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0)


def restore(path: Path, previous: Path) -> None:
    """Rename `previous` to `path` if that does not exist.  Raises OSError."""
    if previous.exists() and not path.exists():
        previous.rename(path)


def clear(previous: Path, partial: Path) -> None:
    """Remove both folders.  `previous` is renamed first: `restore` must not find half of it.  Raises OSError."""
    remove(partial)
    if previous.exists():
        previous.rename(partial)
        remove(partial)


def remove(folder: Path) -> None:
    """Remove a folder with its content, or a link to one, if it exists.  Raises OSError."""
    if folder.is_symlink():
        folder.unlink()
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:  # it names a file without its folder
        raise type(error)(error.errno, error.strerror, str(folder)) from error
