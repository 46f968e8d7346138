"""One training run in several processes, one per device, on torch's own engine.

torch's elastic agent (what `torchrun` starts) starts the workers, watches them, and starts them all again when one
dies.  The workers find each other through the environment that it sets, and take every decision together: an error
that one of them meets is raised by all.
"""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.resource_tracker import ensure_running
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from flows.ending import on_stop
from flows.errors import Exit, UserError
from vdm.checkpoint import CheckpointError
from vdm.images import ImageSetError
from vdm.training_log import TrainingDiverged

Value = TypeVar("Value")


def launch(function: Callable[[], None], *, num_processes: int, max_restarts: int) -> None:
    """Run the function in so many processes on this machine.

    When a process dies all are started again, at most `max_restarts` times.  What a function raises ends the run and
    is raised here; UserError also when processes died too often (exit 1) or this one was told to stop (75).
    """
    configure_agent(num_processes)
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=max_restarts,
            local_addr="127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            with held_back(signal.SIGINT):
                errors = elastic_launch(config, worker)(function)
        except SignalException as signalled:
            for process in active_children():  # of a start that was cut short, unknown to the agent
                process.kill()
            raise UserError("stopped; run again to continue from the last saved state", Exit.RESUMABLE) from signalled
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            reason = f"process {rank} of {num_processes} failed {1 + max_restarts} times: {failure.message}"
            raise UserError(f"{reason}; run again to continue from the last saved state", Exit.BUG) from failed
    if error := errors[0]:
        raise error


def configure_agent(num_processes: int) -> None:
    """Set what torch's agent, and so many processes of this machine, read from the environment; quieten the agent."""
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # The agent would keep one store for all starts, where a new start finds the addresses of the dead and hangs.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    for name in ("agent.server.api", "multiprocessing.api"):  # they warn of every stop
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.ERROR)


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
    """What a process does: run the function.  An error that all meet is returned: no restart would help.

    A process that was told to stop exits with 75 instead, since torch's agent, told so too, waits for no result.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("flows").setLevel(logging.INFO)
    try:
        with on_stop(lambda *_: os._exit(Exit.RESUMABLE)):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            function()
    except (OSError, UserError, TrainingDiverged, ImageSetError, CheckpointError) as error:
        if isinstance(error, UserError) and error.code is Exit.RESUMABLE:
            sys.exit(error.code)
        return error
    return None


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
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield
    # Not after an error: the other processes may be waiting in a collective that will never be complete.
    distributed.destroy_process_group()


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def agreement() -> Iterator[None]:
    """What the block raises in one process is raised in all of them, the first one's error first."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        if not distributed.is_initialized():
            raise
        error = caught
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
