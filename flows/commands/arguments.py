"""The option --json, params.yaml as the commands of vdmctl read it, and the refusal of empty arguments."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from flows.core import layout

if TYPE_CHECKING:
    from flows.core.params import Params

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

Context = Any
"""The context of a command or of a group.  Typer does not export the class that both have in common."""


class Commands(TyperGroup):
    """The commands of vdmctl, which refuse empty arguments.

    An empty argument would mean the default or the current folder, as in `vdmctl promote "$VERSION"` with an unset
    variable.
    """

    def resolve_command(self, ctx: Context, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            context = command.context_class(command, info_name=name, parent=ctx)
            refuse_blank(context, rest)
        return name, command, rest


def refuse_blank(context: Context, arguments: Sequence[str]) -> None:
    """Raise typer.BadParameter that names an argument which is empty or only white space."""
    values, _, given = context.command.make_parser(context).parse_args(list(arguments))
    for parameter in given:
        value = values[parameter.name]
        parts = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(part, str) and not part.strip() for part in parts):
            raise typer.BadParameter("empty, perhaps from a variable that is not set", ctx=context, param=parameter)


def parameters() -> "Params":
    """Return params.yaml of the current folder.  Raises UserError (exit 2) that names file, line and key."""
    from flows.core.params_file import read_params  # 0.1 s, which `--help` does not need

    return read_params(layout.PARAMS)
