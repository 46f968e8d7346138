"""Read checkpoints of flax and torch.  They may be of anybody, so nothing is unpickled and no code in them runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch

from flows.core.files import open_regular, read_bounded

MOST_BYTES = 2**34


def read_torch(file: Path) -> Any:
    """Return what torch saved, weights only.  torch does not document what it raises for other files."""
    with open_regular(file) as content:
        return torch.load(content, map_location="cpu", weights_only=True)


def read_flax(file: Path) -> Any:
    """Return the tree of arrays in a flax msgpack.  Raises OSError, ValueError and TypeError."""
    return msgpack.unpackb(read_bounded(file, MOST_BYTES), ext_hook=flax_array, strict_map_key=False)


def flax_array(code: int, data: bytes) -> np.ndarray:
    """Return an array (extension 1) or scalar (3) of a flax msgpack, which holds its shape, dtype name and bytes."""
    if code not in (1, 3):
        raise ValueError(f"unknown msgpack extension {code}")
    shape, dtype, content = msgpack.unpackb(data)
    if dtype not in ("float32", "float64", "int32", "int64"):
        raise ValueError(f"unexpected dtype {dtype}")
    return np.frombuffer(content, dtype).reshape(shape)


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, np.ndarray]:
    """Return the leaves of nested mappings by path, such as "a/b"."""
    leaves: dict[str, np.ndarray] = {}
    for name, node in tree.items():
        leaves |= flatten(node, f"{path}{name}/") if isinstance(node, Mapping) else {f"{path}{name}": node}
    return leaves
