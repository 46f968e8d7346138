"""Print text and logs to the standard streams, and progress bars, which commands show on a terminal only."""

import json
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm import TqdmWarning, tqdm

from flows.core.escaping import visible


def say(text: str) -> None:
    """Print lines of text on stdout, with control characters escaped.  Raises OSError."""
    print(escape_lines(text), flush=True)


def reader_has_ended() -> bool:
    """Whether the program that reads stdout has ended, as in `vdmctl models | head -1`.  If so, discard the rest."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)  # errors are always reported
    if not stdout.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at its exit
    return True


def say_on_stderr(text: str) -> None:
    """Print lines of text on stderr, with control characters escaped."""
    print(escape_lines(text), file=sys.stderr)


def escape_lines(text: str) -> str:
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


def bar(description: str, *, shown: bool = True) -> "Callable[[range], tqdm[int]]":
    """Return a function that wraps a range in a progress bar on stderr, if that is a terminal."""
    return partial(tqdm, desc=description, disable=None if shown else True, leave=False)


def bar_of_steps(description: str, steps: int) -> "tqdm[int]":
    """Return a progress bar in a terminal or in a notebook, where it is of text unless ipywidgets are installed.

    Anywhere else, such as in the log of a job, it shows nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # that they are not
        from tqdm.auto import tqdm as suitable
    hidden = {} if sys.stderr.isatty() or "ipykernel" in sys.modules else {"disable": True}
    return suitable(total=steps, desc=description, unit="step", mininterval=0.5, leave=False, **hidden)
