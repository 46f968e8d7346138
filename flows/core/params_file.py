"""Read params.yaml as DVC reads it, and say what is wrong with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.core import bounded_yaml, layout
from flows.core.errors import Exit, UserError, brief
from flows.core.files import read_bounded
from flows.core.params import Params


def read_params(path: Path) -> Params:
    """Read params.yaml.  Raises UserError (exit 2) that names the file and the key."""
    try:
        content = read_bounded(path)
    except OSError as error:
        here = layout.PRESETS.is_dir()
        advice = "`vdmctl preset digits` writes one" if here else "run vdmctl in the project's folder, such as a clone"
        raise UserError(f"{path}: {error.strerror}; {advice}", Exit.USAGE) from error
    return parse_params(content, str(path))


def parse_params(content: bytes | str, name: str) -> Params:
    """Parse the content of params.yaml.  Raises UserError (exit 2) that says `name` and the key."""
    try:
        values = bounded_yaml.parse(content)
    except ValueError as error:
        raise UserError(f"{name}: not YAML: {error}", Exit.USAGE) from error
    if not isinstance(values, dict):
        raise UserError(f"{name}: must hold sections such as `data:`; see presets/", Exit.USAGE)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        # A misspelt key is unknown, and the right one is missing.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        key = ".".join(brief(part, 60) for part in first["loc"])
        reason = f"{key}{explain(first)}".removeprefix(": ")
        if first["type"] == "missing":  # an older version of the project may lack many
            missing = sum(each["type"] == "missing" for each in error.errors())
            others = f", and {missing - 1} more" if missing > 1 else ""
            reason += f"{others}; presets/ has files with every parameter"
        raise UserError(f"{name}: {reason}", Exit.USAGE) from error


def explain(error: Mapping[str, Any]) -> str:
    """Return what is wrong with a key and what would be right, as text to append to the key's name."""
    got = "" if isinstance(error["input"], dict) else f", got {brief(repr(error['input']), 60)}"
    match error["type"]:
        case "missing":
            return " is missing"
        case "extra_forbidden":
            return " is not a known parameter"
        case "value_error":
            return f": {error['ctx']['error']}"
        case _:
            return f": {error['msg'][0].lower()}{error['msg'][1:]}{got}"
