"""Replace parameters of params.yaml by options of a command."""

from typing import Any, TypeVar

from pydantic import ValidationError

from flows.core.documents import shown
from flows.core.errors import Exit, UserError
from flows.core.params import Ode, Section

MOST_SWEPT = 100
SectionType = TypeVar("SectionType", bound=Section)


def override(section: SectionType, values: dict[str, Any]) -> SectionType:
    """Return the section with some values replaced by options.  Raises UserError (exit 2) that names the option.

    The option --device names one device, so it also sets num_devices to 1.
    """
    replaced = section.model_dump()
    if "device" in values and "num_devices" in replaced:
        replaced["num_devices"] = 1
    try:
        return type(section).model_validate(replaced | values)
    except ValidationError as error:
        first = error.errors()[0]  # of one key: no option breaks a rule about several keys, whose error has no loc
        option = "--" + str(first["loc"][0]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            needed = "vlb" if isinstance(section, Ode) else "ode"
            raise UserError(f"{option} needs --protocol {needed}", Exit.USAGE) from error
        raise UserError(f"{option}: {first['msg']}, got {shown(repr(first['input']))}", Exit.USAGE) from error


def timesteps(text: str) -> list[int | None]:
    """Parse numbers of steps such as `10,100,continuous`; None is continuous time.  Raises UserError (exit 2)."""
    try:
        steps = [None if part == "continuous" else int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--num-timesteps: {shown(repr(text))} is not like 10,100,continuous", Exit.USAGE) from error
    if len(steps) > MOST_SWEPT:
        raise UserError(f"--num-timesteps: a sweep has at most {MOST_SWEPT} numbers of steps", Exit.USAGE)
    return steps
