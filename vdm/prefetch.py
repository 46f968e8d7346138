"""Arrays that are ready on the device when a computation needs them: a background thread makes them ahead of it.

On CUDA the thread puts them into page-locked memory and copies them on a stream of its own, so neither the host nor the
card waits for them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Key = TypeVar("Key")


def prefetch(
    make: Callable[[Key], Sequence[np.ndarray]], keys: Iterable[Key], device: torch.device, *, ahead: int = 2
) -> Iterator[list[Tensor]]:
    """Yield the arrays that `make` returns for every key, on the device, made while up to `ahead` others are in use.

    Raises what `make` raises, when the turn of its key comes.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ready(key: Key) -> tuple[list[Tensor], Any]:
        tensors = [torch.from_numpy(array) for array in make(key)]
        if device.type == "cuda":  # where many operations do not take uint16
            tensors = [tensor.int() if tensor.dtype == torch.uint16 else tensor for tensor in tensors]
        with torch.cuda.stream(stream):
            moved = [pin(tensor, device).to(device, non_blocking=True) for tensor in tensors]
            return moved, stream.record_event() if stream else None

    def taken(future: Future[tuple[list[Tensor], Any]]) -> list[Tensor]:
        tensors, copied = future.result()
        if copied:
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in tensors:
                tensor.record_stream(current)
        return tensors

    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[tuple[list[Tensor], Any]]] = deque()
        for key in keys:
            pending.append(pool.submit(ready, key))
            if len(pending) > ahead:
                yield taken(pending.popleft())
        while pending:
            yield taken(pending.popleft())


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor of the host in page-locked memory if the device is CUDA: its copies then need no waiting."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
