"""`vdmctl serve`: the whole retraining loop in one command, until Ctrl-C.

A Prefect server if none answers, the work pool, the deployments of prefect.yaml, the automations, and a worker.  Server
and worker are started again when they die.
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
from flows.orchestration.deployments import FLOW, PROJECT, deploy, prefect, run_prefect, schedules
from flows.orchestration.server import answers, configure, find_address
from flows.process.groups import signal_with_parent, stop_engines, stop_group
from flows.process.lifeline import hold_what_starts
from flows.process.locks import holder_of, lock_file

POOL = "vdm"
LOCK = layout.SERVE_LOCK
START_SECONDS = 90
# A worker's runs get this long to save their state: as long as Prefect gives a cancelled run.
STOP_SECONDS = 30.0
# A process that dies again sooner than this is not started once more.
RESTART_SECONDS = 30.0
IMPORT_SECONDS = 5.0


def serve(host: str | None, port: int | None) -> None:
    """Run the loop until SIGINT or SIGTERM.  Host and port are those of a server that is started; None is the default.

    Raises UserError: exit 2 outside a project's folder, 6 when the folder or Prefect's database is served already.
    """
    if not PROJECT.is_file():
        raise UserError(f"{Path.cwd()} has no {PROJECT}; `vdmctl serve` works in the project's folder", Exit.USAGE)
    address = find_address(host, port)
    configure(address)
    hold_what_starts()
    # SIGTERM ends the loop as Ctrl-C does; a shell's background job ignores SIGINT, and so would what it starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        stack.enter_context(alone(address.url))
        try:
            kept = []
            if not answers(address.url):
                stack.enter_context(owning_database())
                start = ("server", "start", "--host", address.host, "--port", str(address.port))
                kept.append(Kept(stack, *start, when_orphaned=signal.SIGTERM))
                wait_for(address.url, kept[0].process)
            prepare(address.url)
            start = ("worker", "start", "--pool", POOL, "--name", worker_name(Path.cwd()))
            # SIGTERM would only make the worker wait for its runs.  They end when it does; see flows.train_vdm.
            kept.append(Kept(stack, *start, when_orphaned=signal.SIGKILL))
            # The runs first: they stop their trainer, which saves its state.
            stack.callback(stop_engines, address.url, STOP_SECONDS)
            print("\n".join(schedules()), file=sys.stderr)
            page = address.url.removesuffix("/api")
            print(f"serving at {page}; `prefect deployment run {FLOW}` starts a run", file=sys.stderr)
            while True:
                time.sleep(0.5)
                for each in kept:
                    each.revive()
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Hold the folder for one `vdmctl serve`.  Raises UserError (exit 6) when another one works in it."""
    LOCK.parent.mkdir(exist_ok=True)
    with lock_file(LOCK, f"{os.getpid()} {url}") as other:
        if other is not None:
            raise UserError(f"process {other.split()[0]} serves {Path.cwd()} already; stop it first", Exit.BUSY)
        yield


@contextmanager
def owning_database() -> Iterator[None]:
    """Hold Prefect's home for one server of ours: two would schedule every run twice, and share one pool.

    Raises UserError (exit 6) when a server of another folder has it.
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
    """Return the command that serves this folder with a database of its own."""
    return f"`PREFECT_HOME={Path.cwd() / layout.PRIVATE / 'prefect'} vdmctl serve --port N`"


def prepare(url: str) -> None:
    """Set up what a worker needs: the pool, the deployments, the automation; end runs that died with a worker.

    Raises UserError (exit 6) when somebody else's worker serves the pool.
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
        print(f"run {name} died unnoticed; it has ended now", file=sys.stderr)


def workers() -> set[str]:
    """The names of the pool's workers that were heard of lately."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_workers_for_work_pool(POOL)
    return {worker.name for worker in found if worker.status == "ONLINE"}


def worker_name(folder: Path) -> str:
    """Whose worker it is; Prefect takes no slash in it."""
    return f"{socket.gethostname()}:{folder}".replace("/", "\\")


def served_at(folder: Path) -> str | None:
    """Return the API's address where a `vdmctl serve` works in the folder."""
    holder = holder_of(folder / LOCK)
    return holder.split()[-1] if holder else None


class Kept:
    """A command of Prefect's that is started again when it dies, in a process group of its own, which the stack stops.

    It also ends when this process is killed, where the system can arrange that (Linux).
    """

    def __init__(self, stack: ExitStack, *arguments: str, when_orphaned: signal.Signals) -> None:
        """`when_orphaned` is the signal that it gets when this process is killed."""
        self.arguments, self.when_orphaned = arguments, when_orphaned
        self.restarted: float | None = None
        self.start()
        stack.callback(self.stop)

    def start(self) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            prefect(*self.arguments),
            start_new_session=True,
            text=True,
            preexec_fn=partial(signal_with_parent, self.when_orphaned),
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
        # While it imports, SIGINT would end it with a traceback.
        first = signal.SIGTERM if time.monotonic() - self.started < IMPORT_SECONDS else signal.SIGINT
        stop_group(self.process, first, signal.SIGTERM, signal.SIGKILL, seconds=STOP_SECONDS)


def wait_for(url: str, server: subprocess.Popen[str]) -> None:
    """Until the server answers.  UserError when it ends instead, or does not answer in time."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if server.poll() is not None:
            raise UserError(f"no server at {url}: Prefect says above why; --port picks another port", Exit.USAGE)
        if time.monotonic() > deadline:
            raise UserError(f"the Prefect server does not answer at {url} after {START_SECONDS} s", Exit.BUG)
        time.sleep(0.3)
