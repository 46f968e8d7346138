"""Run the retraining loop until Ctrl-C or SIGTERM: `vdmctl serve`, and `vdmctl worker` for another machine.

Prefect's server and worker are processes in sessions of their own, so that Ctrl-C reaches this process alone.  It
starts again whichever of them ends.  At the end it stops the runs first, whose trainers save their state, since
Prefect's worker kills its runs when it gets SIGTERM.

A worker runs the code of its own folder: the deployments name no folder, and every worker gives its own in VDM_PROJECT.
With VDM_SHARE its runs start from what the remotes of git and DVC have, and publish what they make.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from prefect.client.orchestration import SyncPrefectClient

from flows.core.errors import Exit, UserError
from flows.orchestration.runs import FLOW, close_dead_runs, continue_interrupted, mark_interrupted, stop_engines
from flows.orchestration.server import (
    Address,
    alone,
    answers,
    configure,
    connected,
    find_address,
    is_loopback,
    owning_database,
    require_project,
)
from flows.orchestration.setting_up import POOL, notify, require_queues, schedules, set_up
from flows.process.ending import STOP
from flows.process.environment import search_path
from flows.process.groups import signal_with_parent, stop_group
from flows.process.lifeline import hold_what_starts
from flows.process.streams import say_on_stderr

START_SECONDS = 300.0
STOP_SECONDS = 30.0
"""How long each signal may take to end server or worker."""
RESTART_SECONDS = 30.0
"""A process that ends again within this time is not started again."""
LOOK_SECONDS = 20.0
"""How often blocks of notifications and interrupted runs are looked for."""
# Present if the driver of an NVIDIA card is loaded.
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass
class Child:
    """A command of Prefect in its own session, which ends when this process is killed."""

    arguments: list[str]
    when_orphaned: signal.Signals
    process: subprocess.Popen[str] = field(init=False)
    restarted: float | None = None

    @property
    def name(self) -> str:
        """Return the command without its options."""
        return f"prefect {' '.join(self.arguments[:2])}"

    def start(self) -> None:
        """Start the command."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *self.arguments],
            start_new_session=True,
            text=True,
            preexec_fn=partial(signal_with_parent, self.when_orphaned),
        )

    def start_again(self) -> None:
        """Start the command after its end.  Raises UserError (exit 1) if it was started again just before."""
        if self.restarted and time.monotonic() - self.restarted < RESTART_SECONDS:
            raise UserError(f"`{self.name}` ended again at once; see its output above", Exit.BUG)
        say_on_stderr(f"`{self.name}` ended; starting it again")
        self.restarted = time.monotonic()
        self.start()

    def stop(self) -> None:
        """Stop the command and what it started."""
        stop_group(self.process, *((number, STOP_SECONDS) for number in (signal.SIGTERM, signal.SIGKILL)))


def serve(
    host: str | None, port: int | None, *, share: bool = False, worker: bool = True, queues: list[str] | None = None
) -> None:
    """Run the loop until SIGINT, SIGTERM or SIGHUP.  A server that is started listens at `host` and `port`, if given.

    With `share`, its worker shares versions with workers on other machines.  Raises UserError: exit 2 outside a
    project's folder, for an address at which no server can listen, and for a queue that does not exist; 6 when another
    `vdmctl serve` has the folder or the database; 5 if what answers at the address is no server that can be used.
    """
    require_project()
    if share:
        share_versions()
    address = find_address(host, port)
    configure(address.url)
    with until_stopped(), ExitStack() as stack:
        stack.enter_context(alone(address.url))
        children = [] if answers() else [start_server(stack, address, given=bool(host or port))]
        with connected(address.url) as client:
            set_up(client)
            if worker:
                children.append(start_worker(stack, client, queues))
            notify(client)
            say_on_stderr("\n".join(schedules(client)))
            say_on_stderr(
                f"serving at {address.url.removesuffix('/api')}; `prefect deployment run {FLOW}` starts a run"
            )
        keep_alive(children, address.url)


def work(queues: list[str] | None) -> None:
    """Run a worker that shares versions through the remotes, until a signal of STOP.

    Raises UserError: exit 2 outside a project's folder, without a remote of git or DVC, or for a queue that does not
    exist; 5 if no server answers; 6 if a worker runs in the folder already.
    """
    require_project()
    share_versions()
    address = find_address(None, None)
    configure(address.url)
    with until_stopped(), ExitStack() as stack:
        stack.enter_context(alone(address.url))
        with connected(address.url) as client:
            # It takes one run at a time: others wait at the server, where a worker with a free device may take them.
            children = [start_worker(stack, client, queues, "--limit", "1")]
        say_on_stderr(f"working for {address.url}, queues {', '.join(queues or fitting())}")
        keep_alive(children, address.url)


