"""Commands in process groups that do not outlive the block that started them, and the processes of a server's runs."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

STOP_SECONDS = 8.0
SET_PARENT_DEATH_SIGNAL = 1
# Loaded here, since little is safe to do between fork and exec.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextmanager
def process_group(
    command: list[str], folder: Path, *, stdout: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run the command in the folder; its whole process group is gone when the block is left.

    Its output is in the pipe `process.stdout`; with `stdout` only what it prints on stderr is, in `process.stderr`.
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE if stdout else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env=environment,
    )
    try:
        yield process
        process.wait()
    finally:
        # DVC ignores SIGINT while its stage runs and waits for it; SIGTERM would kill DVC alone and orphan the stage.
        stop_group(process, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def signal_with_parent(number: signal.Signals) -> None:
    """Ask Linux to send this process the signal when the thread that started it ends, as it does when it is killed."""
    if LIBC is not None:
        LIBC.prctl(SET_PARENT_DEATH_SIGNAL, number)


def stop_group(process: subprocess.Popen[str], *numbers: signal.Signals, seconds: float = STOP_SECONDS) -> None:
    """Send the signals in turn to the process's group, each with time to act, until none of it is left."""
    for number in numbers:
        deadline = time.monotonic() + seconds
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            process.wait()
            return


def processes_in(folder: Path) -> list[int]:
    """Return the processes of this user that work in the folder or below it."""
    place, found = folder.resolve(), []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(place):
                found.append(process.pid)
    return found


def engines(url: str) -> dict[str, int]:
    """Return the processes that execute runs of the Prefect server at `url`, by the run's id.

    Also those whose worker is gone.
    """
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            # What the engine starts has its environment, too.
            if "prefect.engine" in process.cmdline() or "prefect.flow_engine" in process.cmdline():
                environment = process.environ()
                run = environment.get("PREFECT__FLOW_RUN_ID")
                if run and environment.get("PREFECT_API_URL") == url:
                    found[run] = process.pid
    return found


def stop_engines(url: str, seconds: float) -> None:
    """Send SIGTERM to the runs of the server at `url`, which then stop what they started, and give them time to end."""
    for pid in engines(url).values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while engines(url) and time.monotonic() < deadline:
        time.sleep(0.1)
