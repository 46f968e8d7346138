"""The start of one job, such as a training run, in several processes, one per device.

torch's elastic agent, which `torchrun` uses too, starts the processes, watches them, and restarts all of them when one
dies.  They find each other through a file that only this user can open, communicate over the loopback interface, and
end when the agent ends.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from torch import OutOfMemoryError
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from flows.core.device import threads_each
from flows.core.errors import Exit, UserError
from flows.core.files import naming, scratch_folder
from flows.process.lifeline import KILL_SECONDS, end_with_starters, hold_what_starts
from flows.process.streams import start_logging
from flows.training.collectives import STORE, local_rank
from vdm.errors import TrainingDiverged

ONE_MACHINE = "one machine"
# The words of torch's allocator, CUDA and cuBLAS.
FULL_CARD = ("OutOfMemoryError: ", "CUDA error: out of memory", "_ALLOC_FAILED")
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# How long a process that fails waits before it ends, so that the agent first sees another one that died.
BLAME_SECONDS = 1.0
SHARED_MEMORY = Path("/dev/shm")
CONTINUES = "run again to continue from the last saved state"


def launch(function: Callable[[], Any], *, num_processes: int, max_restarts: int, again: str = CONTINUES) -> list[Any]:
    """Run the function in `num_processes` processes on this machine, and return its results, by rank.

    When a process dies, all are restarted, at most `max_restarts` times.  Raises the UserError or TrainingDiverged that
    the function raises: of several the first UserError by rank, else the first error.  A process that raises any other
    error counts as dead.  Also raises UserError if processes died too often (exit 1) or a signal stopped this process
    (75); its message ends with the advice `again`.  Raises OutOfMemoryError if a card was full, which ends the
    processes on the others, and OSError if this machine has no shared memory.
    """
    with naming(SHARED_MEMORY, SHARED_MEMORY):
        get_context("fork").Lock()  # the agent needs such locks; an error names no file
    with scratch_folder() as folder, handlers_restored():
        configure_environment(num_processes, str(folder))
        config = agent_config(num_processes, max_restarts, str(folder))
        try:
            with interrupt_held_back():
                outcomes = elastic_launch(config, worker)(function)
        except SignalException as signalled:
            for process in active_children():  # of an interrupted start, which the agent does not know
                process.kill()
            raise UserError(f"stopped; {again}", Exit.RESUMABLE) from signalled
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if failure.exitcode == Exit.RESUMABLE:
                raise UserError(f"stopped; {again}", Exit.RESUMABLE) from failed
            starts, reason = 1 + max_restarts, f"process {rank} of {num_processes} {fate(failure)}"
            if says_full_card(reason):
                raise OutOfMemoryError(reason.partition("\n")[0]) from failed
            raise UserError(f"{reason}, on start {starts} of {starts}; {again}", Exit.BUG) from failed
    results = [outcome for _, outcome in sorted(outcomes.items())]
    if met := [result for result in results if isinstance(result, Exception)]:
        raise next((error for error in met if isinstance(error, UserError)), met[0])
    return results


def results_of(job: Callable[[int], np.ndarray], *, num_processes: int) -> list[np.ndarray]:
    """Run the job in `num_processes` processes on this machine; return what it returns for each rank.

    Raises what `launch` raises.
    """
    return launch(partial(run_job, job), num_processes=num_processes, max_restarts=0, again="run again")


def run_job(job: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return what the job returns for the rank of this process."""
    return job(local_rank())


def agent_config(num_processes: int, max_restarts: int, folder: str) -> LaunchConfig:
    """Return the configuration of torch's elastic agent for this machine; its logs go to `folder`."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=ONE_MACHINE,
        rdzv_backend=ONE_MACHINE,
        max_restarts=max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    # Older releases of torch do not read these: they handle all signals, and kill processes 30 seconds after a signal.
    config.shutdown_timeout = int(KILL_SECONDS)
    # Signals that nohup or a shell set to be ignored stay ignored.
    handled = [number.name for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    config.signals_to_handle = ",".join(handled)
    return config


def fate(failure: ProcessFailure) -> str:
    """Return how a process ended, by a signal or by an error, as the end of a sentence."""
    if failure.exitcode < 0:
        doubt = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
        return f"was killed by {failure.signal_name()}{doubt}"
    message: Any = failure.message  # a mapping if the process wrote its error
    return f"failed: {message['message'] if isinstance(message, dict) else message}"


def configure_environment(num_processes: int, folder: str) -> None:
    """Set the environment variables that the processes read, and the log levels of torch's agent.

    The processes meet in `folder`.  They listen on loopback only, since they trust what they receive.
    """
    for library in ("OMP", "MKL"):  # torch has as many threads as MKL, whatever OpenMP's variable says
        os.environ[f"{library}_NUM_THREADS"] = str(threads_each(num_processes))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["NCCL_SOCKET_IFNAME"] = "=lo"  # without `=` NCCL takes the name for a prefix
    os.environ[STORE] = folder
    hold_what_starts()
    elastic = "torch.distributed.elastic"
    for name in (f"{elastic}.agent.server.api", f"{elastic}.multiprocessing.api", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the rest is warnings at every stop
        logging.getLogger(name).addFilter(without_traceback)


def without_traceback(record: logging.LogRecord) -> bool:
    """Replace the traceback of a process that was killed or exited, or whose card was full, by one line.

    Return True: every record is logged.
    """
    error = record.exc_info[1] if record.exc_info else None
    lines = [str(error)] if isinstance(error, ProcessExitedException) else []
    if isinstance(error, ProcessRaisedException):  # its text is a traceback
        lines = [line for line in str(error).splitlines() if says_full_card(line)]
    if lines:
        record.msg, record.args, record.exc_info = lines[-1], (), None
    return True


def says_full_card(text: str) -> bool:
    """Whether the text of an error says that the memory of a card ran out."""
    return any(words in text for words in FULL_CARD)


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
            if handler is not None:  # None: it was not set by Python
                signal.signal(number, handler)


@contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Block SIGINT in processes that start in the `with` block, until `worker` unblocks it.

    Otherwise a process that gets it while it imports would end with a traceback.  Processes inherit the blocked signal
    from the main thread.  This process still receives it, in another thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Start multiprocessing's resource tracker first: in Python 3.11 its start unblocks SIGINT.  A closed terminal must
    # not end it, since the processes need it until they have saved.
    ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    done = Event()
    Thread(target=done.wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()


@record
def worker(function: Callable[[], Any]) -> Any:
    """Run the function in one of the processes.  Return its result, or an error that a restart would not cure.

    A process that is stopped by a signal exits with 75 instead, since torch's agent then waits for no result.
    """
    end_with_starters()
    start_logging()
    stopped = Path(os.environ[STORE], "stopped")
    if stopped.exists():  # a signal stopped the processes but not the agent, which starts them again
        return UserError(f"stopped; {CONTINUES}", Exit.RESUMABLE)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler in Python would not run while this process waits in a collective for one that is gone.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        outcome = function()
    except (UserError, TrainingDiverged) as error:
        outcome = error
    except Exception:
        time.sleep(BLAME_SECONDS)  # the cause may be another process that died, which the agent must see first
        raise
    agent = parent_process()
    if (isinstance(outcome, UserError) and outcome.code is Exit.RESUMABLE) or (agent and not agent.is_alive()):
        stopped.touch()
        sys.exit(Exit.RESUMABLE)
    return outcome
