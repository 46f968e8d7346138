"""Notice that somebody edits the inputs of a stage while DVC runs it.

DVC reads parameters and code when the command has ended.  It would record the edited ones as the inputs of the result,
in dvc.lock and in DVC's run cache.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.core import layout
from flows.core.errors import Exit, UserError

CODE = ("flows", "vdm")
Contents = dict[str, bytes]


@contextmanager
def unchanged_inputs() -> Iterator[None]:
    """Raise UserError (exit 2) if DVC runs this command as a stage, and an input of it changes during the block.

    The inputs are the sections of params.yaml and the files that dvc.yaml lists, but not the outputs of other stages.
    """
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if not stage:
        yield
        return
    before = contents()
    yield
    after = contents()
    if before != after and (changed := edited_inputs(stage, before, after)):
        reason = f"{', '.join(changed)} changed while {stage} ran, so its result is not recorded"
        raise UserError(
            f"{reason}; undo the change and run again to record it, or run again with the change", Exit.USAGE
        )


def contents() -> Contents:
    """Return the contents of params.yaml, dvc.yaml, requirements.lock and all code, by path."""
    files = [
        layout.PARAMS,
        layout.DVC_GRAPH,
        layout.REQUIREMENTS,
        *(path for folder in CODE for path in Path(folder).rglob("*.*")),
    ]
    return {str(path): path.read_bytes() for path in files if path.suffix != ".pyc" and path.is_file()}


def edited_inputs(stage: str, before: Contents, after: Contents) -> list[str]:
    """Return the sections of params.yaml and the files that the stage depends on and that were edited."""
    from flows.core.bounded_yaml import sections  # not at the start of every command

    graph, params = str(layout.DVC_GRAPH), str(layout.PARAMS)
    entry = sections(before.get(graph)).get("stages", {}).get(stage, {})
    old, new = sections(before.get(params)), sections(after.get(params))
    edited_sections = [name for name in entry.get("params", []) if old.get(name) != new.get(name)]
    edited_files = [path for path in entry.get("deps", []) if before.get(path) != after.get(path)]
    return [f"{layout.PARAMS} {name}" for name in edited_sections] + edited_files
