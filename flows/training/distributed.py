"""One training run in several processes, one per device, on torch's own engine.

torch's elastic agent (what `torchrun` starts) starts the workers, watches them, and starts them all again when one
dies.  They find each other through a file that only this user can open, talk over the loopback interface, and end with
the agent.  They take every decision together: an error that one of them meets is raised by all.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import active_children, parent_process
from multiprocessing.resource_tracker import ensure_running
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed import FileStore, HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing.spawn import ProcessExitedException

from flows.core.errors import Exit, UserError
from flows.process.lifeline import hold_what_starts
from flows.process.streams import start_logging
from vdm.errors import CheckpointError, TrainingDiverged

Value = TypeVar("Value")

ONE_MACHINE = "one machine"
STORE = "VDM_STORE"
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# How long the processes wait for each other at their start, and the agent for the first of them that died.
MEETING, BLAME_SECONDS = timedelta(minutes=30), 1.0


def launch(function: Callable[[], None], *, num_processes: int, max_restarts: int) -> None:
    """Run the function in `num_processes` processes on this machine.

    When a process dies all are started again, at most `max_restarts` times.  What a function raises ends the run and
    is raised here; UserError also when processes died too often (exit 1) or this one was told to stop (75).
    """
    with tempfile.TemporaryDirectory() as folder:
        configure_agent(num_processes, folder)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend=ONE_MACHINE,
            max_restarts=max_restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        # Not what nohup or a shell told this process to ignore.  Older releases of torch do not read this.
        config.signals_to_handle = ",".join(number.name for number in STOPPING if not ignored(number))
        try:
            with held_back(signal.SIGINT):
                errors = elastic_launch(config, worker)(function)
        except SignalException as signalled:
            for process in active_children():  # of a start that was cut short, unknown to the agent
                process.kill()
            raise UserError("stopped; run again to continue from the last saved state", Exit.RESUMABLE) from signalled
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            starts = 1 + max_restarts
            reason = f"process {rank} of {num_processes} {fate(failure)}, on start {starts} of {starts}"
            raise UserError(f"{reason}; run again to continue from the last saved state", Exit.BUG) from failed
    if error := errors[0]:
        raise error


def ignored(number: signal.Signals) -> bool:
    """Whether this process ignores the signal."""
    return signal.getsignal(number) is signal.SIG_IGN


def fate(failure: ProcessFailure) -> str:
    """Say how a process ended: by a signal, or by an error of its own."""
    if failure.exitcode < 0:
        doubt = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
        return f"was killed by {failure.signal_name()}{doubt}"
    message: Any = failure.message  # a mapping, where the process left one
    return f"failed: {message['message'] if isinstance(message, dict) else message}"


def configure_agent(num_processes: int, folder: str) -> None:
    """Set what torch's agent and the processes read from the environment; quieten the agent.

    The processes meet in `folder`.  All listen on loopback only, since they believe whatever they receive.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    # NCCL takes a name for the beginning of many; `=` makes it one.
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}", STORE: folder}
    hold_what_starts()
    elastic = "torch.distributed.elastic"
    for name in (f"{elastic}.agent.server.api", f"{elastic}.multiprocessing.api", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they warn of every stop
        logging.getLogger(name).addFilter(without_traceback)


def without_traceback(record: logging.LogRecord) -> bool:
    """Let a record pass; where it is of a process that was killed or exited, with a line in place of the traceback."""
    if record.exc_info and isinstance(record.exc_info[1], ProcessExitedException):
        record.msg, record.args, record.exc_info = str(record.exc_info[1]), (), None
    return True


class OneMachine(RendezvousHandler):
    """The rendezvous of a single agent, which has nobody to find.

    torch's own would listen on every interface, and unpickle what it receives there; and it trusts the wall clock.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        self.run_id = parameters.run_id

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))

    def get_backend(self) -> str:
        return ONE_MACHINE

    def get_run_id(self) -> str:
        return self.run_id

    def num_nodes_waiting(self) -> int:
        return 0

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def shutdown(self) -> bool:
        return True


rendezvous_handler_registry.register(ONE_MACHINE, OneMachine)


@contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """Processes that start in the block keep the signal for `worker`; while they import, they would die of it loudly.

    They inherit that from the main thread.  This process hears the signal all the same, through another thread.
    """
    ensure_running()  # multiprocessing's tracker of resources, at whose start Python 3.11 lets SIGINT through again
    done = Event()
    Thread(target=done.wait, daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()


@record
def worker(function: Callable[[], None]) -> Exception | None:
    """Run the function in one of the processes.  An error that all meet is returned: no restart would help.

    A process that was told to stop exits with 75 instead, since torch's agent, told so too, waits for no result.
    """
    start_logging()
    for number in (signal.SIGINT, signal.SIGTERM):
        # No handler of Python's: it would wait while this process waits for one that may be gone.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    error: Exception | None = None
    try:
        function()
    except (UserError, TrainingDiverged, CheckpointError) as met:
        error = met
    except Exception:
        time.sleep(BLAME_SECONDS)  # perhaps another one's death took this one along: the agent is to find that first
        raise
    agent = parent_process()
    if (isinstance(error, UserError) and error.code is Exit.RESUMABLE) or (agent and not agent.is_alive()):
        sys.exit(Exit.RESUMABLE)  # an agent that is gone takes no result
    return error


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes that torch's agent started; nothing where it started none."""
    if not distributed.is_torchelastic_launched():
        yield
        return
    if not is_first():
        logging.getLogger("flows").setLevel(logging.ERROR)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Gloo also with CUDA: for what is decided on the CPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **meeting_place())
    yield
    # Not after an error: the other processes may be waiting in a collective that will never be complete.
    distributed.destroy_process_group()


def meeting_place() -> dict[str, Any]:
    """Return where the processes of `launch` find each other: in a new file for each start of theirs.

    Nothing for those that torchrun started, which the environment leads to a store on the network.
    """
    if STORE not in os.environ:
        return {}
    path = f"{os.environ[STORE]}/store-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = FileStore(path, world_size)
    store.set_timeout(MEETING)
    return {"store": store, "rank": rank, "world_size": world_size}


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def agreement() -> Iterator[None]:
    """What the block raises in one process is raised in all of them, the first one's error first.

    OSError is then UserError (exit 5), so that one outside such a block remains an error of its process alone.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        if not distributed.is_initialized():
            raise
        error = caught
        if isinstance(caught, OSError):
            error = UserError(f"{caught.filename or 'a file'}: {caught.strerror or caught}", Exit.MISSING)
    if distributed.is_initialized() and (first := next(filter(None, gather(error)), None)):
        raise first


def gather(value: Value) -> list[Value]:
    """The values of all processes, by rank."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: Value) -> Value:
    """The first process's value, in every process."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in some process."""
    if not distributed.is_initialized():
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return [bool(value) for value in values]
