"""Run a worker: `vdmctl worker`, and the one that `vdmctl serve` starts with its server.

A worker runs the code of its own folder: the deployments name no folder, and every worker gives its own in VDM_PROJECT.
Workers of `vdmctl worker` share only the server and the remotes of git and DVC.  They set VDM_SHARE, so that their runs
start from what the remotes have, and publish what they make.
"""

import os
import shlex
import signal
import socket
import time
from calendar import timegm
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.files import open_regular
from flows.orchestration.deployments import POOL, PROJECT, prefect
from flows.orchestration.engines import stop_engines
from flows.orchestration.server import Api, configure, find_address, refusal, require_server, send
from flows.process.ending import STOP
from flows.process.environment import search_path
from flows.process.groups import STOP_SECONDS
from flows.process.kept import Kept
from flows.process.lifeline import KILL_SECONDS, hold_what_starts
from flows.process.locks import holder_of, lock_file
from flows.process.streams import say_on_stderr

LOCK = layout.SERVE_LOCK
SHARED = "shared "
PERCENT = "\N{FULLWIDTH PERCENT SIGN}"
DEFAULT, GPU, CPU = "default", "gpu", "cpu"
LOOK_SECONDS = 10.0
MOST_SECONDS_APART = 60.0
# Present if the driver of an NVIDIA card is loaded.
DRIVER = Path("/proc/driver/nvidia/version")


def work(queues: list[str] | None) -> None:
    """Run a worker that shares versions through the remotes, until a signal of STOP.

    Raises UserError: exit 2 outside a project's folder or without a remote of git or DVC, 6 if a worker runs in the
    folder already or the pool has a worker that does not share; see `require_server`, `require_clock`, `require_pool`
    and `require_queues`.
    """
    from flows.orchestration.automations import stop_unwanted_runs

    require_project()
    address = find_address(None, None)
    require_server(address.url)
    api, name = Api(address.url), SHARED + worker_name(Path.cwd())
    require_clock(api)
    require_pool(api)
    require_queues(api, queues)
    refuse_to_mix(address.url, name, workers(api) - {name})
    share_versions()
    configure(address)
    with ExitStack() as stack, until_stopped():
        stack.enter_context(alone(address.url))
        # It takes one run at a time: others wait at the server, where a worker with a free device may take them.
        kept = start_worker(stack, address.url, name, queues, "--limit", "1")
        say_on_stderr(f"working for {address.url}, queues {', '.join(queues or fitting())}")
        keep_alive([kept], address.url, partial(stop_unwanted_runs, folder=Path.cwd()))


def share_versions() -> None:
    """Let the worker of this process share versions.  Raises UserError (exit 2) without a remote of git or DVC."""
    from flows.registry.publishing import require_remotes  # imports DVC, which other workers do not need

    require_remotes(Path.cwd())
    os.environ["VDM_SHARE"] = "1"


def require_project() -> None:
    """Raise UserError (exit 2) unless the working directory is a project's folder."""
    if not PROJECT.is_file():
        raise UserError(f"{Path.cwd()} has no {PROJECT}; change to the project's folder", Exit.USAGE)


def require_clock(api: Api) -> None:
    """Raise UserError (exit 2) if this machine's clock differs from that of the server by more than a minute.

    The server compares the times of a run's heartbeats, which this machine writes, with its own clock.  If this clock
    were two minutes behind, every run would be marked as crashed when it starts.  Raises OSError if the server fails.
    """
    _, headers = send(api.url, "admin/version", api.headers)
    there = parsedate(headers["Date"])  # None if the server says no time; it is always GMT
    behind = timegm(there) - time.time() if there else 0.0
    if abs(behind) > MOST_SECONDS_APART:
        how = f"{abs(behind):,.0f} s {'behind' if behind > 0 else 'ahead of'} that of the server at {api.url}"
        raise UserError(f"the clock of this machine is {how}; set both by NTP", Exit.USAGE)


def require_pool(api: Api) -> None:
    """Raise UserError unless the server has a work pool for processes: exit 5 without a pool, 2 for another type."""
    try:
        kind = api.get(f"work_pools/{POOL}")["type"]
    except (OSError, LookupError, TypeError) as error:
        raise UserError(f"{api.url}: {why_unusable(error)}", Exit.MISSING) from error
    if kind != "process":
        advice = f"`prefect work-pool delete {POOL}`, and `vdmctl serve` creates the right one"
        raise UserError(f"{api.url}: the work pool {POOL} is of type {kind}, not process; {advice}", Exit.USAGE)


def require_queues(api: Api, chosen: list[str] | None) -> None:
    """Raise UserError (exit 2) if the work pool lacks one of the worker's queues, so that it would get no run."""
    existing = [queue["name"] for queue in api.ask(f"work_pools/{POOL}/queues/filter", limit=200)]
    for name in chosen or fitting():
        if name not in existing:
            advice = f"`prefect work-queue create {shlex.quote(name)} --pool {POOL}` creates it"
            raise UserError(f"the work pool has no queue {name}, only {', '.join(existing)}; {advice}", Exit.USAGE)


def why_unusable(error: Exception) -> str:
    """Return why a request about the work pool failed."""
    if getattr(error, "code", None) == HTTPStatus.NOT_FOUND:
        return f"it has no work pool {POOL}; run `vdmctl serve` on the server's machine"
    return refusal(error)


