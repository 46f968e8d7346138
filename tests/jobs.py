"""Jobs that fail in several processes, which import this module."""

import time

import numpy as np
import torch

from flows.core.errors import CheckpointError
from flows.training.collectives import any_process, is_first, process_group
from vdm.errors import TrainingDiverged


def alone() -> None:
    """Fail in the first process, for which the others wait."""
    with process_group(torch.device("cpu")):
        if is_first():
            raise OSError(28, "No space left on device", "somewhere")
        any_process(False)


def second(rank: int) -> np.ndarray:
    """Fail in the second and in the third process."""
    if rank == 1:
        raise TrainingDiverged("a number")
    if rank == 2:
        raise CheckpointError("the model is damaged")
    return np.zeros(3)


def full(rank: int) -> np.ndarray:
    """Run out of a card's memory in the second process; the first would take longer than a test may."""
    if rank == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    time.sleep(3600)
    return np.zeros(3)
