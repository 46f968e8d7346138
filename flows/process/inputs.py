"""Notice that somebody edits the inputs of a stage while DVC runs it.

DVC reads parameters and code when the command has ended.  It would record the edited ones as the inputs of the result.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.core import layout
from flows.core.errors import Exit, UserError


@contextmanager
def require_unchanged_inputs() -> Iterator[None]:
    """Raise UserError (exit 2) if DVC runs this command as a stage, and an input of it changes during the block."""
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    before = inputs(stage)
    yield
    after = inputs(stage)
    if changed := ", ".join(name for name in before if before[name] != after.get(name)):
        advice = "undo the change and run again to record it, or run again with the change"
        raise UserError(f"{changed} changed while {stage} ran, so its result is not recorded; {advice}", Exit.USAGE)


def inputs(stage: str) -> dict[str, Any]:
    """Return the sections of params.yaml and the files that the stage lists in dvc.yaml, by name; {} for no stage."""
    if not stage:
        return {}
    from flows.core.bounded_yaml import sections  # not at the start of every command

    graph, params = (sections(content(path)) for path in (layout.DVC_GRAPH, layout.PARAMS))
    entry = graph.get("stages", {}).get(stage, {})
    values = {f"{layout.PARAMS} {name}": params.get(name) for name in entry.get("params", [])}
    return values | {name: content(Path(name)) for name in entry.get("deps", [])}


def content(path: Path) -> bytes | None:
    """Return the content of a file; None for anything else."""
    return path.read_bytes() if path.is_file() else None
