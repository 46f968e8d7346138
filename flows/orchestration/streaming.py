"""Run the commands of a flow run: log their output line by line, and raise errors with their reasons."""

import logging
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from subprocess import Popen
from threading import Thread

from prefect import get_run_logger
from prefect.exceptions import CrashedRun, TerminationSignal

from flows.core import documents, layout
from flows.core.errors import Exit, NetworkError, UserError, file_problem
from flows.process import progress as progress_file
from flows.process.groups import run_group, stop

# What DVC says after every stage, and after every error that it does not expect.
LEFT_OUT = ("Generating lock file", "Updating lock file", "Use `dvc push`", "Having any troubles?")
OF_VDMCTL, OF_DVC = "vdmctl: ", "ERROR: "
"""The beginnings of the lines in which a command says why it failed."""
EXPECTED = (UserError, OSError)
"""The errors that a run reports in one line; any other is a bug."""
STOPPING = (TerminationSignal, SystemExit)
"""What ends a run early: SIGTERM, or Rich's exit when it cannot write the log since the worker is gone."""


class Reason(documents.Document):
    """Why a command failed, as `flows.process.ending.fail` writes it."""

    message: str
    code: int
    network: bool


def to_user_error(error: UserError | OSError) -> UserError:
    """Return the error as one that `vdmctl` would end with."""
    if isinstance(error, UserError):
        return error
    return UserError(file_problem(error), Exit.MISSING)


def leave_out_tracebacks() -> None:
    """Remove from the run's log what its last lines and its state say already.

    These are tracebacks of EXPECTED errors and of exits, and messages that a cancelled run crashed.
    """
    repeats = ("Crash detected! Execution was aborted", "Finished in state Running()")

    def is_kept(record: logging.LogRecord) -> bool:
        known = record.exc_info and isinstance(record.exc_info[1], (*EXPECTED, SystemExit, CrashedRun))
        return not known and not record.getMessage().startswith(repeats)

    for name in ("prefect.engine", "prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(is_kept)


def stream(
    module: list[str], folder: Path, look: Callable[[], object] | None = None, *, stdout: Path | None = None
) -> None:
    """Run a Python module in the folder; log its output line by line, and call `look` after each line.

    With `stdout`, its standard output goes to that file and only stderr is logged.  If this process is stopped, the
    command is stopped and its last lines, which say what was saved, are still logged.  Raises UserError with the reason
    and exit code that vdmctl writes to the file named by VDM_REASON, since DVC does not pass them on.
    """
    reason, progress = folder / layout.REASON, folder / layout.PROGRESS
    for variable, told in (("VDM_REASON", reason), (progress_file.FILE, progress)):
        told.unlink(missing_ok=True)
        os.environ[variable] = str(told)
    last: deque[str] = deque(maxlen=5)
    with (
        stdout.open("wb") if stdout else nullcontext() as file,
        run_group([sys.executable, "-m", *module], folder, stdout=file) as process,
    ):
        try:
            log_lines(process, last, look)
        except STOPPING:
            Thread(target=stop, args=(process,), daemon=True).start()
            log_lines(process, last)
            raise
    if process.returncode != 0:
        raise failure(reason, list(last), process.returncode)


def log_lines(process: Popen[str], last: deque[str], look: Callable[[], object] | None = None) -> None:
    """Log the output of a process until it ends; keep the last lines."""
    for line in process.stderr or process.stdout or ():
        if not line.startswith(LEFT_OUT):
            last.append(line.strip())
            get_run_logger().info(line.rstrip())
            if look:
                look()


def failure(reason: Path, last: list[str], returncode: int) -> UserError:
    """Return the error of a failed command: from the file `reason`, else from its last lines and its exit status.

    On a full disk there is no such file, but vdmctl's line.

    The file is ignored after SIGKILL: a child of the command may have written that it was stopped.
    """
    if returncode != -signal.SIGKILL and (error := read_reason(reason)):
        return error
    # A process that was killed by a signal wrote no reason, but DVC prints the status of its shell.  bash replaces
    # itself by the command, so its status is minus the signal's number.  dash waits for it, and adds 128.
    if exited := re.search(r"exited with (-?\d+)", "\n".join(last)):
        returncode = int(exited[1])
    number = returncode - 128 if returncode > 128 else -returncode
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        advice = " (the kernel does that when memory runs out)" if name == "SIGKILL" else ""
        after = "the next run repeats the stage, and training continues from its last saved state"
        return UserError(f"{name} ended it{advice}; {after}", Exit.BUG)
    for line in reversed(last):
        if line.startswith(OF_VDMCTL):
            return UserError(line.removeprefix(OF_VDMCTL), Exit(returncode) if returncode in set(Exit) else Exit.BUG)
    lines = [line for line in last if line]
    said = [line.removeprefix(OF_DVC) for line in lines if line.startswith(OF_DVC)]
    return UserError(f"see the log: {(said or lines or ['it is empty'])[-1]}", Exit.BUG)


def read_reason(reason: Path) -> UserError | None:
    """Return the error that a command wrote to the file `reason`; None if it wrote none."""
    with suppress(UserError, ValueError):
        found = documents.read_document(Reason, reason)
        kind = NetworkError if found.network else UserError
        return kind(found.message, Exit(found.code))
    return None
