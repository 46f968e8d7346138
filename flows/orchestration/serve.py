"""Run the retraining loop until Ctrl-C or SIGTERM: `vdmctl serve`, and `vdmctl worker` for another machine.

Prefect's server and worker are processes in sessions of their own, so that Ctrl-C reaches this process alone.  It
starts again whichever of them ends.  At the end it stops the runs first, whose trainers save their state, since
Prefect's worker kills its runs when it gets SIGTERM.

A worker runs the code of its own folder: the deployments name no folder, and every worker gives its own in VDM_PROJECT.
With VDM_SHARE, of the worker or of the deployment, runs start from what the remotes of git and DVC have, and publish
what they make.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from prefect.client.orchestration import SyncPrefectClient

from flows.core.errors import Exit, UserError
from flows.orchestration.metrics import start_metrics
from flows.orchestration.runs import (
    FLOW,
    POOL,
    close_dead_runs,
    continue_interrupted,
    environment_of_runs,
    mark_interrupted,
    stop_engines,
    worker_name,
)
from flows.orchestration.server import (
    Address,
    answers,
    configure,
    connect,
    find_address,
    lock_database,
    lock_folder,
    require_project,
)
from flows.orchestration.setting_up import automate, make_pool, set_up, share_deployments
from flows.process.addresses import is_loopback
from flows.process.ending import STOP
from flows.process.groups import signal_with_parent, stop_group
from flows.process.lifeline import hold_what_starts
from flows.process.streams import say_on_stderr
from flows.project.project import Project
from flows.registry.costs import DRIVER

STOP_SECONDS = 30.0
"""How long each signal may take to end server or worker."""
RESTART_SECONDS = 30.0
"""A process that ends again within this time is not started again."""
LOOK_SECONDS = 20.0
"""How often automations.yaml is read, since a block may be made at any time, and interrupted runs are looked for."""


class Child:
    """A command of Prefect in its own session, which gets a signal when this process is killed."""

    def __init__(self, *arguments: str, when_orphaned: signal.Signals) -> None:
        self.arguments = arguments
        self.when_orphaned = when_orphaned
        self.restarted = -RESTART_SECONDS
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *self.arguments],
            start_new_session=True,
            text=True,
            preexec_fn=partial(signal_with_parent, self.when_orphaned),
        )

    def start_again(self) -> None:
        """Start the command after its end.  Raises UserError (exit 1) if it was started again just before."""
        name, now = f"`prefect {' '.join(self.arguments[:2])}`", time.monotonic()
        if now - self.restarted < RESTART_SECONDS:
            raise UserError(f"{name} ended again at once; see its output above", Exit.BUG)
        say_on_stderr(f"{name} ended; starting it again")
        self.restarted, self.process = now, self.start()

    def stop(self) -> None:
        """Stop the command and what it started."""
        stop_group(self.process, *((number, STOP_SECONDS) for number in (signal.SIGTERM, signal.SIGKILL)))


def serve(
    host: str | None,
    port: int | None,
    *,
    share: bool = False,
    worker: bool = True,
    queues: list[str] | None = None,
    metrics_port: int | None = None,
) -> None:
    """Run the loop until SIGINT, SIGTERM or SIGHUP.  A server that is started listens at `host` and `port`, if given.

    With `metrics_port`, Prometheus may ask at that port of loopback.

    With `share`, its worker shares versions with workers on other machines.  Raises UserError: exit 2 outside a
    project's folder, and for an address at which no server can listen; 6 when another `vdmctl serve` has the folder or
    the database; 5 if what answers at the address is no server that can be used.
    """
    require_project()
    if share:
        share_versions()
    address = find_address(host, port)
    with run_until_stopped(address.url) as stack:
        if metrics_port:
            start_metrics(Project(Path.cwd()), address.url, metrics_port)
        children = [] if answers() else [start_server(stack, address, given=bool(host or port))]
        with connect(address.url) as client:
            set_up(client)
            if share:
                share_deployments(client)
            if worker:
                children.append(start_worker(stack, client, queues))
            page = address.url.removesuffix("/api")
            say_on_stderr(f"serving at {page}; `prefect deployment run {FLOW}` starts a run")
        keep_alive(children, address.url)


def work(queues: list[str] | None) -> None:
    """Run a worker that shares versions through the remotes, until a signal of STOP.

    Raises UserError: exit 2 outside a project's folder, or without a remote of git or DVC; 5 if no server answers; 6 if
    a worker runs in the folder already.
    """
    require_project()
    share_versions()
    url = find_address(None, None).url
    with run_until_stopped(url) as stack:
        with connect(url) as client:
            share_deployments(client)
            # It takes one run at a time: others wait at the server, where a worker with a free device may take them.
            children = [start_worker(stack, client, queues, "--limit", "1")]
        say_on_stderr(f"working for {url}, queues {', '.join(queues or choose_queues())}")
        keep_alive(children, url)


def share_versions() -> None:
    """Let the worker of this process share versions.  Raises UserError (exit 2) without a remote of git or DVC."""
    from flows.registry.publishing import require_remotes  # imports DVC, which other workers do not need
    from flows.repository.repository import Repository

    require_remotes(Repository())
    os.environ["VDM_SHARE"] = "1"


def start_server(stack: ExitStack, address: Address, *, given: bool) -> Child:
    """Start a server, which the stack stops, and wait until it answers.

    Raises UserError: exit 5 if its address is another machine's, 2 if it ends, 6 if another `vdmctl serve` uses its
    database.
    """
    if not given and not is_loopback(address.host):
        raise UserError(f"no Prefect server answers at {address.url}, and none can be started there", Exit.MISSING)
    stack.enter_context(lock_database())
    options = "--host", address.host, "--port", str(address.port)
    server = Child("server", "start", *options, when_orphaned=signal.SIGTERM)
    stack.callback(server.stop)
    while not answers():
        if server.process.poll() is not None:
            reason = "Prefect says above why; --port picks another port, --host another address"
            raise UserError(f"no server can be started at {address.host}, port {address.port}: {reason}", Exit.USAGE)
        time.sleep(0.3)
    return server


def start_worker(stack: ExitStack, client: SyncPrefectClient, queues: list[str] | None, *options: str) -> Child:
    """Start the folder's worker, which the stack stops after its runs.  Runs of an earlier worker are closed before."""
    taken = queues or choose_queues()
    make_pool(client, taken)
    os.environ |= environment_of_runs()
    name = worker_name()
    close_dead_runs(client, name)
    chosen = [f"--work-queue={queue}" for queue in taken]
    pool = "--pool", POOL, "--type", "process"
    # SIGTERM would only make the worker wait for its runs.  They end when it does; see flows.train_vdm.
    worker = Child("worker", "start", *pool, "--name", name, *chosen, *options, when_orphaned=signal.SIGKILL)
    stack.callback(worker.stop)
    stack.callback(stop_runs, str(client.api_url))
    return worker


