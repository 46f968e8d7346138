"""An entropy coder on a stack: rANS (Duda 2013) with one state of 65 to 96 bits, and words of 32 bits.

A vectorised coder wastes bits for each of its lanes; one state wastes none.  A symbol takes 0.3 to 0.5 microseconds, a
few percent of what a network on a CPU needs for it.

Below the stack of an encoder lie the initial words, which are pseudo-random and known to every decoder.  Images that
need more bits than the stack holds take initial words, and each one makes the code longer by a word.
"""

import hashlib
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable

import numpy as np

from vdm.codec import TOTAL as WORD

WORD_BITS = 32
SCATTER = 0x9E3779B1
"""An odd factor: multiplied by it modulo `WORD`, every integer has upper bits that depend on all of its bits."""
GATHER = pow(SCATTER, -1, WORD)
LOWEST = WORD**2
"""The state is at least this, and less than LOWEST * WORD."""


def initial_word(place: int) -> int:
    """Return the initial word at `place`, counted downwards from 0."""
    return int.from_bytes(hashlib.sha256(b"initial word %d" % place).digest()[:4], "little")


class Rans:
    """A `vdm.codec.Coder` on a stack of words, the lowest first.

    An encoder takes initial words when its stack is empty.  A decoder raises ArithmeticError then: its code ends.
    """

    def __init__(self, words: Iterable[int], *, encoding: bool) -> None:
        self.words = array("I", words)
        self.encoding = encoding
        self.depth = 0
        """The number of initial words that were taken."""
        self.state = self.filled(1 if encoding else 0)

    def filled(self, state: int) -> int:
        """Return the state with words from the stack, until it is at least `LOWEST`."""
        while state < LOWEST:
            if self.words:
                word = self.words.pop()
            elif self.encoding:
                word = initial_word(self.depth)
                self.depth += 1
            else:
                raise ArithmeticError("the code ends before its last image")
            state = state * WORD + word
        return state

    def push(self, starts: np.ndarray, frequencies: np.ndarray, *, scattered: bool = False) -> None:
        state, words, factor = self.state, self.words, GATHER if scattered else 1
        for start, frequency in zip(starts[::-1].tolist(), frequencies[::-1].tolist(), strict=True):
            if state >= frequency * LOWEST:
                words.append(state % WORD)
                state //= WORD
            quotient, remainder = divmod(state, frequency)
            state = quotient * WORD + (remainder + start) * factor % WORD
        self.state = state

    def pop(self, tables: np.ndarray, rows: np.ndarray, *, scattered: bool = False) -> np.ndarray:
        listed, state, factor = tables.tolist(), self.state, SCATTER if scattered else 1
        symbols = []
        for row in rows.tolist():
            table = listed[row]
            place = state % WORD * factor % WORD
            symbol = bisect_right(table, place) - 1
            start = table[symbol]
            state = (table[symbol + 1] - start) * (state // WORD) + place - start
            if state < LOWEST:
                state = self.filled(state)
            symbols.append(symbol)
        self.state = state
        return np.array(symbols, np.int64)

    def pop_plain(self, count: int) -> np.ndarray:
        values = []
        for _ in range(count):
            values.append(self.state % WORD)
            self.state = self.filled(self.state // WORD)
        return np.array(values, np.int64)

    @property
    def bits(self) -> float:
        """The size of the stack, less the initial words that were taken."""
        return WORD_BITS * (len(self.words) - self.depth) + math.log2(self.state)

    def flushed(self) -> list[int]:
        """Return the words of the stack, the lowest first, with those of the state on top."""
        state, top = self.state, []
        while state:
            top.append(state % WORD)
            state //= WORD
        return [*self.words, *top]
