"""Errors that the user can correct: one line that says where, what and how to continue, and an exit code."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

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

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, Exit]]:
        return type(self), (str(self), self.code)


class NetworkError(UserError):
    """The network or a remote machine failed; a retry may succeed."""

    def __init__(self, message: str, code: Exit = Exit.MISSING) -> None:
        super().__init__(message, code)


class CheckpointError(UserError):
    """A model or a training state is missing or damaged (exit 5)."""

    def __init__(self, message: str, code: Exit = Exit.MISSING) -> None:
        super().__init__(message, code)


def brief(error: object) -> str:
    """Return the message of an error, or other text, in one line, cut after 200 characters."""
    text = " ".join(str(error).split())
    text = text or ("takes too much memory" if isinstance(error, MemoryError) else type(error).__name__)
    return text if len(text) <= 200 else f"{text[:200]}..."


def of_file(error: OSError) -> str:
    """Return the file that an error is about, if it names one, and what is wrong."""
    if error.strerror == os.strerror(errno.EAGAIN) and not error.filename:  # of fork
        return "no process or thread can be started: `ulimit -u` or the limit of the container is reached"
    # Without a name it may be about memory or a connection.
    place = f"{visible(error.filename)}: " if error.filename and error.strerror else ""
    return f"{place}{error.strerror or error}" or type(error).__name__


@contextmanager
def logged_errors(name: str) -> Iterator[list[BaseException]]:
    """Collect the exceptions that a library logs instead of raising them.  Nothing that it logs is shown."""
    errors: list[BaseException] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else sys.exception()
            errors.append(error or RuntimeError(record.getMessage()))

    listener = Listener(logging.ERROR)
    logger = logging.getLogger(name)
    before = logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield errors
    finally:
        logger.removeHandler(listener)
        logger.propagate = before
