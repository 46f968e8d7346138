"""The code on disk: a stack of 32-bit words.

While images are encoded, the lower part of the stack lies in a temporary file.  In the finished file the top comes
first, since decoding begins with it.  The words come in blocks of 4,096 bytes, each followed by a CRC-32 that continues
that of the block before.

At the bottom lies the sha256 of the pixels.  Below it lie the initial words, which are pseudo-random and known to every
decoder.  Images that need more bits than the stack holds take initial words.  Each one makes the file longer by a word;
those that are not taken are not written.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO

import numpy as np

from flows.compression.header import CHECKSUM

WORD_BYTES = 4
BLOCK_BYTES = 4096
SPILLED = 2**16
"""The words that stay in memory when others go to the temporary file."""


class BrokenCodeError(Exception):
    """The code cannot be decoded from here on; the message says why."""


def initial_word(place: int) -> int:
    """Return the initial word at `place`, counted downwards from 0."""
    return int.from_bytes(hashlib.sha256(b"initial word %d" % place).digest()[:WORD_BYTES], "little")


def bottom(digest: bytes, depth: int) -> list[int]:
    """Return the words of a sha256 above the first `depth` initial words, the lowest first."""
    return [*map(initial_word, reversed(range(depth))), *struct.unpack("<8I", digest)]


class Stack:
    """The part of the encoder's stack that is not in memory: words in a temporary file, above the bottom."""

    def __init__(self, file: IO[bytes], digest: bytes) -> None:
        self.file = file
        self.waiting = bottom(digest, 0)
        self.depth = 0
        """The number of initial words that were taken."""

    def take(self) -> list[int]:
        """Take the uppermost words, the lowest first: from the file, or else from the bottom."""
        if size := min(self.file.tell(), WORD_BYTES * SPILLED):
            self.file.seek(-size, 1)
            content = self.file.read(size)
            self.file.seek(-size, 1)
            self.file.truncate()
            return list(np.frombuffer(content, "<u4").tolist())
        if self.waiting:
            words, self.waiting = self.waiting, []
            return words
        self.depth += 1
        return [initial_word(self.depth - 1)]

    def spill(self, words: list[int]) -> None:
        """Move all but the uppermost `SPILLED` words to the file, if there are more than twice as many."""
        if len(words) > 2 * SPILLED:
            self.put(words[:-SPILLED])
            del words[:-SPILLED]

    def put(self, words: list[int]) -> None:
        """Put words on top."""
        self.file.write(np.array(words, "<u4").tobytes())

    @property
    def num_words(self) -> int:
        """The number of words in the file."""
        return self.file.tell() // WORD_BYTES

    @property
    def bits(self) -> int:
        """The bits in the file, less the initial bits that were taken."""
        return 8 * WORD_BYTES * (self.num_words - self.depth)

    def blocks(self) -> Iterator[bytes]:
        """Yield the words in the file, the uppermost first, in blocks."""
        for end in range(WORD_BYTES * self.num_words, 0, -BLOCK_BYTES):
            first = max(0, end - BLOCK_BYTES)
            self.file.seek(first)
            yield np.frombuffer(self.file.read(end - first), "<u4")[::-1].tobytes()


def write_blocks(file: BinaryIO, stack: Stack, checksum: int) -> None:
    """Write the words of a stack, after a header with this CRC-32."""
    for block in stack.blocks():
        checksum = zlib.crc32(block, checksum)
        file.write(block + CHECKSUM.pack(checksum))


def read_blocks(file: BinaryIO, num_words: int, checksum: int) -> Iterator[list[int]]:
    """Yield the words of the blocks that follow a header with this CRC-32, in each the uppermost last.

    Words before the place where a file was cut off are also yielded, without their checksum.  Raises BrokenCodeError
    for a file that ends too early or too late, and for a block that is damaged.
    """
    for left in range(WORD_BYTES * num_words, 0, -BLOCK_BYTES):
        place, size = file.tell(), min(left, BLOCK_BYTES)
        block = file.read(size)
        expected = file.read(CHECKSUM.size)
        checksum = zlib.crc32(block, checksum)
        if len(expected) == CHECKSUM.size and expected != CHECKSUM.pack(checksum):
            raise BrokenCodeError(f"damaged between bytes {place:,} and {file.tell():,}")
        if whole := len(block) // WORD_BYTES:
            yield np.frombuffer(block, "<u4", whole)[::-1].tolist()
        if len(expected) < CHECKSUM.size:
            raise BrokenCodeError(f"cut short after {file.tell():,} bytes")
    if file.read(1):
        raise BrokenCodeError("damaged: it does not end with its code")
