"""What the benchmarks' options may be."""

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager

from flows.core.errors import UserError


def positive(text: str) -> int:
    """A whole number from 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def duration(text: str) -> float:
    """Seconds, from 0."""
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0, got {text}")
    return number


@contextmanager
def explained(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Options that do not fit each other, or the machine, end the program as a wrong one does."""
    try:
        yield
    except (UserError, ValueError) as error:
        parser.error(str(error))
