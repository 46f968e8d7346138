"""Presets: files in presets/ that name what differs from digits.yaml, which holds every parameter.

A preset's comment at the end of a line gives the reason for the value.  In the file that is made of both it follows the
comment of digits.yaml, which says what the parameter is.
"""

from pathlib import Path
from typing import Any

from flows.core import bounded_yaml, layout
from flows.core.errors import Exit, UserError

WHOLE = "digits"
"""The preset with every parameter."""


def preset_names(folder: Path = layout.PRESETS) -> list[str]:
    """Return the names of the presets in `folder`, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_preset(name: str, folder: Path = layout.PRESETS, *others: str) -> str:
    """Return a whole params.yaml for a preset in `folder`, with the values of `others` in place of the preset's.

    Raises UserError (exit 2) if there is no such preset.
    """
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
                    explain(whole[section], key, "; ".join(filter(None, comments)))
            whole.ca.comment = preset.ca.comment  # the lines before the first section
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"a preset is not YAML with sections such as `train:`: {error}", Exit.USAGE) from error
    return bounded_yaml.dump(whole)


def comment(section: Any, key: str) -> str:
    """Return the comment at the end of a parameter's line without its `# `; "" if there is none."""
    tokens = section.ca.items.get(key)
    return tokens[2].value.partition("\n")[0].lstrip("# ") if tokens and tokens[2] else ""


def explain(section: Any, key: str, text: str) -> None:
    """Set the comment at the end of a parameter's line.  ruamel keeps the lines until the next parameter with it."""
    tokens = section.ca.items.get(key)
    if tokens and tokens[2]:
        after = tokens[2].value.partition("\n")[2]
        tokens[2].value = f"# {text}\n{after}" if text else f"\n{after}"
    elif text:
        section.yaml_add_eol_comment(text, key, column=24)
