"""`vdmctl serve`: the whole retraining loop in one command, until Ctrl-C.

A Prefect server if none answers, the work pool, the deployments of prefect.yaml, the automations, and a worker.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import Annotated

import typer

from flows.errors import Exit, UserError
from flows.processes import stop_children, stop_group

POOL = "vdm"
START_SECONDS = 90
# A worker's runs get this long to save their state: as long as Prefect gives a cancelled run.
STOP_SECONDS = 30.0


def serve(
    host: Annotated[str, typer.Option(help="Where the server listens; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The server's port.")] = 4200,
) -> None:
    """Run the retraining loop: server, work pool, deployments, worker; Ctrl-C stops all of it.

    A server that answers at PREFECT_API_URL is used and left alone. The database is Prefect's: SQLite, or what
    PREFECT_SERVER_DATABASE_CONNECTION_URL names. The weekly deployment is off until
    `prefect deployment schedule resume` switches it on.
    """
    given = os.environ.get("PREFECT_API_URL")
    url = os.environ.setdefault("PREFECT_API_URL", f"http://{host.replace('0.0.0.0', '127.0.0.1')}:{port}/api")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ["PREFECT_CLI_PROMPT"] = "false"
    # Without heartbeats a run whose process was killed would stay "running" for ever.
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    # SIGTERM ends the loop as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            if not answers(url):
                if given:
                    raise UserError(
                        f"no Prefect server answers at PREFECT_API_URL {url}; unset it or start one", Exit.MISSING
                    )
                start(stack, "server", "start", "--host", host, "--port", str(port))
                wait_for(url)
            if subprocess.run(prefect("work-pool", "inspect", POOL), capture_output=True, check=False).returncode != 0:
                run("work-pool", "create", POOL, "--type", "process")
            run("deploy", "--all")
            from flows.automations import install

            install()
            worker = start(stack, "worker", "start", "--pool", POOL)
            # Its runs first: told to end, they stop their trainer, which saves its state.
            stack.callback(stop_children, worker, STOP_SECONDS)
            print(
                f"serving at {url.removesuffix('/api')}; `prefect deployment run train-vdm` starts a run",
                file=sys.stderr,
            )
            worker.wait()
            raise UserError("the worker ended; see its output above", Exit.BUG)
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)


def prefect(*arguments: str) -> list[str]:
    """A command of Prefect's, of this interpreter's installation."""
    return [sys.executable, "-m", "prefect", *arguments]


def start(stack: ExitStack, *arguments: str) -> subprocess.Popen[str]:
    """Start it in a process group of its own, which the stack stops."""
    process = subprocess.Popen(prefect(*arguments), start_new_session=True, text=True)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    stack.callback(stop_group, process, *signals, seconds=STOP_SECONDS)
    return process


def run(*arguments: str) -> None:
    """Run it to its end.  UserError with its last line when it fails."""
    done = subprocess.run(prefect(*arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = ((done.stderr + done.stdout).strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"prefect {' '.join(arguments[:2])}: {reason}", Exit.BUG)


def wait_for(url: str) -> None:
    """Until the server answers.  UserError when it does not in time."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if time.monotonic() > deadline:
            raise UserError(f"the Prefect server does not answer at {url} after {START_SECONDS} s", Exit.BUG)
        time.sleep(0.3)


def answers(url: str) -> bool:
    """Whether a Prefect server is there."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=3):
            return True
    except (OSError, urllib.error.URLError):
        return False
