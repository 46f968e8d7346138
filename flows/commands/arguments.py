"""What commands share: their class, the project, MODEL, --json, and options that replace parameters."""

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from flows.core.errors import Exit, UserError

if TYPE_CHECKING:
    from flows.core.params import Section
    from flows.project.project import Project

MODEL_HELP = "A model folder, a version (vdm@v1.2.0) or `champion`."
ModelArgument = Annotated[str | None, typer.Argument(help=MODEL_HELP, show_default="models/vdm")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")]
FIT_HELP = (
    "Change pictures to what the model takes: the middle in its size, gray or RGB, and shades to its levels. A warning"
    " says what was changed."
)
FitOption = Annotated[bool, typer.Option("--fit", help=FIT_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; see docs/json.md.")]
SectionType = TypeVar("SectionType", bound="Section")


class Command(TyperCommand):
    """A command of vdmctl: none of its arguments and options takes an empty text, as an unset shell variable gives."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.  Raises BadParameter for one that is empty, before its type makes it the folder `.`."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        for parameter in list[Any](self.params):
            value = given.get(str(parameter.name))
            texts = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(text, str) and not text.strip() for text in texts):
                raise typer.BadParameter("it is empty", ctx=ctx, param=parameter)
        return super().parse_args(ctx, args)


@cache
def project() -> "Project":
    """Return the project in the current folder, one for a command, which so reads the tags of the registry once."""
    from flows.project.project import Project  # 0.1 s, which `--help` does not need

    return Project()


def override(section: SectionType, values: dict[str, Any]) -> SectionType:
    """Return the section with some values replaced by options.  Raises UserError (exit 2) that names the option.

    The option --device names one device, so it also sets num_devices to 1.
    """
    from pydantic import ValidationError

    from flows.core.params_file import explain

    replaced = section.model_dump()
    if "device" in values and "num_devices" in replaced:
        replaced["num_devices"] = 1
    try:
        return type(section).model_validate(replaced | values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            other = {"Evaluate": "ode", "Ode": "vlb"}.get(type(section).__name__)
            raise UserError(f"{option} needs --protocol {other}", Exit.USAGE) from error
        raise UserError(f"{option}{explain(first)}", Exit.USAGE) from error
