"""Print text and logs to standard streams, which may be closed or full.

A command continues if the reader of its output has ended (`vdmctl models | head -1`), and if stderr cannot be written.
Any other failure to write to stdout, such as a full disk, is an OSError.
"""

import io
import json
import logging
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flows.core.escaping import visible

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Stream(io.FileIO):
    """A standard stream for writing, which discards all further data after its first failure."""

    def __init__(self, descriptor: int, name: str, *, required: bool) -> None:
        """With `required`, a failure other than a broken pipe raises OSError that names the stream."""
        super().__init__(descriptor, "w", closefd=False)
        self.shown = name
        self.required = required
        self.failed = False

    def write(self, data: "ReadableBuffer", /) -> int:
        if self.failed:
            return len(memoryview(data))
        try:
            while (written := super().write(data)) is None:  # another program made it non-blocking, and it is full
                select.select([], [self], [])
            return written
        except OSError as error:
            self.failed = True
            if self.required and not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, self.shown) from error
            return len(memoryview(data))


def open_streams() -> None:
    """Open the standard streams that are closed, and make stdout and stderr of the class `Stream`."""
    for descriptor in range(3):
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        # os.open returns the lowest free descriptor, which is this one.  If it stayed closed, the next file that is
        # opened would get it, and what libraries print would go to that file.
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # also for the programs that this one starts
    sys.stdout = opened(1, "standard output", True)
    sys.stderr = opened(2, "standard error", False)


def opened(descriptor: int, name: str, required: bool) -> io.TextIOWrapper:
    """Return a text stream, which is flushed after each line on a terminal and on stderr."""
    stream = Stream(descriptor, name, required=required)
    before = sys.stdout or sys.stderr
    encoding = before.encoding if before else "utf-8"
    by_line = descriptor == 2 or stream.isatty()
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding, "backslashreplace", line_buffering=by_line)


def say(text: str) -> None:
    """Print lines of text on stdout, with control characters escaped.  Raises OSError."""
    print(escaped(text))


def say_on_stderr(text: str) -> None:
    """Print lines of text on stderr, with control characters escaped."""
    print(escaped(text), file=sys.stderr)


def escaped(text: str) -> str:
    """Return lines of text with the control characters in each line escaped."""
    return "\n".join(map(visible, text.split("\n")))


def say_json(value: Any) -> None:
    """Print one JSON object on stdout.  Raises OSError, and ValueError for numbers that JSON does not have."""
    say(json.dumps(value, indent=2, allow_nan=False))


def say_result(value: Any, text: str, as_json: bool) -> None:
    """Print a result on stdout, as one JSON object or as text.  Raises what `say_json` raises."""
    if as_json:
        say_json(value)
    else:
        say(text)


class OneLine(logging.Formatter):
    """A formatter that escapes line breaks in messages; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))


def start_logging() -> None:
    """Log to stderr: messages of `flows` from INFO, and warnings of libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("flows").setLevel(logging.INFO)
