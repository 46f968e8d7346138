"""The processes that train together, one per device, if torch.distributed is initialised; else there is one."""

from typing import Any, TypeVar

from torch import distributed

Value = TypeVar("Value")


def process() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def gather(value: Value) -> list[Value]:
    """Return the values of all processes, by rank."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
