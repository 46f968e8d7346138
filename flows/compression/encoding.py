"""From images to a .vdmz file."""

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, NamedTuple

import numpy as np

from flows.compression.batches import groups, most_plain
from flows.compression.coding import GRID, Coding, exactly
from flows.compression.header import Header, packed, this_machine
from flows.compression.images import Images
from flows.compression.rans import WORD_BITS, Rans
from flows.compression.words import Stack, write_blocks
from flows.core.errors import Exit, UserError
from flows.core.files import save
from flows.images.store import fitting, rows
from flows.process.progress import bar
from vdm.evaluation import image_terms, standard_error
from vdm.model import VDM

BOUND_TIMES, BOUND_BATCH = 32, 512
SPOOLED_BYTES = 2**20
"""The size above which a temporary file is on disk."""


class Written(NamedTuple):
    """A file that was written."""

    file_bytes: int
    initial_bits: int
    """Pseudo-random bits that the code contains."""
    code_bpd: float
    """Bits/dim that the images encoded with the model added, with their checksums; NaN if there are none."""


def mean_bound(vdm: VDM, images: Images, num_timesteps: int) -> tuple[float, float]:
    """Return the mean of the images' bound in bits/dim, from 32 noise levels each, and its standard error.

    The error of one image is NaN.  Raises UserError (exit 2) if one image does not fit into memory at its times.
    """
    bounds = []
    size = fitting(BOUND_BATCH // BOUND_TIMES, 8 * BOUND_TIMES * vdm.num_dims)
    for first in bar("evaluating")(range(0, len(images.array), size)):
        part = rows(images.array, first, min(first + size, len(images.array)))
        terms = image_terms(
            vdm,
            part,
            range(len(part)),
            times_per_image=BOUND_TIMES,
            num_timesteps=num_timesteps,
            batch_size=BOUND_BATCH,
            seed=first,
        )
        bounds.append(terms.sum(0).mean(1))
    every = np.concatenate(bounds)
    return float(every.mean()), standard_error(every)


def header_of(images: Images, vdm: VDM, num_timesteps: int, batch_size: int) -> Header:
    """Return the header of a file, as if its code were empty."""
    return Header(
        image_shape=list(vdm.image_shape),
        num_levels=vdm.num_levels,
        num_images=len(images.array),
        num_words=3,
        num_timesteps=num_timesteps,
        batch_size=batch_size,
        pictures=images.pictures,
        grid=GRID,
        **this_machine(next(vdm.parameters()).device)._asdict(),
    )


def write_file(
    file: BinaryIO,
    images: Images,
    coding: Coding,
    model_sha256: str,
    pixels_sha256: bytes,
    *,
    tick: Callable[[int], object],
) -> Written:
    """Write images to an open file.  Until all are encoded, the lower part of the code lies in a temporary file.

    `tick` is called with the number of images after every step.  Raises UserError (exit 5) if the network's output is
    not finite, and OSError.
    """
    # On the disk of the file, since an error is reported as one of that file, and /tmp may be in memory.
    with SpooledTemporaryFile(SPOOLED_BYTES, dir=str(Path(file.name).parent)) as words:
        stack = Stack(words, pixels_sha256)
        try:
            with exactly(coding.header.threads):
                code_bpd = encode(images, stack, coding, tick)
        except ArithmeticError as error:
            raise UserError(f"the images cannot be compressed with this model: {error}", Exit.MISSING) from error
        start, checksum = packed(coding.header.model_copy(update={"num_words": stack.num_words}), model_sha256)
        file.write(start)
        write_blocks(file, stack, checksum)
    save(file)
    return Written(file.tell(), WORD_BITS * stack.depth, code_bpd)


def encode(images: Images, stack: Stack, coding: Coding, tick: Callable[[int], object]) -> float:
    """Encode images on a stack, from the last to the first, and return `Written.code_bpd`."""
    coder, header, plain_bits = Rans(stack.take, state=1), coding.header, math.nan
    for group in groups(len(images.array), coding.num_dims, header.batch_size, decoding=False):
        first = group[-1].start
        part = rows(images.array, first, group[0].stop)
        for batch in group:
            coding.encode(coder, batch, part[batch.start - first : batch.stop - first], tick)
            if not coding.codec(batch):
                plain_bits = stack.bits + coder.bits
        coder.push(np.array([zlib.crc32(part.data)]), np.ones(1, np.int64))
        stack.spill(coder.words)
    added = stack.bits + coder.bits - plain_bits
    stack.put(coder.flushed())
    modelled = len(images.array) - most_plain(header.num_levels)
    return added / modelled / coding.num_dims if modelled > 0 else math.nan
