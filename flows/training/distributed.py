"""Several processes of one job, such as a training run, one per device: their start, and what they do together.

torch's elastic agent, which `torchrun` uses too, starts the processes, watches them, and restarts all of them when one
dies.  They find each other through a file that only this user can open, communicate over the loopback interface, and
end when the agent ends.  In a job of a single process every function here works on that process alone.
"""

import logging
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed import FileStore, HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from flows.core.device import threads_each
from flows.core.errors import Exit, UserError, brief, file_problem
from flows.core.files import scratch_folder, write_whole
from flows.process.lifeline import KILL_SECONDS, end_with_starters, hold_what_starts
from flows.process.streams import start_logging
from vdm.errors import TrainingDiverged
from vdm.training.processes import process

Value = TypeVar("Value")

ONE_MACHINE = "one machine"
STORE = "VDM_STORE"
"""The environment variable with the folder in which the processes of `launch` meet."""
ERROR = "error"
"""The file in that folder with an error that a restart would not cure."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
POLL_SECONDS = 1.0
# How long a process that fails waits before it ends, so that the agent first sees another one that died.
BLAME_SECONDS = 1.0


def launch(
    function: Callable[[], Value], *, num_processes: int, max_restarts: int = 0, again: str = "run again"
) -> list[Value]:
    """Run the function in `num_processes` processes on this machine, and return its results, by rank.

    When a process dies or fails, all are restarted, at most `max_restarts` times.  But an error that a restart would
    not cure ends them all, and is raised here: UserError, TrainingDiverged, OSError (as UserError, exit 5), and one
    that says that memory ran out.  Also raises UserError if processes died too often (exit 1) or a signal stopped this
    process (75); its message ends with the advice `again`.
    """
    outcomes: dict[int, Value] = {}
    with scratch_folder() as folder, handlers_restored():
        configure_environment(num_processes, folder)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=ONE_MACHINE,
            rdzv_backend=ONE_MACHINE,
            max_restarts=max_restarts,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        )
        # Older releases of torch do not read these.  Signals that nohup set to be ignored stay ignored.
        config.shutdown_timeout = int(KILL_SECONDS)
        handled = [number.name for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        config.signals_to_handle = ",".join(handled)
        error = folder / ERROR
        try:
            outcomes = elastic_launch(config, worker)(function)
        except SignalException as signalled:
            for child in active_children():  # of an interrupted start, which the agent does not know
                child.kill()
            raise UserError(f"stopped; {again}", Exit.RESUMABLE) from signalled
        except ChildFailedError as failed:
            if not error.exists():
                rank, failure = failed.get_first_failure()
                said: Any = failure.message  # a mapping if the process wrote its error
                reason = brief(said["message"] if isinstance(said, dict) else said)
                if failure.exitcode == -signal.SIGKILL:
                    reason += " (out of memory?)"
                starts = f"on the last of {1 + max_restarts} starts"
                raise UserError(f"process {rank} of {num_processes}: {reason}, {starts}; {again}", Exit.BUG) from failed
        if error.exists():
            raise pickle.loads(error.read_bytes())
    return [outcome for _, outcome in sorted(outcomes.items())]


def worker(function: Callable[[], Value]) -> Value | None:
    """Run the function in one of the processes, and return its result.

    An error that a restart would not cure goes into a file: after a restart, all processes end at once.
    """
    end_with_starters()
    start_logging()
    error_file = Path(os.environ[STORE], ERROR)
    if error_file.exists():
        return None
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler in Python would not run while this process waits in a collective for one that is gone.
        signal.signal(number, signal.SIG_DFL)
    try:
        return function()
    except Exception as error:
        final: Exception = UserError(file_problem(error), Exit.MISSING) if isinstance(error, OSError) else error
        if isinstance(final, (UserError, TrainingDiverged)) or out_of_memory(final):
            write_whole(error_file, pickle.dumps(final))
            sys.exit(Exit.BUG)
        time.sleep(BLAME_SECONDS)  # the cause may be another process that died, which the agent must see first
        if "gloo/transport" not in str(error):  # a lost connection says nothing about its cause
            traceback.print_exc()
        raise


def configure_environment(num_processes: int, folder: Path) -> None:
    """Set the environment variables that the processes read, and silence the log of torch's agent.

    The processes meet in `folder`.  They listen on loopback only, since they trust what they receive.
    """
    for library in ("OMP", "MKL"):  # torch has as many threads as MKL, whatever OpenMP's variable says
        os.environ[f"{library}_NUM_THREADS"] = str(threads_each(num_processes))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["NCCL_SOCKET_IFNAME"] = "=lo"  # without `=` NCCL takes the name for a prefix
    os.environ[STORE] = str(folder)
    hold_what_starts()
    elastic = "torch.distributed.elastic"
    for name in (f"{elastic}.agent.server.api", f"{elastic}.multiprocessing.api", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # `worker` prints the traceback of a bug


class OneMachine(RendezvousHandler):
    """The rendezvous of a single agent, which needs no other.

    torch's own rendezvous listens on every interface, unpickles what it receives, and relies on the wall clock.
    """

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))

    def get_backend(self) -> str:
        return ONE_MACHINE

    def get_run_id(self) -> str:
        return ONE_MACHINE

    def num_nodes_waiting(self) -> int:
        return 0

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def shutdown(self) -> bool:
        return True


rendezvous_handler_registry.register(ONE_MACHINE, lambda _: OneMachine())


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Restore the handlers of the signals in STOPPING after the block, since torch's agent leaves its own."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes that torch's elastic agent started, if it started this one."""
    if not distributed.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # the only device of a machine has no number
    meeting_place: dict[str, Any] = {}  # with torchrun the environment names a store
    if STORE in os.environ:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        start = os.environ["TORCHELASTIC_RESTART_COUNT"]  # each has a file of its own
        store = FileStore(f"{os.environ[STORE]}/store-{start}", world_size)
        meeting_place = {"store": store, "rank": rank, "world_size": world_size}
    # Gloo with CUDA, too: the flags and values that processes share here are on the CPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **meeting_place)
    if not is_first():
        logging.getLogger("flows").setLevel(logging.ERROR)
    yield
    # Not after an error: another process may wait in a collective that this one will not join.
    distributed.destroy_process_group()


