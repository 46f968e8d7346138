"""What a command reads of and writes to its terminal or pipes: standard streams that may be closed or full, and text.

A reader that has seen enough (`vdmctl models | head -1`) does not end a command, and no message on stderr that cannot
be written does.  Where standard output cannot be written for another reason, a full disk, that is an OSError.
"""

import io
import json
import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flows.core.escaping import visible

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Stream(io.FileIO):
    """A standard stream for writing, which takes whatever comes once it has failed."""

    def __init__(self, descriptor: int, name: str, *, required: bool) -> None:
        """`required`: a failure is an OSError that names the stream; otherwise nothing."""
        super().__init__(descriptor, "w", closefd=False)
        self.shown, self.required, self.failed = name, required, False

    def write(self, data: "ReadableBuffer", /) -> int:
        if self.failed:
            return len(memoryview(data))
        try:
            return super().write(data)
        except OSError as error:
            self.failed = True
            if self.required and not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, self.shown) from error
            return len(memoryview(data))


def open_streams() -> None:
    """Give this process the three standard streams, closed ones among them, such that neither side's end ends it."""
    for descriptor in range(3):
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        # The lowest free number is the closed one's.  Otherwise the next file that is opened would get it, and with
        # it whatever a library prints.
        os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = opened(1, "standard output", True), opened(2, "standard error", False)


def opened(descriptor: int, name: str, required: bool) -> io.TextIOWrapper:
    """Return the stream for text.  Each line on a terminal or on stderr appears at once."""
    stream = Stream(descriptor, name, required=required)
    before = sys.stdout or sys.stderr
    encoding = before.encoding if before else "utf-8"
    by_line = descriptor == 2 or stream.isatty()
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding, "backslashreplace", line_buffering=by_line)


def say(text: str) -> None:
    """Print lines of text on stdout, with nothing in them that a terminal would act on.  Raises OSError."""
    print("\n".join(map(visible, text.split("\n"))))


def say_json(value: Any) -> None:
    """Print one JSON object on stdout.  Raises OSError, and ValueError for numbers that JSON does not have."""
    say(json.dumps(value, indent=2, allow_nan=False))


class OneLine(logging.Formatter):
    """Every message in one line, whatever names are in it; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))


def start_logging() -> None:
    """Log to stderr: what `flows` does, and what libraries warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("flows").setLevel(logging.INFO)
