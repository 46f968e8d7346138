"""Errors that the user can correct: one line that says where, what and how to continue, and an exit code."""

import errno
import re
from enum import IntEnum
from typing import Any

from flows.core.escaping import visible


class Exit(IntEnum):
    """Exit codes of vdmctl."""

    DONE = 0
    BUG = 1
    USAGE = 2
    NOT_PROMOTED = 3
    INVALID_DATA = 4
    MISSING = 5
    BUSY = 6
    RESUMABLE = 75


class UserError(Exception):
    """An error that the user can correct; `str(error)` is one line."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(visible(" ".join(message.split())))
        self.code = code

    def __reduce__(self) -> tuple[type["UserError"], tuple[Any, ...]]:
        return type(self), (str(self), self.code)


class FileError(UserError):
    """What is wrong with a file: `reason` does not name its path again."""

    def __init__(self, path: object, reason: str, code: Exit = Exit.MISSING) -> None:
        super().__init__(f"{path}: {reason}", code)
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type["UserError"], tuple[Any, ...]]:
        return type(self), (self.path, self.reason, self.code)


class NetworkError(UserError):
    """The network or a remote machine failed; a retry may succeed."""

    def __init__(self, message: str, code: Exit = Exit.MISSING) -> None:
        super().__init__(message, code)


class CheckpointError(UserError):
    """A model or a training state is missing or damaged (exit 5)."""

    def __init__(self, message: str, code: Exit = Exit.MISSING) -> None:
        super().__init__(message, code)


def brief(error: object, most: int = 200) -> str:
    """Return the message of an error, or other text, in one line, cut after `most` characters, without addresses."""
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def file_problem(error: OSError) -> str:
    """Return the file that an error is about, if it names one, and what is wrong."""
    # Without a name it may be about memory, a connection or a full standard output.
    place = f"{visible(error.filename)}: " if error.filename and error.strerror else ""
    return f"{place}{error.strerror or error}" or type(error).__name__


def remote_error(problem: str, error: Exception) -> UserError:
    """Return what went wrong with a remote: a network error, unless a disk is full, which no retry empties (exit 5)."""
    cause = error.__cause__ or error  # DVC wraps errors about a folder
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    return (UserError if full else NetworkError)(f"{problem}: {brief(cause)}", Exit.MISSING)
