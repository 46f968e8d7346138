"""Files: read regular files of bounded size; write files and folders that appear whole or not at all.

Errors are OSError with the name of the file, so that callers report them like a missing file.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from pydantic_core import from_json

from flows.core.errors import Exit, UserError

MOST_BYTES = 64 * 2**20
"""The default limit of `read_bounded`, far above the size of any description, report or listing of the project."""
SCRATCH = ".vdm-"
"""The prefix of the names of temporary files and folders."""
PREVIOUS = f"{SCRATCH}old-"
"""The prefix of the name that a folder has while the new one takes its place."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, for reading.  Raises OSError for anything else, such as a FIFO."""
    if path.is_fifo() or path.is_char_device():  # the one blocks, and the other may never end
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes.  Raises OSError."""
    with open_regular(path) as file:
        if path.stat().st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes, the limit", str(path))
        return file.read()


def file_sha256(path: Path) -> str:
    """Return the digest of a regular file.  Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(content: bytes | str) -> Any:
    """Parse strict JSON.  Raises ValueError also for NaN, infinities, lone surrogates, and deep nesting."""
    return from_json(content, allow_inf_nan=False)


def relative_path(name: str) -> str:
    """Return the path.  Raises ValueError unless it is relative, in its shortest POSIX form, and has no `..`."""
    place = PurePosixPath(name)
    if not place.parts or place.is_absolute() or ".." in place.parts or str(place) != name or not name.isprintable():
        raise ValueError(f"{name!r} is not a path inside a folder")
    return name


def inside(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in the folder.  Every name that comes from data passes through here.

    Raises UserError (exit 5) for a name that leads out of the folder, also by a link in it.
    """
    try:
        path = folder / relative_path(name)
    except ValueError as error:
        raise UserError(f"{folder}: {str(error)[:200]}", Exit.MISSING) from error
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{path} leads out of {folder} by a link", Exit.MISSING)
    return path


def name_beside(path: Path) -> Path:
    """Return a new name beside `path`, for what replaces it when it is whole."""
    return path.with_name(f"{SCRATCH}{secrets.token_hex(6)}")


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path`, after fsync, if the block raises nothing; else the old file stays.

    Raises OSError that names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = name_beside(path)
    with name_in_errors(path, temporary):
        try:
            with temporary.open("xb") as file:
                yield file
                save(file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file in one step: at any time, even after a crash, it has the old content or the new one.

    Raises OSError that names `path`.
    """
    with replace_file_last(path, content):
        pass


@contextmanager
def replace_file_last(path: Path, content: bytes | str) -> Iterator[None]:
    """Write a file that replaces `path` if the block, which may write other files, raises nothing.

    The content is on disk before the block begins, so that a full disk leaves all the old files.  Raises OSError that
    names `path`.
    """
    with replace_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
        save(file)
        yield


def save(file: BinaryIO) -> None:
    """Flush the file and fsync it."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that exists while the block runs, in `parent` or in the system's temporary folder."""
    with TemporaryDirectory(prefix=SCRATCH, dir=parent, ignore_cleanup_errors=True) as folder, in_use(Path(folder)):
        yield Path(folder)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Show others that this process writes into a folder, by a lock that the kernel releases when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system may have no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def is_in_use(folder: Path) -> bool:
    """Whether a process writes into a temporary folder, or may do so, as one of another user."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        finally:
            os.close(descriptor)
    return True


@contextmanager
def name_in_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Make an OSError name `path` if it names the temporary file or folder, or no file, as on a full disk."""
    try:
        yield
    except OSError as error:
        named = temporary if error.filename is None else Path(os.fsdecode(error.filename))
        if error.errno is None or not named.is_relative_to(temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path / named.relative_to(temporary))) from error


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder that replaces `path` if the block raises nothing; else the old folder stays.

    Raises UserError (exit 2) for a path such as ".", which cannot be replaced, and OSError that names `path`.
    """
    if path.name in ("", ".."):
        raise UserError(f"{path} cannot be replaced; name another folder", Exit.USAGE)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = name_beside(path), path.with_name(PREVIOUS + path.name)
    with name_in_errors(path, partial):
        try:
            partial.mkdir()
            with in_use(partial):
                yield partial
            if os.path.lexists(path):
                remove(previous)
                path.rename(previous)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    remove(previous)


def find_unfinished(parent: Path) -> Iterator[tuple[Path, str]]:
    """Yield the temporary folders in a folder, each with the reason why it must stay, or "" if nothing needs it."""
    for folder in sorted(parent.glob(f"{SCRATCH}*/")):
        output = parent / folder.name.removeprefix(PREVIOUS)
        if output != folder and not output.exists():
            yield folder, f"may be the only copy of {output.name}"
        else:
            yield folder, "a process writes into it" if is_in_use(folder) else ""


def contains(folder: Path, path: Path) -> bool:
    """Whether `path` is `folder` or lies in it, with links resolved: replacing `folder` would remove `path`."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def require_replaceable(path: Path, *inputs: Path, force: bool, names: str | None = None) -> None:
    """Raise UserError (exit 2) if an output exists, unless `force` replaces it.

    `names` is the pattern of the paths of files in a folder; without it, the output is a file.  Even with `force`, a
    folder is replaced only if it holds nothing else, and nothing that is, holds or lies in one of the inputs.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise UserError(f"{path} exists; name another output, or replace it with --force", Exit.USAGE)
    if names is None and path.is_dir():
        raise UserError(f"{path} is a folder; name a file", Exit.USAGE)
    if names is not None and not (path.is_dir() and has_only(path, names)):
        raise UserError(f"{path} is no folder of files that this command writes; name another", Exit.USAGE)
    for each in inputs:
        if contains(path, each) or contains(each, path):
            raise UserError(f"{path} would replace the input {each}; name another output", Exit.USAGE)


def has_only(folder: Path, names: str) -> bool:
    """Whether everything in a folder and its folders is a file whose path matches the pattern `names`."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return all(re.fullmatch(names, path.relative_to(folder).as_posix()) and path.is_file() for path in found)


def remove(folder: Path) -> None:
    """Remove a folder with its content, or a link to one, if it exists.  Raises OSError."""
    if folder.is_symlink():
        folder.unlink()
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
