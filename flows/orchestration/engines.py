"""Find and stop the processes that execute the runs of a Prefect server."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil


def engines(url: str, folder: Path | None = None) -> dict[str, int]:
    """Return the process ids of the runs of the Prefect server at `url`, by run id, even if their worker has ended.

    With a folder, return only the runs that a worker of that folder started.
    """
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            # The engine's children inherit its environment, so the command line must match, too.
            if "prefect.engine" in process.cmdline() or "prefect.flow_engine" in process.cmdline():
                environment = process.environ()
                run = environment.get("PREFECT__FLOW_RUN_ID")
                ours = folder is None or environment.get("VDM_PROJECT") == str(folder)
                if run and environment.get("PREFECT_API_URL") == url and ours:
                    found[run] = process.pid
    return found


def stop_engines(url: str, folder: Path, seconds: float) -> None:
    """Send SIGTERM to the folder's runs of the server at `url`, which then stop their children; wait for their end."""
    signalled: set[int] = set()
    deadline = time.monotonic() + seconds
    while (found := set(engines(url, folder).values())) and time.monotonic() < deadline:
        for pid in found - signalled:  # one may have started meanwhile
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        signalled |= found
        time.sleep(0.1)
