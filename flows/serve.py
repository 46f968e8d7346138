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
from urllib.parse import urlsplit

import typer

from flows.errors import Exit, UserError
from flows.processes import stop_children, stop_group

POOL = "vdm"
LOOPBACK, PORT = "127.0.0.1", 4200
SERVED = f"http://{LOOPBACK}:{PORT}/api"
START_SECONDS = 90
# A worker's runs get this long to save their state: as long as Prefect gives a cancelled run.
STOP_SECONDS = 30.0


def serve(
    host: Annotated[str | None, typer.Option(help="Where the server listens; 0.0.0.0 is everywhere.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The server's port.")] = None,
) -> None:
    """Run the retraining loop: server, work pool, deployments, worker; Ctrl-C stops all of it.

    The server is Prefect's api.url (PREFECT_API_URL or a profile), else http://127.0.0.1:4200/api: one that answers
    is used and left alone, else one of this machine is started. Its database is Prefect's: SQLite, or what
    PREFECT_SERVER_DATABASE_CONNECTION_URL names. The weekly deployment is off until
    `prefect deployment schedule resume` switches it on.
    """
    url, host, port = address(host, port)
    # SIGTERM ends the loop as Ctrl-C does; a shell's background job ignores SIGINT, and so would what it starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            if not answers(url):
                server = start(stack, "server", "start", "--host", host, "--port", str(port))
                wait_for(url, server)
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


def address(host: str | None, port: int | None) -> tuple[str, str, int]:
    """The server's address, and where it listens or would; Prefect's settings then say so, here and in what is started.

    Raises UserError (exit 5) when Prefect's settings name another machine's server and it does not answer.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    given = None if host or port else get_current_settings().api.url
    url = given or f"http://{(host or LOOPBACK).replace('0.0.0.0', LOOPBACK)}:{port or PORT}/api"
    parts = urlsplit(url)
    if given and parts.hostname not in (LOOPBACK, "localhost") and not answers(url):
        raise UserError(f"no Prefect server answers at {url}, which is Prefect's api.url", Exit.MISSING)
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_CLI_PROMPT": "false"}
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Without heartbeats a run whose process was killed would stay "running" for ever.
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    refresh_global_settings_context()
    return url, host or parts.hostname or LOOPBACK, parts.port or PORT


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


def wait_for(url: str, server: subprocess.Popen[str]) -> None:
    """Until the server answers.  UserError when it ends instead, or does not answer in time."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if server.poll() is not None:
            raise UserError(f"no server at {url}: Prefect says above why; --port picks another port", Exit.USAGE)
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
