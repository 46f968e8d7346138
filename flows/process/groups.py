"""Run commands in process groups that do not outlive the block that started them, in a settled environment."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path
from typing import IO

import psutil

from flows.process.lifeline import KILL_SECONDS

STOP_SECONDS = 8.0
SET_PARENT_DEATH_SIGNAL = 1
LIBC = ctypes.CDLL(None)  # loading a library between fork and exec is not safe


@contextmanager
def run_group(command: list[str], folder: Path, *, stdout: IO[bytes] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run the command in the folder, and stop its whole process group when the block ends.

    Its stdout and stderr go to the pipe `process.stdout`.  With `stdout`, its stdout goes to that file, and its stderr
    to the pipe `process.stderr`.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a job that a script started with `&`
        # The command would inherit that, and not hear when `stop` asks it to save its state.
        signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE if stdout else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env=os.environ | {"PATH": search_path()},
    )
    try:
        yield process
        process.wait()
    finally:
        stop(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def signal_with_parent(number: signal.Signals) -> None:
    """Ask Linux to send this process the signal when the thread that started it ends, also if that is killed."""
    LIBC.prctl(SET_PARENT_DEATH_SIGNAL, number)


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a process group, which may need some seconds to save its state."""
    # DVC ignores SIGINT while its stage runs and waits for it; SIGTERM would kill DVC alone and orphan the stage.
    stop_group(process, (signal.SIGINT, STOP_SECONDS), (signal.SIGTERM, KILL_SECONDS), (signal.SIGKILL, STOP_SECONDS))


def stop_group(process: subprocess.Popen[str], *steps: tuple[signal.Signals, float]) -> None:
    """Send signals to the process group, each with the seconds to wait after it, until no process of it is left."""
    for number, seconds in steps:
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


def find_processes(folder: Path) -> list[int]:
    """Return the ids of this user's processes whose working directory is the folder or below it."""
    place = folder.resolve()
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(place):
                found.append(process.pid)
    return found


# git sets these for the hooks that it runs.  They would make git use the hook's repository, index or folder.
PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
# With these OpenMP binds a program to one core when it imports torch, and so all that it starts (docs/results.md).
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def search_path() -> str:
    """Return PATH with the folder of this interpreter first, where its `python3`, `dvc` and `vdmctl` are."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def settle(environment: MutableMapping[str, str]) -> None:
    """Make git work on the current folder, name the user, and let OpenMP's threads move.

    DVC needs a user name and a home folder, which a container that runs under a number of its host may not have.
    """
    for name in (*PLACES, *BINDING):
        environment.pop(name, None)
    try:
        getuser()
    except (KeyError, OSError):
        environment["LOGNAME"] = str(os.getuid())
    try:
        Path.home()
    except RuntimeError:
        environment["HOME"] = "/"
