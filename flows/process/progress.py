"""Progress bars: on a terminal, and nowhere else."""

import sys
from collections.abc import Callable, Iterable

from tqdm import tqdm


def bar(description: str, *, shown: bool = True) -> Callable[[range], Iterable[int]]:
    """Wraps a range in a progress bar on stderr when that is a terminal."""

    def wrap(steps: range) -> Iterable[int]:
        return tqdm(steps, desc=description, disable=not (shown and sys.stderr.isatty()), leave=False)  # type: ignore[no-any-return]

    return wrap
