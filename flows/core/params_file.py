"""Read params.yaml as DVC reads it, and say what is wrong with it; make it of presets.

Presets are files in presets/ that name what differs from digits.yaml, which holds every parameter.  A preset's comment
at the end of a line gives the reason for the value.  In the file that is made of both it follows the comment of
digits.yaml, which says what the parameter is.
"""

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
        advice = "`vdmctl preset digits` writes one"
        if not layout.PRESETS.is_dir():
            advice = f"run vdmctl in the project's folder, or {advice}"
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


WHOLE = "digits"
"""The preset with every parameter."""
PACKAGED = Path(__file__).parents[1] / "presets"
"""The package's presets, which are there in any folder."""


def presets_here() -> Path:
    """Return the folder of the presets: that of the project, or outside one the package's."""
    return layout.PRESETS if layout.PRESETS.is_dir() else PACKAGED


def preset_names(folder: Path | None = None) -> list[str]:
    """Return the names of the presets in `folder`, by default `presets_here`, sorted."""
    return sorted(path.stem for path in (folder or presets_here()).glob("*.yaml"))


def read_preset(name: str, folder: Path | None = None, *others: str) -> str:
    """Return a whole params.yaml for a preset in `folder`, with the values of `others` in place of the preset's.

    The folder is by default `presets_here`.  Raises UserError (exit 2) if there is no such preset.
    """
    folder = folder or presets_here()
    known = preset_names(folder)
    if name not in known or WHOLE not in known:
        listed = ", ".join(known) or f"no files in {folder}/; run vdmctl in the project's folder"
        raise UserError(f"no preset {name!r}: {listed}", Exit.USAGE)
    base, preset = ((folder / f"{each}.yaml").read_text(encoding="utf-8") for each in (WHOLE, name))
    return compose(base, *([] if name == WHOLE else [preset]), *others)


def compose(base_text: str, *preset_texts: str) -> str:
    """Return `base_text` with the presets' values in their places, each with the comment of the base and its own.

    Raises UserError (exit 2) if one of them is not YAML with sections of parameters.  Names and values are not checked:
    `flows.core.params_file.parse_params` does that.
    """
    if not preset_texts:
        return base_text
    try:
        base, whole, *presets = map(bounded_yaml.load, (base_text, base_text, *preset_texts))
        for preset in presets:
            for section, parameters in preset.items():
                for key, value in parameters.items():
                    comments = comment(base[section], key), comment(parameters, key)
                    whole[section][key] = value
                    set_comment(whole[section], key, "; ".join(filter(None, comments)))
            whole.ca.comment = preset.ca.comment  # the lines before the first section
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"a preset is not YAML with sections such as `train:`: {error}", Exit.USAGE) from error
    return bounded_yaml.dump(whole)


def comment(section: Any, key: str) -> str:
    """Return the comment at the end of a parameter's line without its `# `; "" if there is none."""
    tokens = section.ca.items.get(key)
    return tokens[2].value.partition("\n")[0].lstrip("# ") if tokens and tokens[2] else ""


def set_comment(section: Any, key: str, text: str) -> None:
    """Set the comment at the end of a parameter's line.  ruamel keeps the lines until the next parameter with it."""
    tokens = section.ca.items.get(key)
    if tokens and tokens[2]:
        after = tokens[2].value.partition("\n")[2]
        tokens[2].value = f"# {text}\n{after}" if text else f"\n{after}"
    elif text:
        section.yaml_add_eol_comment(text, key, column=24)
