"""Show progress bars, on a terminal only."""

from collections.abc import Callable
from functools import partial

from tqdm import tqdm


def bar(description: str, *, shown: bool = True) -> "Callable[[range], tqdm[int]]":
    """Return a function that wraps a range in a progress bar on stderr, if that is a terminal."""
    return partial(tqdm, desc=description, disable=None if shown else True, leave=False)
