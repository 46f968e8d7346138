"""End a command of vdmctl early, on an error or a signal, with one line on stderr and an exit code."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.core.errors import Exit
from flows.core.escaping import visible
from flows.core.files import write_whole

# A closed terminal sends SIGHUP, which nohup makes a command ignore.
STOP = (signal.SIGINT, signal.SIGTERM, *([] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]))
STOPPED = "stopped; run again"


def fail(message: str, code: Exit, *, network: bool = False) -> Exit:
    """Write the reason to stderr, and to the file named by VDM_REASON for the flow, since DVC drops exit codes.

    Errors in doing so, such as a full disk, are ignored.  Return the exit code.
    """
    finish()
    with suppress(OSError):
        print(f"vdmctl: {visible(' '.join(message.split()))}", file=sys.stderr)
    if reason := os.environ.get("VDM_REASON"):
        with suppress(OSError):
            write_whole(Path(reason), json.dumps({"message": message, "code": code, "network": network}))
    return code


@contextmanager
def handle_stop(handler: Callable[..., object]) -> Iterator[None]:
    """Handle the signals of STOP with `handler` inside the block."""
    before = {number: signal.signal(number, handler) for number in STOP}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop_at_once(*_: object) -> None:
    """Handle a signal in commands that have nothing to save: leave all blocks, which remove what is not whole."""
    finish()  # a second signal must not interrupt that
    sys.exit(Exit.RESUMABLE)


def finish() -> None:
    """Ignore the signals of STOP from now on, unless the command has set another handler.

    For quick steps that must not be interrupted: moving all outputs to their places, and exiting.
    """
    for number in STOP:
        if signal.getsignal(number) is stop_at_once:
            signal.signal(number, signal.SIG_IGN)
