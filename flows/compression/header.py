"""What a .vdmz file says of its model, its images and the machine that wrote it.

    4 bytes    VDMZ
    1 byte     version of the format
    8 bytes    the first 8 of the model's sha256
    2 bytes    length of the description
    ...        the description: JSON, deflated with `DICTIONARY`
    4 bytes    CRC-32 of all of these

Numbers are little-endian.  The sha256 of the pixels lies at the bottom of the code instead, where it serves as initial
bits and so takes no room.
"""

import json
import struct
import zlib
from typing import Annotated, BinaryIO, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from flows.compression.batches import MOST_BATCH, MOST_TIMESTEPS, most_plain
from flows.core.documents import Document, parse
from flows.core.errors import Exit, UserError
from flows.evaluation.environment import processor

MAGIC, VERSION = b"VDMZ", 2
START, CHECKSUM = struct.Struct("<4sB8sH"), struct.Struct("<I")
MODEL_BYTES = 8
MOST_BYTES = 2**12
"""The largest description, inflated."""
DICTIONARY = (
    b"IntelAppleAMDNVIDIA H100 80GB HBM3aarch64 unknown DEFAULTx86_64 GenuineIntel AVX2AVX512[3,64,64],[3,32,32],"
    b'[1,28,28],"num_levels":256,"num_timesteps":1000,"num_images":10000,"batch_size":64,"pictures":true,+cu128'
    b'{"image_shape":[1,8,8],"num_levels":17,"num_images":359,"num_words":12,"num_timesteps":100,"batch_size":32,'
    b'"pictures":false,"grid":[4,64,128],"threads":2,"torch":"2.13.0+cpu","numpy":"2.4.6",'
    b'"processor":"x86_64 AuthenticAMD AVX512"}'
)
Size = Annotated[int, Field(ge=1, lt=2**31)]


class Machine(NamedTuple):
    """What the last digits of the network's output depend on; `threads` is the number of torch's threads."""

    threads: int
    torch: str
    numpy: str
    processor: str

    def __str__(self) -> str:
        return f"torch {self.torch}, NumPy {self.numpy} and {self.threads} threads on {self.processor}"


class Header(Document):
    """The description.

    `num_words` counts the 32-bit words of the code, and `pictures` says whether the images came from pictures.  `grid`
    has the cells of the coarse grid, of the fine grid, and the places of a mean in a standard deviation.
    """

    image_shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    num_levels: Annotated[int, Field(ge=2, le=256)]
    num_images: Size
    num_words: Annotated[int, Field(ge=3, lt=2**48)]
    num_timesteps: Annotated[int, Field(ge=1, le=MOST_TIMESTEPS)]
    batch_size: Annotated[int, Field(ge=1, le=MOST_BATCH)]
    pictures: bool
    grid: list[Size]
    threads: Annotated[int, Field(ge=1, le=1024)]
    torch: str
    numpy: str
    processor: str

    @model_validator(mode="after")
    def require_channels(self) -> Self:
        if self.pictures and self.image_shape[0] not in (1, 3):
            raise ValueError(f"pictures of {self.image_shape[0]} channels")
        return self

    @property
    def num_evaluations(self) -> int:
        """The evaluations of the network that encode all images, or decode them."""
        return max(0, self.num_images - most_plain(self.num_levels)) * self.num_timesteps

    @property
    def machine(self) -> Machine:
        """The machine that wrote the file."""
        return Machine(self.threads, self.torch, self.numpy, self.processor)


def this_machine(device: torch.device) -> Machine:
    """Return the description of this process on a device."""
    return Machine(torch.get_num_threads(), torch.__version__, np.__version__, processor(device))


def packed(header: Header, model_sha256: str) -> tuple[bytes, int]:
    """Return the bytes of a header, and the CRC-32 with which they end."""
    text = json.dumps(header.model_dump(), separators=(",", ":")).encode()
    content = packed_text(text, model_sha256)
    return content, CHECKSUM.unpack(content[-CHECKSUM.size :])[0]


def packed_text(text: bytes, model_sha256: str) -> bytes:
    """Return the bytes of a header with this description."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    description = deflate.compress(text) + deflate.flush()
    start = START.pack(MAGIC, VERSION, bytes.fromhex(model_sha256)[:MODEL_BYTES], len(description))
    return start + description + CHECKSUM.pack(zlib.crc32(start + description))


def read_header(file: BinaryIO, name: str) -> tuple[Header, str, int]:
    """Read a header from an open file: the description, the first digits of the model's sha256, and the CRC-32.

    Raises UserError (exit 5) that starts with the name.
    """
    start = file.read(START.size)
    if start[:4] != MAGIC[: len(start)] or not start:
        raise UserError(f"{name}: not a .vdmz file", Exit.MISSING)
    if len(start) > 4 and start[4] != VERSION:
        reason = f"version {start[4]} of the format, and this program reads version {VERSION}; or the file is damaged"
        raise UserError(f"{name}: {reason}", Exit.MISSING)
    length = START.unpack(start)[3] if len(start) == START.size else 0
    description, expected = file.read(length), file.read(CHECKSUM.size)
    if not length or len(expected) < CHECKSUM.size:
        raise UserError(f"{name}: cut short in its header; no image can be recovered", Exit.MISSING)
    checksum = zlib.crc32(start + description)
    if CHECKSUM.unpack(expected)[0] != checksum:
        raise UserError(f"{name}: its header is damaged; no image can be recovered", Exit.MISSING)
    inflate = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        text = inflate.decompress(description, MOST_BYTES)
    except zlib.error as error:
        raise UserError(f"{name}: its header is damaged: {error}", Exit.MISSING) from error
    return parse(Header, text, name), start[5 : 5 + MODEL_BYTES].hex(), checksum
