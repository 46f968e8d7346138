"""The project's folder, the argument MODEL, the option --json, and params.yaml as the commands of vdmctl read it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.core import layout

if TYPE_CHECKING:
    from flows.core.params import Params

ROOT = Path()
"""The project: the current folder."""
ModelArgument = Annotated[
    str | None, typer.Argument(help="A model folder, a version (vdm@v1.2.0) or `champion`.", show_default="models/vdm")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; see docs/json.md.")]


def parameters() -> "Params":
    """Return params.yaml of the current folder.  Raises UserError (exit 2) that names file, line and key."""
    from flows.core.params_file import read_params  # 0.1 s, which `--help` does not need

    return read_params(layout.PARAMS)
