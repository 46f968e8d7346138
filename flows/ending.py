"""How a command of vdmctl ends before its time: the line, the exit code, and what a signal does."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.errors import Exit


def fail(message: str, code: Exit, *, network: bool = False) -> Exit:
    """Say why in one line on stderr, and in the file that the flow names, since DVC keeps no exit code."""
    print(f"vdmctl: {' '.join(message.split())}", file=sys.stderr)
    if reason := os.environ.get("VDM_REASON"):
        Path(reason).write_text(json.dumps({"message": message, "code": code, "network": network}))
    return code


@contextmanager
def on_stop(handler: Callable[..., object]) -> Iterator[None]:
    """Inside the block the handler answers SIGINT and SIGTERM."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop_at_once(*_: object) -> None:
    """The handler of a command that has nothing to save yet.

    No exception, which a module that is being imported could swallow or dress up.
    """
    os._exit(fail("stopped before the first step; run again", Exit.RESUMABLE))
