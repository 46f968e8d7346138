"""A command in a process group of its own, which does not outlive the block that started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STOP_SECONDS = 8.0


@contextmanager
def process_group(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the command in the folder, its output in one pipe; its whole group is gone when the block is left."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        yield process
        process.wait()
    finally:
        # DVC ignores SIGINT while its stage runs and waits for it; SIGTERM would kill DVC alone and orphan the stage.
        stop_group(process, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()


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
    """Processes that work in the folder or below it, where the system tells (/proc)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve().is_relative_to(folder.resolve()):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def engines(url: str) -> dict[str, int]:
    """The processes that execute runs of the Prefect server at `url`, by the run's id, where the system tells (/proc).

    Also those whose worker is gone.
    """
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            pairs = [pair.partition(b"=")[::2] for pair in (entry / "environ").read_bytes().split(b"\0")]
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        environment = dict(pairs)
        run = environment.get(b"PREFECT__FLOW_RUN_ID")
        # What the engine starts has its environment, too.
        if run and environment.get(b"PREFECT_API_URL") == url.encode() and b"prefect.engine" in command:
            found[run.decode()] = int(entry.name)
    return found


def stop_engines(url: str, seconds: float) -> None:
    """Send SIGTERM to the runs of the server at `url`, which then stop what they started, and give them time to end."""
    for pid in engines(url).values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while engines(url) and time.monotonic() < deadline:
        time.sleep(0.1)
