"""Find and stop the processes that execute the runs of a Prefect server."""

import os
import signal
import time
from contextlib import suppress

import psutil


def engines(url: str) -> dict[str, int]:
    """Return the process ids of the runs of the Prefect server at `url`, by run id, also of runs without a worker."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            # The engine's children inherit its environment, so the command line must match, too.
            if "prefect.engine" in process.cmdline() or "prefect.flow_engine" in process.cmdline():
                environment = process.environ()
                run = environment.get("PREFECT__FLOW_RUN_ID")
                if run and environment.get("PREFECT_API_URL") == url:
                    found[run] = process.pid
    return found


def stop_engines(url: str, seconds: float) -> None:
    """Send SIGTERM to the runs of the server at `url`, which then stop their children; wait until they have ended."""
    for pid in engines(url).values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while engines(url) and time.monotonic() < deadline:
        time.sleep(0.1)
