"""The commands that a run executes: their output in the run's log, their failure as an error with its reason."""

import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from prefect import get_run_logger

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.files import parse_json, read_bounded
from flows.process.groups import process_group


def stream(
    module: list[str], folder: Path, read: Callable[[str], None] | None = None, *, stdout: Path | None = None
) -> None:
    """Run a Python module in the folder, its output in the log as it comes, and line by line to `read`.

    With `stdout`, what it prints there goes to that file instead.  Raises UserError with the reason and the exit code
    that vdmctl left in a file, which DVC does not hand on.
    """
    logger = get_run_logger()
    reason = folder / layout.REASON
    reason.unlink(missing_ok=True)
    os.environ["VDM_REASON"] = str(reason)
    last: deque[str] = deque(maxlen=5)
    with ExitStack() as stack:
        file = stack.enter_context(stdout.open("wb")) if stdout else None
        process = stack.enter_context(process_group([sys.executable, "-m", *module], folder, stdout=file))
        for line in process.stderr or process.stdout or ():
            last.append(line.strip())
            logger.info(line.rstrip())
            if read:
                read(line)
    if process.returncode != 0:
        raise failure(reason, list(last), process.returncode)


def failure(reason: Path, last: list[str], returncode: int) -> UserError:
    """Return the error of a command that failed: what vdmctl left in the file `reason`, else what its end suggests."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        left = parse_json(read_bounded(reason))
        return (NetworkError if left["network"] else UserError)(str(left["message"]), Exit(left["code"]))
    # A process that a signal ended has left no reason.  DVC prints the status that its shell gave: bash puts the
    # command in its own place, so that it is minus the signal's number; dash waits for it, and adds 128.
    if exited := re.search(r"exited with (-?\d+)", "\n".join(last)):
        returncode = int(exited[1])
    number = returncode - 128 if returncode > 128 else -returncode
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        advice = " (the kernel does that when memory runs out)" if name == "SIGKILL" else ""
        return UserError(f"{name} ended it{advice}; the next run continues from the last saved state", Exit.BUG)
    return UserError(f"see the log: {next((line for line in reversed(last) if line), 'it is empty')}", Exit.BUG)
