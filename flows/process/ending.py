"""How a command of vdmctl ends before its time: the line, the exit code, and what a signal does."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.core.errors import Exit
from flows.core.escaping import visible
from flows.core.files import remove_unfinished, write_whole

STOP = (signal.SIGINT, signal.SIGTERM)
STOPPED = "stopped; run again"


def fail(message: str, code: Exit, *, network: bool = False) -> Exit:
    """Say why in one line on stderr, and in the file that the flow names, since DVC keeps no exit code."""
    finish()
    print(line(message), file=sys.stderr)
    record(message, code, network=network)
    return code


def line(message: str) -> str:
    """Return the line that says why a command ended."""
    return f"vdmctl: {visible(' '.join(message.split()))}"


def record(message: str, code: Exit, *, network: bool = False) -> None:
    """Write the reason where the flow looks for it.  That a disk is full changes no exit code."""
    if reason := os.environ.get("VDM_REASON"):
        with suppress(OSError):
            write_whole(Path(reason), json.dumps({"message": message, "code": code, "network": network}))


@contextmanager
def on_stop(handler: Callable[..., object]) -> Iterator[None]:
    """Inside the block the handler answers SIGINT and SIGTERM."""
    before = {number: signal.signal(number, handler) for number in STOP}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop_at_once(*_: object) -> None:
    """Answer SIGINT and SIGTERM in every command that has nothing to save: outputs stay as they were.

    No exception, which a library could swallow or dress up.  Only the descriptor is written to, since the signal may
    have come while `sys.stderr` was.
    """
    finish()
    remove_unfinished()
    with suppress(OSError):
        after_bar = "\n" if os.isatty(2) else ""
        os.write(2, f"{after_bar}{line(STOPPED)}\n".encode())
    record(STOPPED, Exit.RESUMABLE)
    os._exit(Exit.RESUMABLE)


def finish() -> None:
    """Let SIGINT and SIGTERM no longer stop this command, unless it has a handler of its own.

    For what is quick and must not be cut in two: the last step, in which all outputs take their places, and the end.
    """
    for number in STOP:
        if signal.getsignal(number) is stop_at_once:
            signal.signal(number, signal.SIG_IGN)
