"""A value that is chosen for a parameter, why, and how both are written in a preset."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from flows.core.escaping import visible


class Choice(NamedTuple):
    """A value for a parameter, and the reason that stands beside it; "" for none."""

    value: Any
    reason: str


Choices = dict[str, Choice]
"""What is chosen for parameters of one section, by their names."""


def take_values(choices: Choices) -> dict[str, Any]:
    """Return the values alone, by the names of the parameters."""
    return {name: choice.value for name, choice in choices.items()}


def format_preset(sections: Mapping[str, Choices]) -> str:
    """Return the choices, by section, as a preset with a reason at the end of each line."""
    lines = []
    for section, choices in sections.items():
        lines += [f"{section}:"] if choices else []
        for name, (value, reason) in choices.items():
            lines.append(f"  {name}: {format_yaml(value)}" + (f"  # {reason}" if reason else ""))
    return "\n".join(lines)


def format_yaml(value: Any) -> str:
    """Return the value as YAML in one line, of printable characters: JSON, but with characters beyond U+FFFF whole."""
    return visible(json.dumps(value, ensure_ascii=False))
