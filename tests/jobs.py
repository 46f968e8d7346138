"""Jobs for several processes, which import this module."""

import time

import torch

from flows.training.distributed import Poll, is_first, local_rank, process_group


def polling() -> tuple[int, int, float]:
    """Call a poll until it says that the second process wants to stop, as it does after three seconds.

    Return the calls, how often the processes asked each other, and the seconds since that process wanted to stop.
    """
    calls, asked, begin = 0, 0, time.monotonic()

    def wants() -> bool:
        nonlocal asked
        asked += 1
        return not is_first() and time.monotonic() - begin > 3

    with process_group(torch.device("cpu")):
        poll = Poll(wants)
        while not poll():
            calls += 1
            time.sleep(0.001)
    return calls, asked, time.monotonic() - begin - 3


def full() -> None:
    """Run out of a card's memory in the second process; the first would take longer than a test may."""
    if local_rank() == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    time.sleep(3600)
