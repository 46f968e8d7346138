"""From a .vdmz file to its images."""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flows.compression.batches import groups
from flows.compression.coding import GRID, Coding, exactly
from flows.compression.header import MODEL_BYTES, read_header, this_machine
from flows.compression.rans import Rans
from flows.compression.words import BrokenCodeError, bottom, read_blocks
from flows.core.checkpoint import load_model, model_sha256
from flows.core.device import find_device
from flows.core.errors import Exit, UserError


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
        if (tuple(self.header.image_shape), self.header.num_levels) != (vdm.image_shape, vdm.num_levels):
            raise UserError(f"{name}: its images are not of the shape and levels of its model", Exit.MISSING)
        if self.header.grid != GRID:
            reason = f"written on the grid {self.header.grid}, and this version of the program decodes {GRID}"
            raise UserError(f"{name}: {reason}; decode it with the version that wrote it", Exit.MISSING)
        self.coding = Coding(vdm, self.header)
        self.num_decoded = 0
        """The images that were decoded, and whose checksums agree."""
        self.reason = ""
        """Why decoding ended before the last image; empty if it did not."""
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
        for group in groups(header.num_images, self.coding.num_dims, header.batch_size, decoding=True):
            (expected,) = coder.pop_plain(1)
            part = np.concatenate([self.coding.decode(coder, batch, tick) for batch in group])
            if zlib.crc32(part.data) != expected:
                raise ArithmeticError("the pixels differ from their checksum")
            self.pixels.update(part.data)
            self.num_decoded += len(part)
            yield part
        # What is left: the initial words that the encoder took, the 8 words of the sha256, and the encoder's first
        # state, 1.  If it took initial words, every block has been read.  Else only the sha256 is left, in one block.
        left = next(blocks, []) + coder.flushed()
        if next(blocks, None):
            raise BrokenCodeError("damaged: its code goes on after its last image")
        depth = len(left) - 8 - 1
        if left != [*bottom(self.pixels.digest(), depth), 1]:
            raise ArithmeticError("the pixels differ from their sha256")

    def disagreement(self) -> str:
        """Return why the next images decode differently, although their blocks are intact."""
        made, ours = self.header.machine, this_machine(self.device)._replace(threads=self.header.threads)
        here = "the same" if made == ours else str(ours)
        return f"its next images decode differently on this machine: it was made with {made}; this machine has {here}"