def stop_runs(url: str) -> None:
    """Stop the runs of the folder's worker before the worker, which would kill them."""
    if stopped := stop_engines(worker_name()):
        with suppress(UserError), connect(url) as client:  # a server elsewhere may be down
            mark_interrupted(client, stopped)


def choose_queues() -> list[str]:
    """Return the queues that this machine serves: the default one, and that of its hardware."""
    return ["default", "gpu" if DRIVER.exists() else "cpu"]


def keep_alive(children: list[Child], url: str) -> None:
    """Start again whichever of the children ends, continue interrupted runs, make automations whose block exists.

    A worker is started again when its runs, which end with it, have saved their state.  What is wrong with
    automations.yaml is printed once, and stops nothing.  Raises UserError.
    """
    looked, said = -LOOK_SECONDS, list[str]()
    while True:
        time.sleep(0.5)
        for child in children:
            if child.process.poll() is None:
                continue
            if child.arguments[0] == "worker":
                try:
                    with connect(url) as client:
                        close_dead_runs(client, worker_name())
                except UserError:  # the server is being started
                    continue
            child.start_again()
        if time.monotonic() - looked > LOOK_SECONDS:
            with suppress(UserError), connect(url) as client:  # the server may be starting
                continue_interrupted(client, worker_name())
                wrong = automate(client)
                for line in wrong:
                    if line not in said:
                        say_on_stderr(line)
                said = wrong
            looked = time.monotonic()


@contextmanager
def run_until_stopped(url: str) -> Iterator[ExitStack]:
    """Run the block, with Prefect at `url`, until a signal of STOP; then end what it put on the stack.

    Processes that it starts end with this process.  Raises UserError (exit 6) if the folder is served already.
    """
    configure(url)
    hold_what_starts()
    for number in STOP:  # also SIGINT, which a shell makes background jobs ignore
        signal.signal(number, interrupt)
    with suppress(KeyboardInterrupt), lock_folder(url), ExitStack() as stack:
        yield stack
    say_on_stderr("stopped")


def interrupt(*_: object) -> NoReturn:
    """Raise KeyboardInterrupt, and ignore further signals: what follows saves the runs."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)
    say_on_stderr("stopping; a run that trains saves its state first")
    raise KeyboardInterrupt