def share_versions() -> None:
    """Let the worker of this process share versions.  Raises UserError (exit 2) without a remote of git or DVC."""
    from flows.registry.publishing import require_remotes  # imports DVC, which other workers do not need

    require_remotes(Path.cwd())
    os.environ["VDM_SHARE"] = "1"


def start_server(stack: ExitStack, address: Address, *, given: bool) -> Child:
    """Start a server, which the stack stops, and wait until it answers.

    Raises UserError: exit 5 if its address is another machine's, 2 if it ends, 1 if it does not answer in time, 6 if
    another `vdmctl serve` uses its database.
    """
    if not given and not is_loopback(address.host):
        raise UserError(f"no Prefect server answers at {address.url}, and none can be started there", Exit.MISSING)
    stack.enter_context(owning_database())
    command = ["server", "start", "--host", address.host, "--port", str(address.port)]
    server = Child(command, when_orphaned=signal.SIGTERM)
    server.start()
    stack.callback(server.stop)
    deadline = time.monotonic() + START_SECONDS
    while not answers():
        if server.process.poll() is not None:
            reason = "Prefect says above why; --port picks another port, --host another address"
            raise UserError(f"no server can be started at {address.host}, port {address.port}: {reason}", Exit.USAGE)
        if time.monotonic() > deadline:
            raise UserError(f"the server does not answer at {address.url} after {START_SECONDS:g} s", Exit.BUG)
        time.sleep(0.3)
    return server


def start_worker(stack: ExitStack, client: SyncPrefectClient, queues: list[str] | None, *options: str) -> Child:
    """Start the folder's worker, which the stack stops after its runs.

    The runs of an earlier worker are ended before.  Raises UserError (exit 2); see `require_queues`.
    """
    taken = queues or fitting()
    require_queues(client, taken)
    # prefect.yaml names the folder, and `python3`.
    os.environ |= {"VDM_PROJECT": str(Path.cwd()), "PATH": search_path()}
    name = worker_name()
    close_dead_runs(client, name)
    command = ["worker", "start", "--pool", POOL, "--type", "process", "--name", name, *options]
    # SIGTERM would only make the worker wait for its runs.  They end when it does; see flows.train_vdm.
    worker = Child([*command, *(f"--work-queue={queue}" for queue in taken)], when_orphaned=signal.SIGKILL)
    worker.start()
    stack.callback(worker.stop)
    stack.callback(stop_runs, str(client.api_url))
    return worker


def stop_runs(url: str) -> None:
    """Stop the runs of the folder's worker before the worker, which would kill them."""
    if stopped := stop_engines(worker_name()):
        with suppress(UserError), connected(url) as client:  # a server elsewhere may be down
            mark_interrupted(client, stopped)


def worker_name() -> str:
    """Return the name of the folder's worker.  Prefect allows no slash and no percent sign in it."""
    return f"{socket.gethostname()}:{Path.cwd()}".replace("/", "\\").replace("%", "_")


def fitting() -> list[str]:
    """Return the queues that this machine serves: the default one, and that of its hardware."""
    return ["default", "gpu" if DRIVER.exists() else "cpu"]


def keep_alive(children: list[Child], url: str) -> None:
    """Start again whichever of the children ends, make notifications whose block exists, continue interrupted runs.

    A worker is started again when its runs, which end with it, have saved their state.  Raises UserError.
    """
    looked = -LOOK_SECONDS
    while True:
        time.sleep(0.5)
        ended = [child for child in children if child.process.poll() is not None]
        for child in ended[:1]:  # a server before the worker that needs it
            if child.arguments[0] == "worker":
                try:
                    with connected(url) as client:
                        close_dead_runs(client, worker_name())
                except UserError:  # the server is being started
                    continue
            child.start_again()
        if time.monotonic() - looked > LOOK_SECONDS:
            with suppress(UserError), connected(url) as client:  # the server may be starting
                notify(client)
                continue_interrupted(client, worker_name())
            looked = time.monotonic()


@contextmanager
def until_stopped() -> Iterator[None]:
    """Run the block until a signal of STOP.  Processes that it starts end with this process."""
    hold_what_starts()
    for number in STOP:  # also SIGINT, which a shell makes background jobs ignore
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        say_on_stderr("stopped")


def interrupt(*_: object) -> NoReturn:
    """Raise KeyboardInterrupt, and ignore further signals: what follows saves the runs."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)
    say_on_stderr("stopping; a run that trains saves its state first")
    raise KeyboardInterrupt
