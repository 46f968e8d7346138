"""Run the retraining loop until Ctrl-C: `vdmctl serve`.

It starts a Prefect server if none answers, creates the work pool, the deployments of prefect.yaml and the automation,
and starts a worker.  Server and worker are restarted when they die.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.orchestration.deployments import FLOW, POOL, PROJECT, deploy, prefect, run_prefect, schedules
from flows.orchestration.engines import stop_engines
from flows.orchestration.server import Address, answers, configure, find_address
from flows.process.groups import signal_with_parent, stop_group
from flows.process.lifeline import hold_what_starts
from flows.process.locks import holder_of, lock_file

LOCK = layout.SERVE_LOCK
START_SECONDS = 90
# How long runs may take to save their state.  Prefect gives a cancelled run as long.
STOP_SECONDS = 30.0
# A process that dies again within this time is not restarted.
RESTART_SECONDS = 30.0
# How long a process imports, during which SIGINT would end it with a traceback.
IMPORT_SECONDS = 5.0


def serve(host: str | None, port: int | None) -> None:
    """Run the loop until SIGINT or SIGTERM.  A server that is started listens at `host` and `port`, if given.

    Raises UserError: exit 2 outside a project's folder, 6 when another `vdmctl serve` has the folder or the database.
    """
    if not PROJECT.is_file():
        raise UserError(f"{Path.cwd()} has no {PROJECT}; `vdmctl serve` works in the project's folder", Exit.USAGE)
    address = find_address(host, port)
    configure(address)
    hold_what_starts()
    # SIGTERM ends the loop like Ctrl-C.  A shell starts background jobs, and so their children, with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        stack.enter_context(alone(address.url))
        try:
            kept = start_all(stack, address)
            print("\n".join(schedules()), file=sys.stderr)
            page = address.url.removesuffix("/api")
            print(f"serving at {page}; `prefect deployment run {FLOW}` starts a run", file=sys.stderr)
            while True:
                time.sleep(0.5)
                for each in kept:
                    each.revive()
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)


def start_all(stack: ExitStack, address: Address) -> list["Kept"]:
    """Start the server, if none answers, and the worker, which the stack stops; return what was started.

    Raises UserError, see `prepare`, `owning_database` and `wait_for`.
    """
    kept = []
    if not answers(address.url):
        stack.enter_context(owning_database())
        server = ("server", "start", "--host", address.host, "--port", str(address.port))
        kept.append(Kept(stack, *server, when_orphaned=signal.SIGTERM))
        wait_for(address.url, kept[0].process)
    prepare(address.url)
    worker = ("worker", "start", "--pool", POOL, "--name", worker_name(Path.cwd()))
    # SIGTERM would only make the worker wait for its runs.  They end when it does; see flows.train_vdm.
    kept.append(Kept(stack, *worker, when_orphaned=signal.SIGKILL))
    # The stack stops the runs first.  They stop their trainer, which saves its state.
    stack.callback(stop_engines, address.url, STOP_SECONDS)
    return kept


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Hold the folder's lock.  Raises UserError (exit 6) when another `vdmctl serve` holds it."""
    LOCK.parent.mkdir(exist_ok=True)
    with lock_file(LOCK, f"{os.getpid()} {url}") as other:
        if other is not None:
            raise UserError(f"process {other.split()[0]} serves {Path.cwd()} already; stop it first", Exit.BUSY)
        yield


@contextmanager
def owning_database() -> Iterator[None]:
    """Hold the lock of Prefect's home: two servers on one database would schedule every run twice and share a pool.

    Raises UserError (exit 6) when another `vdmctl serve` holds it.
    """
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    with lock_file(home / "vdm-serve.lock", str(Path.cwd())) as other:
        if other is not None:
            raise UserError(
                f"{other} serves with Prefect's database in {home} already; {with_own_home()} serves this folder, too",
                Exit.BUSY,
            )
        yield


def with_own_home() -> str:
    """Return the command that serves this folder with another database."""
    return f"`PREFECT_HOME={Path.cwd() / layout.PRIVATE / 'prefect'} vdmctl serve --port N`"


def prepare(url: str) -> None:
    """Set up the pool, the deployments and the automation; end the runs whose process died with an earlier worker.

    Raises UserError (exit 6) when the worker of another `vdmctl serve` serves the pool.
    """
    from flows.orchestration.automations import end_dead_runs, install

    if subprocess.run(prefect("work-pool", "inspect", POOL), capture_output=True, check=False).returncode != 0:
        run_prefect("work-pool", "create", POOL, "--type", "process")
    for other in workers() - {worker_name(Path.cwd())}:
        host, _, folder = other.replace("\\", "/").partition(":")
        if host != socket.gethostname() or served_at(Path(folder)):
            raise UserError(
                f"{url} serves {folder} on {host} already; {with_own_home()} starts another server",
                Exit.BUSY,
            )
    deploy()
    install()
    for name in end_dead_runs(url):
        print(f"run {name}: its process was gone, so the run was ended", file=sys.stderr)


def workers() -> set[str]:
    """Return the names of the pool's workers that are online."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_workers_for_work_pool(POOL)
    return {worker.name for worker in found if worker.status == "ONLINE"}


def worker_name(folder: Path) -> str:
    """Return the name of the folder's worker.  Prefect allows no slash in it."""
    return f"{socket.gethostname()}:{folder}".replace("/", "\\")


def served_at(folder: Path) -> str | None:
    """Return the URL of the API that a running `vdmctl serve` uses in the folder; None if there is none."""
    holder = holder_of(folder / LOCK)
    return holder.split()[-1] if holder else None


class Kept:
    """A `prefect` command in its own process group, restarted when it dies and stopped by the stack.

    On Linux it also ends when this process is killed.
    """

    def __init__(self, stack: ExitStack, *arguments: str, when_orphaned: signal.Signals) -> None:
        """Start the command; `when_orphaned` is the signal that it gets when this process is killed."""
        self.arguments = arguments
        self.when_orphaned = when_orphaned
        self.restarted: float | None = None
        self.start()
        stack.callback(self.stop)

    def start(self) -> None:
        """Start the command's process."""
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            prefect(*self.arguments),
            start_new_session=True,
            text=True,
            preexec_fn=partial(signal_with_parent, self.when_orphaned),
        )

    def revive(self) -> None:
        """Restart the command if it died.  Raises UserError (exit 1) if it died within RESTART_SECONDS of a restart."""
        if self.process.poll() is None:
            return
        name = f"prefect {' '.join(self.arguments[:2])}"
        if self.restarted and time.monotonic() - self.restarted < RESTART_SECONDS:
            raise UserError(f"`{name}` ended; see its output above", Exit.BUG)
        print(f"`{name}` ended; starting it again", file=sys.stderr)
        self.restarted = time.monotonic()
        self.start()

    def stop(self) -> None:
        """Stop the process group: SIGINT, or SIGTERM while it still imports, then SIGTERM, then SIGKILL."""
        first = signal.SIGTERM if time.monotonic() - self.started < IMPORT_SECONDS else signal.SIGINT
        stop_group(self.process, first, signal.SIGTERM, signal.SIGKILL, seconds=STOP_SECONDS)


def wait_for(url: str, server: subprocess.Popen[str]) -> None:
    """Wait until the server answers.  Raises UserError: exit 2 if it ends, 1 if it does not answer in time."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if server.poll() is not None:
            raise UserError(f"no server at {url}: Prefect says above why; --port picks another port", Exit.USAGE)
        if time.monotonic() > deadline:
            raise UserError(f"the Prefect server does not answer at {url} after {START_SECONDS} s", Exit.BUG)
        time.sleep(0.3)
