"""From images to a .vdmz file."""

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from flows.compression.batches import groups
from flows.compression.decoding import exactly
from flows.compression.header import Header, packed, this_machine
from flows.compression.images import Images
from flows.compression.rans import Rans
from flows.compression.words import SPILLED, Stack, write_blocks
from flows.core.files import naming, save
from vdm.codec import CELLS, OFFSETS, Codec


class Tally:
    """The mean of numbers that are added batch by batch, with its standard error."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Add numbers (B,)."""
        self.count += len(values)
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def standard_error(self) -> float:
        """The standard error of the mean; NaN for one number."""
        if self.count == 1:
            return math.nan
        variance = (self.squares - self.count * self.mean**2) / (self.count - 1)
        return math.sqrt(max(variance, 0.0) / self.count)


class Written(NamedTuple):
    """A file that was written: its size, the initial bits in it, and the bounds of its images in bits/dim."""

    num_bytes: int
    initial_bits: int
    bounds: Tally


def write_file(
    file: BinaryIO,
    images: Images,
    codec: Codec,
    *,
    num_timesteps: int,
    batch_size: int,
    model_sha256: str,
    pixels_sha256: bytes,
    scratch: Path,
    tick: Callable[[int], object],
) -> Written:
    """Write images to an open file, with the lower part of the code in the folder `scratch` in the meantime.

    `tick` is called with the number of images after every step.  Raises ArithmeticError if the network's output is not
    finite, and OSError.
    """
    machine = this_machine(codec.gammas.device)
    with naming(scratch, scratch), (scratch / "words").open("w+b") as words, exactly(machine.threads):
        stack = Stack(words, pixels_sha256)
        bounds = encode(images, stack, codec, batch_size, tick)
        header = Header(
            image_shape=list(codec.model.image_shape),
            num_levels=codec.model.num_levels,
            num_images=images.number,
            num_words=stack.num_words,
            num_timesteps=num_timesteps,
            batch_size=batch_size,
            pictures=images.pictures,
            grid=[CELLS, OFFSETS],
            **machine._asdict(),
        )
        start = packed(header, model_sha256)
        file.write(start)
        write_blocks(file, stack, zlib.crc32(start[:-4]))
    save(file)
    return Written(file.tell(), stack.depth * 32, bounds)


def encode(images: Images, stack: Stack, codec: Codec, batch_size: int, tick: Callable[[int], object]) -> Tally:
    """Encode images on a stack, from the last to the first, and return their bounds in bits/dim."""
    coder, bounds = Rans(stack.take, state=1), Tally()
    num_dims, last = codec.model.num_dims, images.number
    for sizes in groups(images.number, num_dims, batch_size, backwards=False):
        part = images.rows(last - sum(sizes), last)
        end = len(part)
        for size in sizes:
            nats = codec.encode(coder, part[end - size : end], tick)
            bounds.add(nats / (num_dims * math.log(2)))
            end -= size
        coder.push(np.array([zlib.crc32(part.data)]), np.ones(1, np.int64))
        last -= len(part)
        if len(coder.words) > 2 * SPILLED:
            stack.put(coder.words[:-SPILLED])
            del coder.words[:-SPILLED]
    stack.put(coder.flushed())
    return bounds
