"""Make almost valid inputs: good files with damaged bytes, JSON documents with unexpected values, hostile pickles.

Damage and values follow from a seed, so that an input that fails can be made again.
"""

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

TOKENS = [
    *(b"", b"\0", b"\xff\xfe", b"\n\n", b"-", b"~", b"!!python/object:os.system x", b"<<: *a", b"&a", b"*a"),
    *(b"NaN", b"1e400", b"-1", b"0", b"9" * 25, b"1" + b"0" * 400),
    *(b"[" * 5000, b'{"a":' * 5000, b"\\ud800", b"\\u0000"),
    *(b"../../etc/passwd", b"/dev/zero", b"null", b"true", b"x" * 5000, b"# comment\n" * 500),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**25, 10**400, 0.5, 1e308, float("inf"), float("nan")),
    *("", "\0", "\ud800", "../up", "/etc/passwd", "a/../b", "\x1b[2J", "0" * 32, "f" * 64, "x" * 5000),
    *([], {}, [[]], [0] * 1000, {"": {}}, {"a": 1}),
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


def changed_json(content: bytes, random_: random.Random) -> bytes:
    """Return the JSON document with one to three of its values replaced, removed or nested."""
    document = json.loads(content)
    for _ in range(random_.randint(1, 3)):
        places = list(containers(document))
        if not places:
            document = deepcopy(random_.choice(VALUES))
            continue
        container = random_.choice(places)
        key = random_.choice(list(container) if isinstance(container, dict) else range(len(container)))
        match random_.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[random_.choice(["", "\0", "x" * 300, "__class__"])] = deepcopy(random_.choice(VALUES))
            case 2:
                container[key] = [container[key]]
            case _:
                container[key] = deepcopy(random_.choice(VALUES))
    return json.dumps(document).encode()


def containers(value: Any) -> Any:
    """Yield the objects and arrays in a document that are not empty."""
    if isinstance(value, dict | list) and value:
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from containers(child)
