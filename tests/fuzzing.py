"""Make almost valid inputs: good files with damaged bytes, hostile pickles.

Damage follows from a seed, so that an input that fails can be made again.
"""

import random
from pathlib import Path

TOKENS = [
    *(b"", b"\0", b"\xff\xfe", b"\n\n", b"-", b"~", b"!!python/object:os.system x", b"<<: *a", b"&a", b"*a"),
    *(b"NaN", b"1e400", b"-1", b"0", b"9" * 25, b"1" + b"0" * 400, b"null", b"true"),
    *(b"[" * 5000, b'{"a":' * 5000, b"\\ud800", b"\\u0000", b"../../etc/passwd", b"x" * 5000, b"# comment\n" * 500),
]


class Hostile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def damaged(content: bytes, random_: random.Random) -> bytes:
    """Return the bytes with one to four changes."""
    changed = bytearray(content)
    for _ in range(random_.randint(1, 4)):
        place = random_.randrange(len(changed) + 1)
        length = random_.choice([1, 1, 2, 4, 8, 64])
        match random_.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << random_.randrange(8)
            case 1 if place < len(changed):
                changed[place] = random_.choice([0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)])
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length] * random_.choice([1, 2, 50])
            case 4:
                changed[place : place + length] = random_.choice(TOKENS)
            case 5:
                changed[place:place] = random_.choice(TOKENS)
            case _:
                del changed[place:]
    return bytes(changed)