def local_rank() -> int:
    """Return the number of this process on its machine."""
    # Other launchers number processes that do not work together.
    return int(os.environ["LOCAL_RANK"]) if distributed.is_torchelastic_launched() else 0


def is_first() -> bool:
    """Whether this is the process that writes the files and the log."""
    return process()[0] == 0


def take_first(value: Value) -> Value:
    """Return the value of the first process."""
    values = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in at least one process."""
    return bool(largest_of_all(flag)[0])


def largest_of_all(*values: int) -> list[int]:
    """Return for each value the largest of those of all processes."""
    found = torch.tensor(values, dtype=torch.int32)
    if distributed.is_initialized():
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return found.tolist()


class Poll:
    """Asks all processes whether one of them `wants` to stop: about once a second, and not whenever it is called.

    All processes must call it equally often.  They ask at the same calls, of which the first process measures the pace.
    Once the answer is yes, it stays so.
    """

    def __init__(self, wants: Callable[[], bool]) -> None:
        self.wants = wants
        self.answer = False
        self.every = self.left = 1
        self.asked = time.monotonic()

    def __call__(self) -> bool:
        self.left -= 1
        if not distributed.is_initialized():
            self.answer = self.answer or self.wants()
        elif not self.answer and self.left <= 0:
            share = POLL_SECONDS / max(time.monotonic() - self.asked, 1e-6)
            every = int(self.every * min(share, 2.0))  # no further, since the pace of a few calls says little
            answer, self.every = largest_of_all(self.wants(), max(1, every) if is_first() else 0)
            self.answer, self.left, self.asked = bool(answer), self.every, time.monotonic()
        return self.answer


def out_of_memory(error: object) -> bool:
    """Whether the error says that memory ran out."""
    # Only the message says so on a CPU, in CUDA, cuBLAS and NCCL.
    words = ("can't allocate memory", "CUDA out of memory", "error: out of memory", "'out of memory'", "_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
