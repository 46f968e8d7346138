"""Read YAML that somebody else may have written, as DVC reads it: version 1.2, in which 2e-4 is a number.

A document has at most 256 KiB, 32 levels, and no anchors, aliases or tags, with which a short text can be a huge value.
The project's own prefect.yaml and automations.yaml use anchors; ruamel reads those without this module.
"""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent
from ruamel.yaml.representer import RoundTripRepresenter

from flows.core.errors import brief

MOST_BYTES, MOST_DEPTH = 2**18, 32


def parse(content: bytes | str) -> Any:
    """Parse YAML into plain dicts, lists and scalars.  Raises ValueError with a short reason."""
    return parse_bounded(content, YAML(typ="safe"))


def load(content: bytes | str) -> Any:
    """Parse YAML into a document that keeps its comments, to edit it and `dump` it.  Raises ValueError as `parse`."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    return parse_bounded(content, yaml)


def dump(document: Any) -> str:
    """Return the text of a document from `load`, with its comments and quotes, and with ruamel's indents and blanks."""
    yaml = YAML(typ="rt")
    yaml.Representer = WithNulls
    yaml.width = MOST_BYTES  # do not fold long lines
    stream = StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def sections(content: bytes | None) -> dict[str, Any]:
    """Return the sections of a YAML file; {} if it is missing, empty or damaged."""
    try:
        found = parse(content or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def parse_bounded(content: bytes | str, yaml: YAML) -> Any:
    """Parse YAML after checking its limits.  Raises ValueError with a short reason."""
    if len(content.encode() if isinstance(content, str) else content) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES:,} bytes, the limit")
    try:
        depth = 0
        for event in YAML(typ="safe").parse(content):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            require_plain(event, depth)
        return yaml.load(content)
    except MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{where}{brief(error.problem or error.context or 'damaged')}") from error
    except Exception as error:  # ruamel does not document what it raises for damaged input
        raise ValueError(brief(error)) from error


def require_plain(event: Event, depth: int) -> None:
    """Raise ValueError for deep nesting, anchors, aliases and tags."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
        raise ValueError("anchors and aliases are not supported")
    if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag:
        raise ValueError(f"the tag {brief(event.tag)} is not supported")


class WithNulls(RoundTripRepresenter):
    """ruamel's representer, which writes null where its base class writes nothing."""


WithNulls.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
