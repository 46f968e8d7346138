"""Batches of images to and from the stack: plainly, on the coarse grid or on the fine one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from flows.compression.batches import COARSE_CELLS, COARSE_IMAGES, most_plain
from flows.compression.header import Header
from flows.core.errors import Exit, UserError
from vdm.codec import CELLS, PLACES, Codec, Coder, decode_plainly, encode_plainly
from vdm.model import VDM

GRID = [COARSE_CELLS, CELLS, PLACES]


class Coding:
    """Encodes and decodes the batches of the images of a header, with a model in float64.

    Raises UserError (exit 2) if the model's schedule allows no code in this number of steps, or if a batch does not fit
    into memory.
    """

    def __init__(self, vdm: VDM, header: Header) -> None:
        self.header, self.shape, self.num_dims = header, vdm.image_shape, vdm.num_dims
        try:
            self.coarse, self.fine = (Codec(vdm, header.num_timesteps, cells) for cells in (COARSE_CELLS, CELLS))
        except ValueError as error:
            reason = f"a code in {header.num_timesteps} steps is not possible: {error}"
            raise UserError(f"{reason}; choose another --num-timesteps", Exit.USAGE) from error

    def codec(self, batch: range) -> Codec | None:
        """Return the codec of a batch; None if its images are encoded plainly, without the model."""
        number = self.header.num_images
        if batch.start >= number - most_plain(self.header.num_levels):
            return None
        return self.coarse if batch.stop > number - COARSE_IMAGES else self.fine

    def encode(self, coder: Coder, batch: range, pixels: np.ndarray, tick: Callable[[int], object]) -> None:
        """Encode a batch of images (B,C,H,W) uint8.  Raises ArithmeticError as `Codec.encode` does."""
        if codec := self.codec(batch):
            codec.encode(coder, pixels, tick)
        else:
            encode_plainly(coder, pixels, self.header.num_levels)

    def decode(self, coder: Coder, batch: range, tick: Callable[[int], object]) -> np.ndarray:
        """Decode a batch of images, (B,C,H,W) uint8.  Raises ArithmeticError as `Codec.decode` does."""
        if codec := self.codec(batch):
            return codec.decode(coder, len(batch), tick)
        return decode_plainly(coder, (len(batch), *self.shape), self.header.num_levels)


@contextmanager
def exactly(threads: int) -> Iterator[None]:
    """Compute with this number of threads, and with the same algorithms whenever the block runs."""
    before, cudnn = torch.get_num_threads(), torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cudnn.deterministic, cudnn.benchmark = flags
