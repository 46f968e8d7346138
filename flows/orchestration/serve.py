"""Run the retraining loop until Ctrl-C: `vdmctl serve`.

It starts a Prefect server if none answers, creates the work pool, the deployments of prefect.yaml and the automations,
and starts a worker.  Server and worker are restarted when they die; if one dies again at once, the loop ends.
"""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from prefect.settings import get_current_settings

from flows.core.errors import Exit, UserError
from flows.orchestration import automations
from flows.orchestration.deployments import FLOW, OF_POOL, POOL, deploy, prefect, schedules, switch_off_impossible
from flows.orchestration.server import Address, Api, answers, configure, find_address, refusal, require_server
from flows.orchestration.workers import (
    CPU,
    GPU,
    SHARED,
    alone,
    heard_of,
    keep_alive,
    refuse_to_mix,
    require_clock,
    require_pool,
    require_project,
    require_queues,
    share_versions,
    start_worker,
    until_stopped,
    with_own_home,
    worker_name,
    workers,
)
from flows.process.kept import Kept
from flows.process.locks import lock_file
from flows.process.streams import say_on_stderr

START_SECONDS = 300
DAY = 24 * 3600.0
DEAD_SECONDS = 60.0
"""A worker starts the process of a run long before this."""


def serve(
    host: str | None, port: int | None, *, share: bool = False, worker: bool = True, queues: list[str] | None = None
) -> None:
    """Run the loop until SIGINT, SIGTERM or SIGHUP.  A server that is started listens at `host` and `port`, if given.

    With `share`, its worker shares versions with workers on other machines.  Raises UserError: exit 2 outside a
    project's folder, for an address at which no server can listen, and for a queue that does not exist, 6 when another
    `vdmctl serve` has the folder or the database; and what `require_server` and `require_clock` raise for a server that
    answers there.
    """
    require_project()
    if share:
        share_versions()
    address = find_address(host, port)
    configure(address)
    notifications = automations.Notifications()
    watch = partial(look, notifications.look, (worker and queues) or [], {} if worker and not share else None)
    with ExitStack() as stack, until_stopped():
        stack.enter_context(alone(address.url))
        kept = []
        if answers(address.url):
            require_server(address.url)
            if worker:
                require_clock(Api(address.url))
        else:
            require_free(address)
            stack.enter_context(owning_database())
            kept.append(start_server(stack, address))
        name = (SHARED if share else "") + worker_name(Path.cwd())
        prepare(address.url, name if worker else None)
        api = Api(address.url)
        if worker:
            require_queues(api, queues)
            kept.append(start_worker(stack, address.url, name, queues))
        say_on_stderr("\n".join(schedules(api)))
        say_on_stderr(f"serving at {address.url.removesuffix('/api')}; `prefect deployment run {FLOW}` starts a run")
        keep_alive(kept, address.url, watch)


def look(notifications: Callable[[Api], None], queues: list[str], absent: dict[str, float] | None, api: Api) -> None:
    """Look for schedules that never fire, runs to stop or to end, deleted queues, and new blocks of notifications.

    `absent` is passed to `end_dead_runs`.  Without it no run is ended: if workers on other machines share the server,
    the processes of their runs cannot be seen from here.  Raises OSError if the server fails.
    """
    switch_off_impossible(api)
    automations.stop_unwanted_runs(api, Path.cwd())
    if absent is not None:
        automations.end_dead_runs(api, absent, after=DEAD_SECONDS)
    try:
        notifications(api)
    finally:  # neither waits for the other
        create_queues(api, queues)


def require_free(address: Address) -> None:
    """Raise UserError (exit 2) if no server can listen at the address.  Prefect would find out after some seconds."""
    with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that ended just now keeps no port busy
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            reason = f"no server can listen at {address.host}, port {address.port}: {error.strerror}"
            raise UserError(f"{reason}; --port picks another port, --host another address", Exit.USAGE) from error


def start_server(stack: ExitStack, address: Address) -> Kept:
    """Start a server, which the stack stops, and wait until it answers.

    Raises UserError: exit 2 if it ends, 1 if it does not answer in time.
    """
    command = prefect("server", "start", "--host", address.host, "--port", str(address.port))
    kept = Kept(stack, "prefect server start", command, when_orphaned=signal.SIGTERM)
    url, deadline = address.url, time.monotonic() + START_SECONDS
    while not answers(url):
        if kept.process.poll() is not None:
            raise UserError(f"no server at {url}: Prefect says above why; --port picks another port", Exit.USAGE)
        if time.monotonic() > deadline:
            raise UserError(f"the Prefect server does not answer at {url} after {START_SECONDS} s", Exit.BUG)
        time.sleep(0.3)
    return kept


@contextmanager
def owning_database() -> Iterator[None]:
    """Hold the lock of Prefect's home: two servers on one database would schedule every run twice and share a pool.

    Raises UserError (exit 6) when another `vdmctl serve` holds it.
    """
    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    with lock_file(home / "vdm-serve.lock", str(Path.cwd())) as other:
        if other is not None:
            raise UserError(
                f"{other} serves with Prefect's database in {home} already; {with_own_home()} serves this folder, too",
                Exit.BUSY,
            )
        yield


def prepare(url: str, worker: str | None) -> None:
    """Set up pool, queues, deployments and automations; end the runs whose process died with an earlier worker.

    `worker` is the name of the worker that will be started.  Raises UserError: exit 5 if the server fails; see also
    `refuse_to_mix`, `require_pool` and `deploy`.
    """
    try:
        api = Api(url, START_SECONDS)
        create_pool(api)
        own = worker_name(Path.cwd())
        ours = {own, SHARED + own}  # an earlier one has ended, since `alone` holds the folder, but may still be listed
        if worker:
            refuse_to_mix(url, worker, workers(api) - ours)
        deploy(api)
        automations.put(api, automations.silent_runs().model_dump(mode="json", exclude={"owner_resource"}))
        # A run on another machine cannot be seen here.  Its worker is offline for a while after the server was down.
        if not heard_of(api, DAY) - ours:
            automations.end_dead_runs(api, {})
    except OSError as error:
        if error.filename:
            raise
        raise UserError(f"{url}: {refusal(error)}", Exit.MISSING) from error


def create_pool(api: Api) -> None:
    """Create the work pool and its queues, where they do not exist.  Raises UserError; see `require_pool`."""
    from prefect.workers.process import ProcessWorker

    if not api.ask("work_pools/filter", work_pools=OF_POOL):
        template = ProcessWorker.get_default_base_job_template()
        api.ask("work_pools/", name=POOL, type="process", base_job_template=template)
    require_pool(api)
    create_queues(api, [])


def create_queues(api: Api, more: list[str]) -> None:
    """Create the queues of workers' hardware, and `more`, where they do not exist: a worker needs all of its queues."""
    existing = {queue["name"] for queue in api.ask(f"work_pools/{POOL}/queues/filter", limit=200)}
    for name in sorted({GPU, CPU, *more} - existing):
        api.ask(f"work_pools/{POOL}/queues", name=name)