def refuse_to_mix(url: str, worker: str, others: set[str]) -> None:
    """Raise UserError (exit 6) if the pool has another worker, unless both share versions.

    A worker that does not share keeps its models in its own folder, so the pool would have two registries.
    """
    for other in others:
        if worker.startswith(SHARED) and other.startswith(SHARED):
            continue
        host, _, folder = other.removeprefix(SHARED).replace("\\", "/").replace(PERCENT, "%").partition(":")
        if other.startswith(SHARED):
            advice = "`vdmctl serve --share` shares with it, and `vdmctl serve --no-worker` starts no worker"
        elif host == socket.gethostname() and has_ended(Path(folder)):
            continue  # it was killed, and is listed until its heartbeat is missed
        elif worker.startswith(SHARED):
            advice = "its worker shares versions only if `vdmctl serve --share` starts it"
        else:
            advice = f"{with_own_home()} starts another server"
        raise UserError(f"{url} serves {folder} on {host} already, or did until a minute ago; {advice}", Exit.BUSY)


def workers(api: Api) -> set[str]:
    """Return the names of the pool's workers that are online."""
    found = api.ask(f"work_pools/{POOL}/workers/filter", limit=200)
    return {worker["name"] for worker in found if worker["status"] == "ONLINE"}


def heard_of(api: Api, seconds: float) -> set[str]:
    """Return the names of the pool's workers with a heartbeat in the last `seconds`; the server never forgets one."""
    chosen = {"last_heartbeat_time": {"after_": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()}}
    return {worker["name"] for worker in api.ask(f"work_pools/{POOL}/workers/filter", workers=chosen, limit=200)}


def served_at(folder: Path) -> str | None:
    """Return the URL of the API that `vdmctl serve` uses in the folder; None if the folder is not served."""
    holder = holder_of(folder / LOCK)
    return holder.split()[-1] if holder else None  # "process 1234 URL", see `alone`


def has_ended(folder: Path) -> bool:
    """Whether no worker runs in a folder of this machine; false if that cannot be seen, as in another user's home."""
    try:
        open_regular(folder / LOCK).close()
    except PermissionError:
        return False
    except OSError:
        return True
    return not served_at(folder)


def with_own_home() -> str:
    """Return the command that serves this folder with another database."""
    home = shlex.quote(str(Path.cwd() / layout.PRIVATE / "prefect"))
    return f"`PREFECT_HOME={home} vdmctl serve --port N`"


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Hold the folder's lock.  Raises UserError (exit 6) when `vdmctl serve` or another worker holds it."""
    LOCK.parent.mkdir(exist_ok=True)
    with lock_file(LOCK, f"process {os.getpid()} {url}") as other:
        if other is not None:
            raise UserError(f"{' '.join(other.split()[:2])} serves {Path.cwd()} already; stop it first", Exit.BUSY)
        yield


def start_worker(stack: ExitStack, url: str, name: str, queues: list[str] | None, *more: str) -> Kept:
    """Start a worker of the folder, which the stack stops after its runs; return it."""
    os.environ["VDM_PROJECT"] = str(Path.cwd())
    os.environ["PATH"] = search_path()  # prefect.yaml names `python3`
    taken = [f"--work-queue={queue}" for queue in queues or fitting()]
    # Without its type a worker ends if it starts while the server is down.
    command = prefect("worker", "start", "--pool", POOL, "--type", "process", "--name", name, *taken, *more)
    # SIGTERM would only make the worker wait for its runs.  They end when it does; see flows.train_vdm.
    kept = Kept(stack, "prefect worker start", command, when_orphaned=signal.SIGKILL)
    # The stack stops the runs first.  They stop their trainer, which saves its state.
    stack.callback(stop_engines, url, Path.cwd(), KILL_SECONDS + 2 * STOP_SECONDS)
    stack.callback(kept.drain)  # before that, so that the worker takes no more runs meanwhile
    return kept


def fitting() -> list[str]:
    """Return the queues that this machine serves: the default one, and that of its hardware."""
    return [DEFAULT, GPU if DRIVER.exists() else CPU]


def worker_name(folder: Path) -> str:
    """Return the name of the folder's worker.  Prefect allows no slash and no percent sign in it."""
    return f"{socket.gethostname()}:{folder}".replace("/", "\\").replace("%", PERCENT)


@contextmanager
def until_stopped() -> Iterator[None]:
    """Run the block until a signal of STOP.  Processes that it starts end with this process."""
    hold_what_starts()
    for number in STOP:  # also SIGINT, which a shell makes background jobs ignore
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        say_on_stderr("stopping")


def interrupt(*_: object) -> NoReturn:
    """Raise KeyboardInterrupt, and ignore SIGHUP from now on: a terminal that is closed sends it twice."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt


def keep_alive(kept: list[Kept], url: str, look: Callable[[Api], None]) -> None:
    """Restart what dies; call `look` with the server's API every LOOK_SECONDS.  Raises what `Kept.revive` raises."""
    looked = 0.0
    while True:
        for each in kept:
            each.revive()
        if time.monotonic() - looked > LOOK_SECONDS:
            with suppress(OSError):  # the server fails, or is being started again
                look(Api(url))
            looked = time.monotonic()
        time.sleep(0.5)
