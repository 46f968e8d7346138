"""Text from data, names of files and tags among it, made harmless where it is shown: one function per kind of place."""

import re

MARKUP = re.compile(r"[\\`*|\[\]<>&~$]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown gives a meaning to.  An underscore inside a word has none."""


def visible(text: object) -> str:
    """Return the text as one line for a terminal: control characters and the like as escapes, such as `\\u001b`.

    JSON stays the same JSON.
    """
    return "".join(character if character.isprintable() else escape(character) for character in str(text))


def escape(character: str) -> str:
    """Return the escape of a character, as Python and, up to U+FFFF, JSON spell it."""
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"


def markdown(text: object) -> str:
    """Return Markdown that shows the text, in a line or in a cell of a table."""
    return MARKUP.sub(r"\\\g<0>", visible(text))
