"""`vdmctl serve`: the whole retraining loop in one command, until Ctrl-C.

A Prefect server if none answers, the work pool, the deployments of prefect.yaml, the automations, and a worker.  Server
and worker are started again when they die.
"""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from flows.errors import Exit, UserError
from flows.processes import stop_engines, stop_group

POOL = "vdm"
LOCK = Path(".vdm/serve.lock")
LOOPBACK, PORT = "127.0.0.1", 4200
SERVED = f"http://{LOOPBACK}:{PORT}/api"
START_SECONDS = 90
# A worker's runs get this long to save their state: as long as Prefect gives a cancelled run.
STOP_SECONDS = 30.0
# What was started again and dies sooner than this is not started once more.
RESTART_SECONDS = 30.0


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
    if not Path("prefect.yaml").is_file():
        raise UserError(f"{Path.cwd()} has no prefect.yaml; `vdmctl serve` works in the project's folder", Exit.USAGE)
    url, host, port = address(host, port)
    # SIGTERM ends the loop as Ctrl-C does; a shell's background job ignores SIGINT, and so would what it starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        stack.enter_context(alone())
        try:
            kept = []
            if not answers(url):
                kept.append(Kept(stack, "server", "start", "--host", host, "--port", str(port)))
                wait_for(url, kept[0].process)
            prepare(url)
            kept.append(Kept(stack, "worker", "start", "--pool", POOL, "--name", worker_name(Path.cwd())))
            # The runs first: told to end, they stop their trainer, which saves its state.
            stack.callback(stop_engines, url, STOP_SECONDS)
            print(f"serving at {url.removesuffix('/api')}; `{run_command(url)}` starts a run", file=sys.stderr)
            while True:
                time.sleep(0.5)
                for each in kept:
                    each.revive()
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)


@contextmanager
def alone() -> Iterator[None]:
    """Hold the folder's place for one `vdmctl serve`.  Raises UserError (exit 6) when it is taken."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            told = f"process {file.read()} serves {Path.cwd()} already; stop it first"
            raise UserError(told, Exit.BUSY) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def prepare(url: str) -> None:
    """What a worker needs: the pool, the deployments, the automation, and no run that died with an earlier worker.

    Raises UserError (exit 6) when somebody else's worker serves the pool.
    """
    from flows.automations import end_dead_runs, install

    if subprocess.run(prefect("work-pool", "inspect", POOL), capture_output=True, check=False).returncode != 0:
        run("work-pool", "create", POOL, "--type", "process")
    for other in workers() - {worker_name(Path.cwd())}:
        host, _, folder = other.replace("\\", "/").partition(":")
        if host != socket.gethostname() or is_served(Path(folder)):
            raise UserError(
                f"{url} serves {folder} on {host} already; `vdmctl serve --port N` starts another server", Exit.BUSY
            )
    run("deploy", "--all")
    install()
    for name in end_dead_runs(url):
        print(f"run {name} died unnoticed; it is marked as crashed", file=sys.stderr)


def workers() -> set[str]:
    """The names of the pool's workers that were heard of lately."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_workers_for_work_pool(POOL)
    return {worker.name for worker in found if worker.status == "ONLINE"}


def worker_name(folder: Path) -> str:
    """Whose worker it is; Prefect takes no slash in it."""
    return f"{socket.gethostname()}:{folder}".replace("/", "\\")


def is_served(folder: Path) -> bool:
    """Whether a `vdmctl serve` works in the folder."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def run_command(url: str) -> str:
    """How another shell starts a run."""
    command = "prefect deployment run train-vdm"
    return command if url == SERVED else f"PREFECT_API_URL={url} {command}"


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
    # The plugin is for the command line; in a run's event loop it would only leave a traceback in the log.
    os.environ["PREFECT_PLUGINS_ENABLED"] = "false"
    # Without heartbeats a run whose process was killed would stay "running" for ever.
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    refresh_global_settings_context()
    return url, host or parts.hostname or LOOPBACK, parts.port or PORT


def prefect(*arguments: str) -> list[str]:
    """A command of Prefect's, of this interpreter's installation."""
    return [sys.executable, "-m", "prefect", *arguments]


class Kept:
    """A command of Prefect's that is started again when it dies, in a process group of its own, which the stack stops.

    It also ends when this process is killed, where the system can arrange that (Linux).
    """

    def __init__(self, stack: ExitStack, *arguments: str) -> None:
        self.arguments = arguments
        self.restarted: float | None = None
        self.start()
        stack.callback(self.stop)

    def start(self) -> None:
        self.process = subprocess.Popen(
            prefect(*self.arguments), start_new_session=True, text=True, preexec_fn=end_with_parent
        )

    def revive(self) -> None:
        """Start it again if it died.  Raises UserError (exit 1) if it dies again and again."""
        if self.process.poll() is None:
            return
        what = f"prefect {' '.join(self.arguments[:2])}"
        if self.restarted and time.monotonic() - self.restarted < RESTART_SECONDS:
            raise UserError(f"`{what}` ended; see its output above", Exit.BUG)
        print(f"`{what}` ended; starting it again", file=sys.stderr)
        self.restarted = time.monotonic()
        self.start()

    def stop(self) -> None:
        stop_group(self.process, signal.SIGINT, signal.SIGTERM, signal.SIGKILL, seconds=STOP_SECONDS)


def end_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


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
