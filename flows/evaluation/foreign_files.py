"""Read checkpoints of other implementations, which may be damaged or hostile, without unpickling and within memory."""

import hashlib
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
import torch
from torch import Tensor

from flows.core.errors import CheckpointError
from flows.core.files import open_regular, read_bounded
from flows.core.memory import available

Weights = dict[str, Tensor]

DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError),
    *(ValueError, pickle.PickleError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""The exceptions that readers raise on damaged files."""

# A checkpoint holds numbers of 2 to 8 bytes.  Memory holds the file, the weights as float32, and the model.
FEWEST_BYTES, COPIES = 2, 4
MSGPACK_LIMITS = {"max_str_len": 2**16, "max_array_len": 2**12, "max_map_len": 2**16}
DEEPEST, LONGEST_PATH = 16, 256
LARGEST_TUPLE = 1000
NAMING = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
CALLS = {"REDUCE", "NEWOBJ"}
TENSORS = re.compile(r"collections OrderedDict|torch (\w+Storage|Size)|torch\._utils _rebuild_(tensor_v2|parameter)")


def require_file(file: Path, sha256: str | None) -> int:
    """Return the file's size.

    Raises CheckpointError for another digest, ValueError for a file too large for memory, and OSError.
    """
    with open_regular(file) as content:
        size = content.seek(0, 2)
        if COPIES * size > available():
            raise ValueError(f"{size:,} bytes do not fit into memory")
        content.seek(0)
        if sha256 and (found := hashlib.file_digest(content, "sha256").hexdigest()) != sha256.lower():
            raise CheckpointError(f"{file}: its sha256 is {found}; get the file again, or correct --sha256")
    return size


def require_numbers(weights: Weights, size: int) -> None:
    """Raise ValueError unless each is a dense array of floating-point numbers that a file of that size can hold."""
    for name, weight in weights.items():
        if not weight.is_floating_point() or weight.layout != torch.strided or weight.device.type != "cpu":
            raise ValueError(f"{name} is not a dense array of floating-point numbers")
        if weight.numel() * FEWEST_BYTES > size:
            raise ValueError(f"{size:,} bytes cannot hold {name}")


def read_flax(file: Path) -> Any:
    """Return the tree of arrays in a flax msgpack.  Raises OSError and the exceptions in DAMAGE."""
    content = read_bounded(file, available() // COPIES)
    return msgpack.unpackb(content, ext_hook=flax_array, strict_map_key=False, **MSGPACK_LIMITS)


def read_torch(file: Path) -> Any:
    """Return what torch saved, weights only.  Raises OSError and the exceptions in DAMAGE."""
    with open_regular(file) as content:
        return torch.load(checked(content), map_location="cpu", weights_only=True)


def checked(content: BinaryIO) -> BytesIO:
    """Return a copy of a zip file.  Raises ValueError unless it is uncompressed and describes only dense tensors.

    torch accepts more, such as compressed or overlapping members, or a bytearray of any length, which may not fit into
    memory.  It reads the copy, since in the file itself it may find other members than were checked here.
    """
    size, copy = content.seek(0, 2), BytesIO()
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(copy, "w") as stored:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members overlap")
        if len({member.filename.lower() for member in members}) < len(members):
            raise ValueError("its members have the same name")
        for member in members:
            data = archive.read(member)
            if member.filename.lower().endswith(".pkl"):  # torch ignores the case
                require_tensors(data)
            stored.writestr(zipfile.ZipInfo(member.filename), data)
    copy.seek(0)
    return copy


def require_tensors(pickled: bytes) -> None:
    """Raise ValueError when a pickle has more than dense tensors and their containers, without unpickling it.

    No tuple may hold more than LARGEST_TUPLE values, counting those of the tuples in it, each as often as it occurs.  A
    larger one may be the key of a dict.  Its hash may take forever, and cannot be interrupted; if tuples are nested too
    deeply, it ends the process.  Only names may be called: torch shows the text of a list that is called, which may be
    as long.
    """
    stack: list[int | str] = []  # the unpickler's: a name, or the size of another value, or 0 for a mark
    kept: dict[Any, int | str] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if "PUT" in opcode.name:
            kept[argument] = stack[-1]
            continue
        values = taken(opcode, stack)
        made = values[0] if values else 1  # for example a list that the other values are appended to
        if opcode.name in NAMING:
            made = str(argument)
            if not TENSORS.fullmatch(made):
                raise ValueError(f"it holds more than weights: {opcode.name} {made[:60]}")
        elif "GET" in opcode.name:
            made = kept[argument]
        elif "TUPLE" in opcode.name:
            made = 1 + sum(1 if isinstance(value, str) else value for value in values)
            if made > LARGEST_TUPLE:
                raise ValueError(f"it holds a tuple of more than {LARGEST_TUPLE:,} values")
        elif opcode.name in CALLS:
            if not isinstance(made, str):
                raise ValueError(f"it holds more than weights: {opcode.name} of a value")
            made = 1
        stack += [0 if kind is pickletools.markobject else made for kind in opcode.stack_after]


def taken(opcode: pickletools.OpcodeInfo, stack: list[int | str]) -> list[int | str]:
    """Take the values of an opcode from the end of the stack, with the mark below them if it takes all above one."""
    values = []
    for kind in reversed(opcode.stack_before):
        if kind is pickletools.stackslice:
            while value := stack.pop():
                values.append(value)
        elif kind is not pickletools.markobject:
            values.append(stack.pop())
    return values[::-1]


def flax_array(code: int, data: bytes) -> np.ndarray:
    """Return an array (extension 1) or scalar (3) of a flax msgpack, which holds its shape, dtype name and bytes."""
    if code not in (1, 3):
        raise ValueError(f"unknown msgpack extension {code}")
    shape, dtype, content = msgpack.unpackb(data, **MSGPACK_LIMITS)
    if dtype not in ("float32", "float64", "int32", "int64"):
        raise ValueError(f"unexpected dtype {dtype}")
    return np.frombuffer(content, dtype).reshape(shape)


def flatten(tree: Mapping[str, Any], path: str = "", depth: int = 0) -> dict[str, np.ndarray]:
    """Return the leaves of nested mappings by path, such as "a/b".

    Raises ValueError beyond DEEPEST levels, and for a path of more than LONGEST_PATH characters, since every leaf below
    it repeats them.
    """
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    leaves: dict[str, np.ndarray] = {}
    for name, node in tree.items():
        inner = f"{path}{name}"
        if len(inner) > LONGEST_PATH:
            raise ValueError(f"a name of {len(inner):,} characters")
        if isinstance(node, Mapping):
            leaves |= flatten(node, f"{inner}/", depth + 1)
        else:
            leaves[inner] = node
    return leaves
