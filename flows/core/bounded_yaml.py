"""YAML as DVC reads it, from input that may be hostile: its size, depth and aliases are bounded while it is parsed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
)
from ruamel.yaml.parser import RoundTripParser

MOST_BYTES, MOST_NODES, MOST_DEPTH = 2**18, 20_000, 32
LONGEST_REASON = 200


class Size(NamedTuple):
    """How many nodes a part of a document has when every alias is replaced by what it means, and how deep it is."""

    nodes: int
    depth: int


class BoundedParser(RoundTripParser):
    """ruamel's parser, which raises MarkedYAMLError at the first event beyond a bound, before anything is built.

    An alias counts as much as what it means, and may not mean what it is part of.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.open: list[tuple[str | None, int]] = []  # the collections around an event: anchor, nodes before it
        self.depths = [0]  # of what is inside each of these collections so far, the whole document's first
        self.anchors: dict[str, Size] = {}
        self.nodes = 0

    def get_event(self) -> Event:
        event: Event = super().get_event()
        match event:
            case DocumentStartEvent() if event.version or event.tags:
                self.refuse(event, "directives are not read")
            case AliasEvent():
                if event.anchor not in self.anchors:
                    self.refuse(event, f"the alias *{event.anchor[:30]} means nothing that is complete")
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
                self.anchors |= {anchor: size} if anchor else {}
            case NodeEvent():
                self.check(event)
                self.anchors |= {event.anchor: Size(1, 0)} if event.anchor else {}
                self.add(event, Size(1, 0))
        return event

    def check(self, event: NodeEvent) -> None:
        """Refuse tags, and anchors that are there already."""
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            self.refuse(event, f"tags such as {str(tag)[:50]} are not read")
        if event.anchor in self.anchors or event.anchor in [anchor for anchor, _ in self.open if anchor]:
            self.refuse(event, f"the anchor &{event.anchor[:30]} is there twice")

    def add(self, event: Event, size: Size) -> None:
        """Count a node.  Raises MarkedYAMLError for more of them, or deeper ones, than are read."""
        self.nodes += size.nodes
        self.depths[-1] = max(self.depths[-1], size.depth)
        if self.nodes > MOST_NODES:
            self.refuse(event, f"more than {MOST_NODES:,} values")
        if len(self.open) + size.depth > MOST_DEPTH:
            self.refuse(event, "nested too deeply")

    def refuse(self, event: Event, reason: str) -> None:
        raise MarkedYAMLError(problem=reason, problem_mark=event.start_mark)


def load(content: bytes | str) -> Any:
    """Parse YAML 1.2 and return ruamel's document, which knows the line of every key.

    Raises ValueError with a short reason, and the line where there is one, for anything else: also for more bytes,
    values or depth than are read, tags, directives, keys that are there twice, and aliases that mean themselves.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES:,} bytes, the most that is read")
    # The round-trip reader, as in DVC YAML 1.2: YAML 1.1 readers take 2e-4 for a string.
    yaml = YAML(typ="rt")
    yaml.Parser = BoundedParser
    try:
        return yaml.load(content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{shortened(error.problem or error.context or 'damaged')}") from error
    except Exception as error:  # what ruamel raises over damaged input is nowhere listed
        raise ValueError(shortened(error)) from error


def parse(content: bytes | str) -> Any:
    """Parse YAML into plain dicts, lists and scalars.  Raises ValueError."""
    return plain(load(content))


def shortened(reason: object) -> str:
    """Return a reason in one line of bounded length."""
    line = " ".join(str(reason).split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."


def plain(node: Any) -> Any:
    """Return the document as plain dicts, lists and scalars.  Raises ValueError for a value that JSON has not."""
    match node:
        case Mapping():
            return {key_of(key): plain(value) for key, value in node.items()}
        case list():
            return [plain(value) for value in node]
        case bool() | None:
            return node
        case int():
            return int(node)
        case float():
            return float(node)
        case str():
            return str(node)
        case _:
            raise ValueError(f"{type(node).__name__} {shortened(node)} is no value here; quote it to make it text")


def key_of(key: Any) -> str:
    """Return a key that is text.  Raises ValueError."""
    if not isinstance(key, str):
        raise ValueError(f"the key {shortened(key)} is not text; quote it")
    return str(key)
