"""Escape text from data, such as names of files and tags, for terminals and for Markdown."""

import json
import re
from collections.abc import Iterable

MARKUP = re.compile(r"[\\`*|\[\]<>&~$]|(?<![^\W_])_|_(?![^\W_])")
"""Characters with a meaning in Markdown.  An underscore inside a word has none."""


def visible(text: object) -> str:
    """Return the text as one line, with characters that are not printable as escapes such as `\\u001b`.

    A line from `json.dumps` keeps its value, since `json.dumps` leaves no character beyond ASCII.
    """
    return "".join(character if character.isprintable() else escape(character) for character in str(text))


def escape(character: str) -> str:
    """Return the escape of a character in Python, and up to U+FFFF in JSON."""
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"


def list_names(names: Iterable[str]) -> str:
    """Return names in quotes, with characters that are not printable as escapes."""
    return visible(", ".join(json.dumps(name, ensure_ascii=False) for name in names))


def markdown(text: object) -> str:
    """Return Markdown that shows the text in a line or in a cell of a table."""
    return MARKUP.sub(r"\\\g<0>", visible(text))


def unescape(text: str) -> str:
    """Return the text of which `markdown` made this one."""
    return re.sub(r"\\(.)", r"\1", text)
