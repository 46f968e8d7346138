"""Which levels pictures of more than 8 bits have, and what suits them: 10 or 12 bits are often stored in 16."""

from collections.abc import Collection

import numpy as np

MOST = 2**16


class Used:
    """The levels that occur in pictures of up to 16 bits."""

    def __init__(self) -> None:
        self.counts = np.zeros(MOST, np.int64)

    def add(self, levels: np.ndarray) -> None:
        """Count the levels of more pictures, uint16."""
        self.counts += np.bincount(levels.ravel(), minlength=MOST)

    @property
    def levels(self) -> np.ndarray:
        """The levels that occur, rising."""
        return np.flatnonzero(self.counts)

    def left(self, shift: int) -> int:
        """Return how many different levels are left after a shift to the right."""
        return len(np.unique(self.levels >> shift))

    def words(self, num_levels: int) -> str:
        """Return which of the levels occur, such as `109 to 3,618 of 65,536 (2,907 of them)`."""
        found = self.levels
        return f"{found[0]:,} to {found[-1]:,} of {num_levels:,} ({len(found):,} of them)"


def shift_of(levels: np.ndarray) -> int:
    """Return how many of the lowest bits are 0 in all levels."""
    together = int(np.bitwise_or.reduce(levels)) if len(levels) else 0
    return (together & -together).bit_length() - 1 if together else 0


def choose_bits(levels: np.ndarray, num_levels: int) -> dict[str, int]:
    """Return the parameters `data` that leave out bits which no level has that is in use; {} for none.

    Levels are rising, and of 0..num_levels-1.  Images of up to 8 bits need none.
    """
    if num_levels <= 256 or not len(levels):
        return {}
    bits, needed, empty = (num_levels - 1).bit_length(), int(levels[-1]).bit_length(), shift_of(levels)
    found = {"stored_bits": needed} if 0 < needed < bits else {}
    return found | ({"num_bits": min(bits, needed) - empty} if empty else {})


def reason_for(chosen: Collection[str], levels: np.ndarray) -> str:
    """Return why these parameters were chosen for the levels, in words."""
    reasons = [f"the highest level is {levels[-1]:,}"] if "stored_bits" in chosen else []
    reasons += [f"all levels are multiples of {2 ** shift_of(levels)}"] if "num_bits" in chosen else []
    return " and ".join(reasons)


def advice(levels: np.ndarray, num_levels: int) -> str:
    """Return which parameters suit pictures with these levels, and why; "" if none is needed."""
    chosen = choose_bits(levels, num_levels)
    parameters = " and ".join(f"data.{name}: {value}" for name, value in chosen.items())
    return f"{reason_for(chosen, levels)}: {parameters} loses nothing" if chosen else ""
