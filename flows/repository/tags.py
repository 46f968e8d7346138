"""GTO's tags of the model: `vdm@v1.2.0` is a version, `vdm#champion#7` assigns a stage to one."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

from gto.constants import Action
from gto.tag import parse_name

from flows.repository.repository import MODEL, Repository

CHAMPION, REFUSED, WAITING = "champion", "refused", "waiting"
"""The stages of GTO that the comparisons assign; a version that waits has won, and a person is to approve it."""
NUMBERS = r"v(\d{1,9})\.(\d{1,9})\.(\d{1,9})"
FIELDS = ("object", "creatordate:unix", "contents", "contents:signature", "tag")
"""What git prints of a tag besides its name."""
EVENTS = {
    Action.REGISTER: "registration",
    Action.DEREGISTER: "deregistration",
    Action.ASSIGN: "assignment",
    Action.UNASSIGN: "unassignment",
}
"""GTO's words for what a tag does."""


class Tag(NamedTuple):
    """A tag of GTO: its name, its commit, when it was made (ISO 8601), its message, and what it does.

    `event` is GTO's word: registration, deregistration, assignment or unassignment; the last two have a stage.
    `written_as` is the name that the tag itself states, which its signature covers.
    """

    name: str
    commit: str
    created: str = ""
    message: str = ""
    event: str = "assignment"
    stage: str | None = CHAMPION
    written_as: str = ""
    is_signed: bool = False

    @property
    def number(self) -> int:
        """The number that orders the tags of stages; 0 for a tag without one."""
        last = self.name.rpartition("#")[2]
        return int(last) if last.isdigit() else 0


def read_tags(repository: Repository) -> tuple[list[Tag], int]:
    """Return the tags of versions and stages, oldest first, those of a stage by their numbers; and the highest number.

    Raises UserError: exit 5 outside a git repository, 2 below its top.
    """
    repository.require_top()
    # Not `gto.api.history`: it reads each tag by itself, two seconds for 600.
    form = "".join(f"%({field})%00" for field in ("refname:lstrip=2", *FIELDS))
    listed = repository.git("for-each-ref", f"--format={form}", "--sort=creatordate", "refs/tags")
    values = listed.decode(errors="replace").split("\0")
    count = 1 + len(FIELDS)
    found, last = [], 0
    for first in range(0, len(values) - count, count):
        name, commit, made, message, signature, written_as = values[first : first + count]
        name = name.lstrip("\n")  # the end of the line before
        parsed = parse_name(name, raise_on_fail=False)
        if parsed.get("name") != MODEL:
            continue
        last = max(last, parsed.get("counter", 0))
        stage = parsed.get("stage")
        if not commit or not (stage or numbers_of(name)):  # a lightweight tag is none to GTO either
            continue
        created = datetime.fromtimestamp(int(made or 0), UTC).isoformat()
        message = message.removesuffix(signature).strip()
        found.append(Tag(name, commit, created, message, EVENTS[parsed["action"]], stage, written_as, bool(signature)))
    # The times of tags have only whole seconds.
    return sorted(found, key=lambda tag: tag.number if tag.stage else 0), last


def numbers_of(name: str) -> tuple[int, int, int] | None:
    """Return (1, 2, 0) for `vdm@v1.2.0`; None for a tag that is not a version."""
    match = re.match(rf"{MODEL}@{NUMBERS}(!|$)", name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def registered_tags(tags: list[Tag]) -> list[Tag]:
    """Return the tags of the versions that are not deregistered, sorted by number."""
    gone = {tag.name.partition("!")[0] for tag in tags if tag.event == "deregistration"}
    known = [tag for tag in tags if tag.event == "registration" and tag.name not in gone]
    return sorted(known, key=lambda tag: numbers_of(tag.name) or ())


def deregistered_commits(tags: list[Tag]) -> set[str]:
    """Return the commits that are no version any more, since GTO deregistered all their versions."""
    gone = {tag.commit for tag in tags if tag.event == "deregistration"}
    return gone - {tag.commit for tag in registered_tags(tags)}


def assigned_commits(tags: list[Tag], stage: str) -> set[str]:
    """Return the commits to which a stage was ever assigned."""
    return {tag.commit for tag in tags if tag.stage == stage and tag.event == "assignment"}


def reign(tags: list[Tag]) -> list[Tag]:
    """Return the stack of champions' tags, the present champion last: a promotion pushes, a roll-back pops.

    A tag of a version that is in the stack makes it the champion again and removes those above it: so a second
    roll-back goes one champion further back, and not to the one that the first removed.  Versions that GTO deregistered
    do not count.
    """
    stack: dict[str, Tag] = {}
    for tag in sorted((tag for tag in tags if tag.stage == CHAMPION), key=lambda tag: tag.number):
        if tag.event == "unassignment":
            stack.pop(tag.commit, None)
            continue
        while tag.commit in stack:
            stack.popitem()  # the uppermost
        stack[tag.commit] = tag
    gone = deregistered_commits(tags)
    return [tag for tag in stack.values() if tag.commit not in gone]
