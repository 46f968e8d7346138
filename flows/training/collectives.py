"""What the processes of one training run do together: they meet, share values, and raise each other's errors.

In a run of a single process every function here works on that process alone.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]

from flows.core.errors import Exit, UserError, of_file
from vdm.training.processes import gather

Value = TypeVar("Value")

STORE = "VDM_STORE"
"""The environment variable with the folder in which the processes of `flows.training.distributed.launch` meet."""


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes that torch's elastic agent started, if it started this one."""
    if not distributed.is_torchelastic_launched():
        yield
        return
    if not is_first():
        logging.getLogger("flows").setLevel(logging.ERROR)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # the only device of a machine has no number
    meeting_place: dict[str, Any] = {}  # with torchrun the environment names a store
    if STORE in os.environ:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        start = os.environ["TORCHELASTIC_RESTART_COUNT"]  # each has a file of its own
        store = FileStore(f"{os.environ[STORE]}/store-{start}", world_size)
        meeting_place = {"store": store, "rank": rank, "world_size": world_size}
    # Gloo with CUDA, too: the flags, values and errors that processes share here are on the CPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **meeting_place)
    yield
    # Not after an error: another process may wait in a collective that this one will not join.
    distributed.destroy_process_group()


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ["LOCAL_RANK"]) if distributed.is_torchelastic_launched() else 0


def is_first() -> bool:
    """Whether this is the process that writes the files and the log."""
    # Other launchers number processes that do not train together, each of which writes its own model.
    return not distributed.is_torchelastic_launched() or os.environ["RANK"] == "0"


@contextmanager
def agreement() -> Iterator[None]:
    """Raise in all processes what the block raises in one of them; of several errors that of the lowest rank.

    With several processes, an OSError becomes UserError (exit 5).
    """
    if not distributed.is_initialized():
        yield
        return
    error: Exception | None = None
    try:
        yield
    except OSError as caught:
        error = UserError(of_file(caught), Exit.MISSING)
    except Exception as caught:
        error = caught
    for met in gather(error):
        if met:
            raise met


def from_first(value: Value) -> Value:
    """Return the value of the first process."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def any_process(*flags: bool) -> list[bool]:
    """Return for each flag whether it is set in at least one process."""
    if not distributed.is_initialized():
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return [bool(value) for value in values]


def out_of_memory(error: object) -> bool:
    """Whether the error says that memory ran out."""
    # Only the message says so on a CPU, in CUDA, cuBLAS and NCCL, and in an error from another process.
    words = ("can't allocate memory", "CUDA out of memory", "error: out of memory", "'out of memory'", "_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
