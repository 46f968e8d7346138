"""From a .vdmz file to its images."""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from flows.compression.batches import groups, is_plain
from flows.compression.header import MODEL_BYTES, Header, read_header, this_machine
from flows.compression.rans import Rans
from flows.compression.words import BrokenCodeError, bottom, read_blocks
from flows.core.checkpoint import load_model, model_sha256
from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.core.memory import require
from vdm.codec import CELLS, OFFSETS, Codec, decode_plainly
from vdm.evaluation import memory_needed
from vdm.model import VDM


class Decoder:
    """Decodes the images of an open file, whose name is for errors, with the model in a folder.

    Raises UserError if the header is damaged (exit 5) or describes another model (exit 2).
    """

    def __init__(self, file: BinaryIO, name: str, *, model: Path, device: str) -> None:
        self.file = file
        self.header, digest, self.checksum = read_header(file, name)
        if digest != (given := model_sha256(model))[: 2 * MODEL_BYTES]:
            reason = f"encoded with the model {digest[:16]}..., and {model} is {given[:16]}..."
            raise UserError(f"{name}: {reason}; name its model", Exit.USAGE)
        self.device = find_device(device)
        vdm = load_model(model, self.device).double()
        described = (tuple(self.header.image_shape), self.header.num_levels, self.header.grid)
        if described != (vdm.image_shape, vdm.num_levels, [CELLS, OFFSETS]):
            raise UserError(f"{name}: its header does not fit its model or this program", Exit.MISSING)
        self.codec = codec_of(vdm, self.header)
        self.num_decoded = 0
        """The images that were decoded, and whose checksums agree."""
        self.reason = ""
        """Why not all images could be decoded, if so."""
        self.pixels = hashlib.sha256()

    def images(self, tick: Callable[[int], object]) -> Iterator[np.ndarray]:
        """Yield the images in order, (n,C,H,W) uint8, until the last or until they are damaged; see `reason`.

        `tick` is called with the number of images after every step.
        """
        try:
            with exactly(self.header.threads):
                yield from self.groups(tick)
        except BrokenCodeError as error:
            self.reason = str(error)
        except ArithmeticError:
            self.reason = self.disagreement()

    def groups(self, tick: Callable[[int], object]) -> Iterator[np.ndarray]:
        """Yield the images group by group.  Raises BrokenCodeError, and ArithmeticError if they decode differently."""
        header, blocks = self.header, read_blocks(self.file, self.header.num_words, self.checksum)

        def refill() -> list[int]:
            if (words := next(blocks, None)) is None:
                raise ArithmeticError("the code ends before its last image")
            return words

        coder = Rans(refill, state=0)
        num_dims = self.codec.model.num_dims
        for group in groups(header.num_images, num_dims, header.batch_size, decoding=True):
            (expected,) = coder.pop_plain(1)
            part = np.concatenate([self.batch(coder, batch, tick) for batch in group])
            if zlib.crc32(part.data) != expected:
                raise ArithmeticError("the pixels differ from their checksum")
            self.pixels.update(part.data)
            self.num_decoded += len(part)
            yield part
        rest = [word for block in reversed(list(blocks)) for word in block]
        left = rest + coder.flushed()
        if left != [*bottom(self.pixels.digest(), len(left) - 9), 1]:
            raise ArithmeticError("the pixels differ from their sha256")

    def batch(self, coder: Rans, batch: range, tick: Callable[[int], object]) -> np.ndarray:
        """Decode a batch of images, (B,C,H,W) uint8."""
        if is_plain(batch, self.header.num_images, self.header.num_levels):
            shape = (len(batch), *self.codec.model.image_shape)
            return decode_plainly(coder, shape, self.codec.model.num_levels)
        return self.codec.decode(coder, len(batch), tick)

    def disagreement(self) -> str:
        """Return why the next images decode differently, although their blocks are intact."""
        made, ours = self.header.machine, this_machine(self.device)._replace(threads=self.header.threads)
        here = "as is used here" if made == ours else f"and this is {ours}"
        return f"its next images decode differently here: it was made with {made}, {here}"


def codec_of(vdm: VDM, header: Header) -> Codec:
    """Return the codec of a model in float64.

    Raises UserError (exit 2) if its schedule has no such steps, or if a batch does not fit into memory.
    """
    size = 2 * memory_needed(vdm, num_images=header.batch_size, times_per_image=1, batch_size=header.batch_size)
    require(size, next(vdm.parameters()).device, f"batches of {header.batch_size} images, set by --batch-size")
    try:
        return Codec(vdm, header.num_timesteps)
    except ValueError as error:
        reason = f"a code in {header.num_timesteps} steps is not possible: {error}"
        raise UserError(f"{reason}; choose another --num-timesteps", Exit.USAGE) from error


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
