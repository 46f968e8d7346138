"""Show progress bars, on a terminal only."""

import sys
from collections.abc import Callable

from tqdm import tqdm


def bar(description: str, *, shown: bool = True) -> "Callable[[range], tqdm[int]]":
    """Return a function that wraps a range in a progress bar on stderr, if that is a terminal."""

    def wrap(steps: range) -> "tqdm[int]":
        visible = shown and sys.stderr.isatty()
        return tqdm(steps, desc=description, disable=not visible, leave=False)

    return wrap
