"""Jobs that fail in several processes, which import this module."""

import time

import torch

from flows.training.distributed import any_process, is_first, local_rank, process_group


def alone() -> None:
    """Fail in the first process, for which the others wait."""
    with process_group(torch.device("cpu")):
        if is_first():
            raise OSError(28, "No space left on device", "somewhere")
        any_process(False)


def full() -> None:
    """Run out of a card's memory in the second process; the first would take longer than a test may."""
    if local_rank() == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    time.sleep(3600)
