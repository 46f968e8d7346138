"""Text in columns."""

from collections.abc import Sequence

from flows.core.escaping import visible


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as aligned columns of text."""
    lines = [[visible(cell) for cell in line] for line in (header, *rows)]
    # A cell with nothing on its right, such as a long reason, does not widen its column.
    columns = range(len(header))
    widths = [max((len(line[column]) for line in lines if any(line[column + 1 :])), default=0) for column in columns]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
