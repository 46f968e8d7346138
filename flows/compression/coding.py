"""Images to and from the content of a .vdmz file.

    4 bytes   VDMZ
    1 byte    version of the format
    4 bytes   the first 4 of the model's sha256
    1 byte    length of the header
    ...       the header: a msgpack list of the values of `Header`
    ...       the code: the words of the stack, big-endian, the top first, without zeros at the beginning

At the bottom of the stack lies a sha256 of all bytes before the code and of the pixels.  There it serves as initial
bits, and so takes no room.  It is the only checksum: a decoder that finds it has decoded every pixel, and any other has
a damaged file or computes other means than the encoder.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Annotated, Any, NamedTuple

import msgpack
import numpy as np
import torch
from pydantic import Field

from flows.compression.batches import COARSE_CELLS, COARSE_IMAGES, MOST_BATCH, MOST_TIMESTEPS, batches, most_plain
from flows.compression.rans import WORD_BITS, Rans, initial_word
from flows.core.device import processor
from flows.core.documents import Document
from flows.core.errors import Exit, UserError
from flows.core.model import TrainedModel
from flows.images.image_set import dtype_of
from vdm.codec import CELLS, Codec, Tick, decode_plainly, encode_plainly
from vdm.grids import Grid

MAGIC, VERSION = b"VDMZ", 3
MODEL_BYTES, WORD_BYTES = 4, WORD_BITS // 8
MOST_THREADS = 64
"""So many a file may ask for on a machine of fewer processors."""
START_BYTES = len(MAGIC) + 1 + MODEL_BYTES + 1


class Header(Document):
    """How the images were encoded, and on what: `threads` is the number of torch's threads.

    `pictures` says whether the images came from pictures.  Their shape and levels are the model's.  The names of the
    fields are not in the file: they would take as much room as the code of ten digits.
    """

    num_images: Annotated[int, Field(ge=1, lt=2**31)]
    num_timesteps: Annotated[int, Field(ge=1, le=MOST_TIMESTEPS)]
    batch_size: Annotated[int, Field(ge=1, le=MOST_BATCH)]
    pictures: bool
    threads: Annotated[int, Field(ge=1, le=1024)]
    torch: str
    numpy: str
    processor: str
    classes: bool = False
    """Whether the code holds the class of every image.  Left out of the file if it is false."""

    @property
    def machine(self) -> str:
        """What the last digits of the network's output depend on."""
        return f"torch {self.torch}, NumPy {self.numpy} and {self.threads} threads on {self.processor}"


