"""Files: read regular files of bounded size; write files that appear whole or not at all.

Errors are OSError with the name of the file, so that callers report them like a missing file.
"""

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

ANYBODY_WRITES = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
MOST_BYTES = 64 * 2**20
"""The default limit of `read_bounded`, far above the size of any description, report or listing of the project."""
MOST_DEPTH = 32
"""The deepest nesting that `parse_json` accepts, far above that of any document of the project."""

HIGHEST_PID = 2**22
"""The highest number of a process that Linux gives."""
SCRATCH = ".vdm-"
"""The prefix of the names of temporary folders."""

UNFINISHED: set[Path] = set()
"""Files and folders that exist only while a block of this process runs."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises OSError for anything else: opening a FIFO would block, and opening a device may have an effect.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a path with a NUL character", str(path))
    require_regular(path.stat(), path)
    # The file may be replaced after the check: with O_NONBLOCK not even a FIFO blocks then.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def require_regular(status: os.stat_result, path: Path) -> None:
    """Raise OSError unless `status` is that of a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes.  Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most else file.read(size + 1)
    if len(content) > size:
        raise OSError(errno.EBUSY, "grows while it is read", str(path))
    if size > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes, the limit", str(path))
    return content


def file_sha256(path: Path) -> str:
    """Return the digest of a regular file.  Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(content: bytes | str) -> Any:
    """Parse strict JSON.

    Raises ValueError also for NaN, infinities, integers of more than 64 bits, characters that UTF-8 cannot encode, and
    nesting deeper than `MOST_DEPTH`: such values may fail later, when they are printed.
    """
    try:
        value = json.loads(content, parse_constant=refuse, parse_float=finite_float, parse_int=short_integer)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates parse, but cannot be printed
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    require_shallow(value)
    return value


def require_shallow(value: Any) -> None:
    """Raise ValueError for lists and objects nested deeper than `MOST_DEPTH`."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        nodes = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [child for node in nodes for child in node]
        if not level:
            return
    raise ValueError("nested too deeply")


def refuse(text: str) -> NoReturn:
    """Raise ValueError that says that the text is not JSON."""
    raise ValueError(f"{text} is not JSON")


def finite_float(text: str) -> float:
    """Return the number.  Raises ValueError if a float cannot hold it."""
    value = float(text)
    if math.isinf(value):
        refuse(text[:30])
    return value


def short_integer(text: str) -> int:
    """Return the integer.  Raises ValueError if it has more than 64 bits."""
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        refuse(text[:30])
    return int(text)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path`, after fsync, if the block raises nothing; else the old file stays.

    `place_of_file` says what it replaces if `path` is a link.  The new file has the permissions of the old one, unless
    nobody may write that.  Raises OSError that names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = place_of_file(path)
    # Processes in two containers, or on two machines, may have the same number.
    temporary = place.with_name(f"{beginning(place)}{os.urandom(4).hex()}-{os.getpid()}")
    with naming(path, temporary), unfinished(temporary):
        remove_abandoned(place)
        with temporary.open("xb") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(OSError):
                if (mode := place.stat().st_mode) & ANYBODY_WRITES:  # else it belongs to DVC's cache
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
            yield file
            save(file)
            temporary.replace(place)


def beginning(place: Path) -> str:
    """Return how the names of temporary files for `place` begin; file systems take at most 255 bytes of a name."""
    return f".{os.fsencode(place.name)[:200].decode(errors='ignore')}.vdm-"  # whole characters


def remove_abandoned(place: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote the file `place`.

    Such a process does not run here, or this one has its number, and no process holds the lock of its file.
    """
    import psutil  # not at the top, since every command imports this module

    for temporary in place.parent.glob(f"{glob.escape(beginning(place))}*"):
        number = temporary.name.rpartition("-")[2]
        if not number.isdecimal() or int(number) > HIGHEST_PID:
            continue
        if int(number) == os.getpid() or not psutil.pid_exists(int(number)):
            with suppress(OSError), open_regular(temporary) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()


def place_of_file(path: Path) -> Path:
    """Return the file that a new one replaces: `path`, or the file to which it links.

    A link is replaced itself if it leads nowhere, or to a file that nobody may write.  DVC links outputs to its cache,
    whose files have no permission to write; a new file among them would not be what its name says.  Raises OSError for
    anything but a regular file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return path
    require_regular(status, path)
    return path.resolve() if status.st_mode & ANYBODY_WRITES else path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file in one step: at any time, even after a crash, it has the old content or the new one.

    Raises OSError that names `path`.
    """
    with written_last(path, content):
        pass


@contextmanager
def written_last(path: Path, content: bytes | str) -> Iterator[None]:
    """Write a file that replaces `path` if the block, which may write other files, raises nothing.

    The content is on disk before the block begins, so that a full disk leaves all the old files.  Raises OSError that
    names `path`.
    """
    with writing(path) as file:
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
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
    with unfinished(folder):
        yield folder


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Remove the file or folder `path`, if it exists, when the block ends."""
    UNFINISHED.add(path)
    try:
        yield
    finally:
        discard(path)
        UNFINISHED.discard(path)


def remove_unfinished() -> None:
    """Remove what the open blocks of this process would remove, for a process that ends inside them."""
    for path in list(UNFINISHED):
        discard(path)


def discard(path: Path) -> None:
    """Remove a file, a link or a folder; ignore errors."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, temporary: Path) -> Iterator[None]:
    """Make an OSError name `path` if it names the temporary file or folder, or no file, as on a full disk."""
    try:
        yield
    except OSError as error:
        named = temporary if error.filename is None else Path(os.fsdecode(error.filename))
        if error.errno is None or not named.is_relative_to(temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path / named.relative_to(temporary))) from error
