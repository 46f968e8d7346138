"""Jobs that fail in several processes, which import this module."""

import time

import torch

from flows.training.distributed import local_rank


def full() -> None:
    """Run out of a card's memory in the second process; the first would take longer than a test may."""
    if local_rank() == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    time.sleep(3600)
