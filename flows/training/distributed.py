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
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
from torch import OutOfMemoryError
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from flows.core.device import threads_each
from flows.core.errors import Exit, UserError
from flows.core.files import scratch_folder
from flows.process.lifeline import KILL_SECONDS, end_with_starters, hold_what_starts
from flows.process.streams import start_logging
from flows.training.collectives import STORE, local_rank, out_of_memory
from vdm.errors import TrainingDiverged

ONE_MACHINE = "one machine"
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# How long a process that fails waits before it ends, so that the agent first sees another one that died.
BLAME_SECONDS = 1.0
CONTINUES = "run again to continue from the last saved state"


def launch(function: Callable[[], Any], *, num_processes: int, max_restarts: int, again: str = CONTINUES) -> list[Any]:
    """Run the function in `num_processes` processes on this machine, and return its results, by rank.

    When a process dies, all are restarted, at most `max_restarts` times.  Raises the UserError or TrainingDiverged that
    the function raises: of several the first UserError by rank, else the first error.  A process that raises any other
    error counts as dead.  Also raises UserError if processes died too often (exit 1) or a signal stopped this process
    (75); its message ends with the advice `again`.  Raises OutOfMemoryError if the memory of a device ran out.
    """
    with scratch_folder() as folder, handlers_restored():
        configure_environment(num_processes, str(folder))
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
        try:
            outcomes = elastic_launch(config, worker)(function)
        except SignalException as signalled:
            for process in active_children():  # of an interrupted start, which the agent does not know
                process.kill()
            raise UserError(f"stopped; {again}", Exit.RESUMABLE) from signalled
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if failure.exitcode == Exit.RESUMABLE:
                raise UserError(f"stopped; {again}", Exit.RESUMABLE) from failed
            reason = f"process {rank} of {num_processes} {fate(failure)}"
            if out_of_memory(reason):
                raise OutOfMemoryError(reason) from failed
            raise UserError(f"{reason}, on the last of {1 + max_restarts} starts; {again}", Exit.BUG) from failed
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


def fate(failure: ProcessFailure) -> str:
    """Return how a process ended, by a signal or by an error, as the end of a sentence."""
    if failure.exitcode < 0:
        doubt = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
        return f"was killed by {failure.signal_name()}{doubt}"
    message: Any = failure.message  # a mapping if the process wrote its error
    return f"failed: {message['message'] if isinstance(message, dict) else message}".partition("\n")[0]


def configure_environment(num_processes: int, folder: str) -> None:
    """Set the environment variables that the processes read, and silence the log of torch's agent.

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
    try:
        return function()
    except UserError as error:
        if error.code is Exit.RESUMABLE:
            stopped.touch()
            sys.exit(Exit.RESUMABLE)
        return error
    except TrainingDiverged as error:
        return error
    except Exception as error:
        time.sleep(BLAME_SECONDS)  # the cause may be another process that died, which the agent must see first
        if not out_of_memory(error):
            traceback.print_exc()
        raise