def machine_of(device: torch.device) -> dict[str, Any]:
    """Return the fields of the header that describe this process, computing on the device."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": processor(device),
    }


def pack_header(header: Header, model_digest: str) -> bytes:
    """Return the bytes before the code."""
    content: bytes = msgpack.packb(list(header.model_dump(exclude_defaults=True).values()))
    return MAGIC + bytes([VERSION]) + bytes.fromhex(model_digest)[:MODEL_BYTES] + bytes([len(content)]) + content


def unpack_header(content: bytes, name: str) -> tuple[Header, str, int]:
    """Return the header, the first digits of the model's sha256, and where the code begins.

    Raises UserError (exit 5) that starts with the name.
    """
    if not content.startswith(MAGIC):
        raise UserError(f"{name}: not a .vdmz file", Exit.MISSING)
    version, length = content[4:5], content[START_BYTES - 1 : START_BYTES]
    if version and version[0] != VERSION:
        reason = f"version {version[0]} of the format, and this program reads version {VERSION}"
        raise UserError(f"{name}: {reason}; decode it with the program that wrote it", Exit.MISSING)
    end = START_BYTES + int.from_bytes(length)
    try:
        values = msgpack.unpackb(content[START_BYTES:end])
        values += [False] * (len(values) < len(Header.model_fields))  # the last one, if it was left out
        header = Header.model_validate(dict(zip(Header.model_fields, values, strict=True)))
    except (ValueError, TypeError) as error:  # pydantic's error is a ValueError, too
        raise UserError(f"{name}: its header is damaged or cut short; get the file again", Exit.MISSING) from error
    return header, content[5 : START_BYTES - 1].hex(), end


def seal(start: bytes, pixels_digest: bytes) -> list[int]:
    """Return the words at the bottom of the stack, the lowest first: a sha256 of what comes before it."""
    return list(np.frombuffer(hashlib.sha256(start + pixels_digest).digest(), "<u4").tolist())


class Encoded(NamedTuple):
    """The content of a file."""

    content: bytes
    initial_bits: int
    """Pseudo-random bits that the code contains."""
    code_bpd: float
    """Bits/dim that the images encoded with the model added; NaN if there are none."""


class Coding:
    """Encodes and decodes the images of a file with a model in float64.  `start` are the bytes before the code.

    Raises UserError (exit 2) if the model's schedule allows no code in this number of steps.
    """

    def __init__(self, model: TrainedModel, header: Header, start: bytes) -> None:
        self.vdm, self.header, self.start = deepcopy(model.vdm).double(), header, start
        self.pixels = hashlib.sha256()
        """Of the images that were decoded."""
        self.num_modelled = max(0, header.num_images - most_plain(self.vdm.num_levels))
        """The images that are encoded with the model, not plainly."""
        self.num_evaluations = self.num_modelled * header.num_timesteps
        """The evaluations of the network that encode all images, or decode them."""
        try:
            self.coarse, self.fine = (
                Codec(self.vdm, Grid(header.num_timesteps), cells) for cells in (COARSE_CELLS, CELLS)
            )
        except ValueError as error:
            reason = f"a code in {header.num_timesteps} steps is not possible: {error}"
            raise UserError(f"{reason}; choose another --num-timesteps", Exit.USAGE) from error

    def codec(self, batch: range) -> Codec | None:
        """Return the codec of a batch; None if its images are encoded plainly, without the model."""
        if batch.start >= self.num_modelled:
            return None
        return self.coarse if batch.stop > self.header.num_images - COARSE_IMAGES else self.fine

    def encode(self, images: np.ndarray, pixels_sha256: bytes, tick: Tick, classes: np.ndarray | None) -> Encoded:
        """Encode images (N,C,H,W) of levels, with their classes (N,) if the header says so.

        Raises UserError (exit 5) if the network's output is not finite.
        """
        coder, plain_bits = Rans(seal(self.start, pixels_sha256), encoding=True), math.nan
        try:
            with exactly(self.header.threads):
                for batch in batches(len(images), self.header.batch_size, decoding=False):
                    part = np.array(images[batch.start : batch.stop])
                    if codec := self.codec(batch):
                        codec.encode(coder, part, tick, None if classes is None else classes[batch.start : batch.stop])
                    else:
                        encode_plainly(coder, part, self.vdm.num_levels)
                        plain_bits = coder.bits
        except ArithmeticError as error:
            raise UserError(f"the images cannot be compressed with this model: {error}", Exit.MISSING) from error
        num_dims = self.num_modelled * self.vdm.num_dims
        code = np.array(coder.flushed()[::-1], ">u4").tobytes().lstrip(b"\0")
        code_bpd = (coder.bits - plain_bits) / num_dims if num_dims else math.nan
        return Encoded(self.start + code, WORD_BITS * coder.depth, code_bpd)

    def decode(self, content: bytes, name: str, tick: Tick) -> Iterator[np.ndarray]:
        """Yield the images in a file of this content and name in order, (n,C,H,W) of levels.

        Raises UserError (exit 5), at the latest after the last image, unless all are as they were encoded.
        """
        code, self.pixels = content[len(self.start) :], hashlib.sha256()
        whole = code.rjust(-(-len(code) // WORD_BYTES) * WORD_BYTES, b"\0")
        try:
            with exactly(self.header.threads):
                coder = Rans(np.frombuffer(whole, ">u4")[::-1].tolist(), encoding=False)
                for batch in batches(self.header.num_images, self.header.batch_size, decoding=True):
                    if codec := self.codec(batch):
                        part = codec.decode(coder, len(batch), tick, classed=self.header.classes)
                    else:
                        plain = decode_plainly(coder, (len(batch), *self.vdm.image_shape), self.vdm.num_levels)
                        part = plain.astype(dtype_of(self.vdm.num_levels))
                    self.pixels.update(part.data)
                    yield part
            bottom = [*seal(self.start, self.pixels.digest()), 1]  # the encoder's first state, 1, is on top
            left = coder.flushed()
            if left != [*map(initial_word, reversed(range(len(left) - len(bottom)))), *bottom]:
                raise ArithmeticError("the pixels differ from their sha256")
        except ArithmeticError as error:
            made = f"it was made with {self.header.machine}"
            raise UserError(f"{name}: damaged, or decoded differently: {error}; {made}", Exit.MISSING) from error


def new_coding(
    model: TrainedModel,
    *,
    num_images: int,
    num_timesteps: int,
    batch_size: int,
    pictures: bool = False,
    classes: bool = False,
) -> Coding:
    """Return the coding that encodes images on this machine; the arguments are those of `Header`."""
    header = Header(
        num_images=num_images,
        num_timesteps=num_timesteps,
        batch_size=batch_size,
        pictures=pictures,
        **machine_of(model.device),
        classes=classes,
    )
    return Coding(model, header, pack_header(header, model.sha256))


def coding_of(content: bytes, name: str, model: TrainedModel) -> Coding:
    """Return the coding that decodes a file of this content and name with the model.

    Raises UserError if the header is damaged or asks for too many threads (exit 5), or names another model (exit 2).
    """
    header, digest, end = unpack_header(content, name)
    if not model.sha256.startswith(digest):
        reason = f"encoded with the model {digest}..., and {model.name} is {model.sha256[:16]}..."
        raise UserError(f"{name}: {reason}; name its model", Exit.USAGE)
    if header.threads > max(MOST_THREADS, cores := os.cpu_count() or 1):
        reason = f"encoded with {header.threads:,} threads, and this machine has {cores:,} processors"
        raise UserError(f"{name}: {reason}; decode it on the machine that made it", Exit.MISSING)
    return Coding(model, header, content[:end])


@contextmanager
def exactly(threads: int) -> Iterator[None]:
    """Compute with this number of threads, and with the same algorithms whenever the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)
