"""Read YAML as DVC does, from input that may be hostile: size, depth and aliases are limited while it is parsed."""

from collections.abc import Mapping
from io import StringIO
from typing import Any, Literal, NamedTuple, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
    ScalarEvent,
)
from ruamel.yaml.nodes import MappingNode, SequenceNode
from ruamel.yaml.representer import RoundTripRepresenter

from flows.core.errors import brief

MOST_BYTES, MOST_NODES, MOST_DEPTH = 2**18, 20_000, 32
CHARACTERS_PER_NODE = 64
"""A long text counts as several nodes, since aliases can multiply it."""


class Size(NamedTuple):
    """The number of nodes and the depth of a part of a document, with every alias replaced by its content."""

    nodes: int
    depth: int


class Bounds:
    """The part of a document read so far; an alias counts as much as its content."""

    def __init__(self) -> None:
        self.open: list[tuple[str | None, int]] = []  # open collections: anchor, number of nodes before
        self.depths = [0]  # the depth so far of the whole document, then of each open collection
        self.anchors: dict[str, Size] = {}
        self.nodes = 0

    def read(self, event: Event) -> None:
        """Count an event.  Raises MarkedYAMLError beyond a limit, and for an alias in the collection it refers to."""
        match event:
            case DocumentStartEvent() if event.version or event.tags:
                refuse(event, "directives are not supported")
            case AliasEvent():
                if event.anchor not in self.anchors:
                    refuse(event, f"the alias *{event.anchor[:30]} has no complete anchor before it")
                self.add(event, self.anchors[event.anchor])
            case CollectionStartEvent():
                self.check(event)
                self.open.append((event.anchor, self.nodes))
                self.depths.append(0)
                self.add(event, Size(1, 0))
            case CollectionEndEvent():
                anchor, before = self.open.pop()
                size = Size(self.nodes - before, self.depths.pop() + 1)
                self.depths[-1] = max(self.depths[-1], size.depth)
                if anchor:
                    self.anchors[anchor] = size
            case ScalarEvent():
                self.check(event)
                size = Size(1 + len(event.value) // CHARACTERS_PER_NODE, 0)
                if event.anchor:
                    self.anchors[event.anchor] = size
                self.add(event, size)

    def check(self, event: NodeEvent) -> None:
        """Raise MarkedYAMLError for a tag, and for an anchor that the document already has."""
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            refuse(event, f"tags such as {str(tag)[:50]} are not supported")
        if event.anchor in self.anchors or event.anchor in [anchor for anchor, _ in self.open if anchor]:
            refuse(event, f"the anchor &{event.anchor[:30]} is defined twice")

    def add(self, event: Event, size: Size) -> None:
        """Count a node with its content.  Raises MarkedYAMLError if the document has too many nodes or is too deep."""
        self.nodes += size.nodes
        self.depths[-1] = max(self.depths[-1], size.depth)
        if self.nodes > MOST_NODES:
            refuse(event, f"more than {MOST_NODES:,} values, or as much text")
        if len(self.open) + size.depth > MOST_DEPTH:
            refuse(event, "nested too deeply")


def refuse(event: Event, reason: str) -> NoReturn:
    """Raise MarkedYAMLError with the reason and the place of the event."""
    raise MarkedYAMLError(problem=reason, problem_mark=event.start_mark)


class WithNulls(RoundTripRepresenter):
    """ruamel's representer, which writes null where its base class writes nothing."""


WithNulls.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))


def load(content: bytes | str) -> Any:
    """Return ruamel's document, which keeps comments and knows the line of every key, and takes longer than `parse`.

    Raises ValueError as `bounded` does.
    """
    return bounded(content, "rt")


def bounded(content: bytes | str, kind: Literal["rt", "safe"]) -> Any:
    """Parse YAML 1.2 with one of ruamel's two readers, which differ in odd cases.

    The reader first lists the events of the text, and nothing is built unless they are within the limits.

    Raises ValueError with a short reason, and the line if it is known, for damaged YAML, too many bytes or values, too
    much depth, tags, directives, repeated keys, and aliases that contain themselves.
    """
    num_bytes = len(content.encode() if isinstance(content, str) else content)
    if num_bytes > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES:,} bytes, the limit")
    bounds = Bounds()
    yaml = YAML(typ=kind)
    yaml.preserve_quotes = True
    try:
        for event in YAML(typ=kind).parse(content):
            bounds.read(event)
        return yaml.load(content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{brief(error.problem or error.context or 'damaged')}") from error
    except Exception as error:  # ruamel does not document what it raises for damaged input
        raise ValueError(brief(error)) from error


def dump(document: Any) -> str:
    """Return the text of a document from `load`, with its comments and quotes, and with ruamel's indents and blanks."""
    yaml = YAML(typ="rt")
    yaml.Representer = WithNulls
    yaml.width = MOST_BYTES  # do not fold long lines
    stream = StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def parse(content: bytes | str) -> Any:
    """Parse YAML with the reader that DVC uses, into plain dicts, lists and scalars.

    It reads YAML 1.2.  Readers of YAML 1.1 take 2e-4 for text.  Raises ValueError as `bounded` does, and for other
    types, such as dates.
    """
    return plain(bounded(content, "safe"))


def sections(content: bytes | None) -> dict[str, Any]:
    """Return the sections of a YAML file; {} if it is missing, empty or damaged."""
    try:
        found = parse(content or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def plain(node: Any) -> Any:
    """Return the document as plain dicts, lists and scalars.  Raises ValueError for other types, such as dates."""
    match node:
        case Mapping():
            return {key_of(key): plain(value) for key, value in node.items()}
        case list():
            return [plain(value) for value in node]
        case bool() | None:
            return node
        case int() if node.bit_length() > 64:  # a longer one may have no decimal text
            raise ValueError("an integer of more than 64 bits")
        case int():
            return int(node)
        case float():
            return float(node)
        case str():
            return str(node)
        case _:
            raise ValueError(f"{type(node).__name__} {brief(node)} is not supported; quote it to make it text")


def key_of(key: Any) -> str:
    """Return the key as a plain str.  Raises ValueError if it is not text."""
    if not isinstance(key, str):
        raise ValueError(f"the key {brief(key)} is not text; quote it")
    return str(key)


def line_of(content: bytes | str, location: tuple[Any, ...]) -> int:
    """Return the line, counted from 1, of the deepest part of `location` that the YAML has; `parse` must accept it."""
    line, node = 1, YAML(typ="safe").compose(content)
    for part in location:
        match node:
            case MappingNode():
                parts = {key.value: (key, value) for key, value in node.value}
            case SequenceNode():
                parts = {index: (item, item) for index, item in enumerate(node.value)}
            case _:
                parts = {}
        if part not in parts:
            break
        start, node = parts[part]
        line = start.start_mark.line + 1
    return int(line)
