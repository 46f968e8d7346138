"""What `vdmctl status` and `vdmctl prune` answer: documents, which docs/json.md lists.  A time is text in ISO 8601.

Only fields that were set are printed: a server that does not answer has no runs, and what cannot be read has only its
problem.
"""

from typing import Literal

from pydantic import Field

from flows.core.documents import Count, Document, Figure


class Worker(Document):
    """A worker, as the server knows it."""

    name: str
    status: str


class Schedule(Document):
    """A schedule of a deployment."""

    deployment: str
    when: str
    """Its cron or rrule, or its interval, and its time zone."""
    active: bool
    next_run: str | None


class UnfinishedRun(Document):
    """A run that has not ended."""

    name: str
    state: str | None
    started: str | None


class LateRun(Document):
    """A run that has not started when it was planned."""

    name: str
    planned: str | None
    queue: str | None


class EndedRun(Document):
    """How a run ended."""

    name: str
    state: str | None
    ended: str | None
    reason: str | None
    """Null unless it ended badly."""


class Server(Document):
    """What the Prefect server says about workers, schedules and runs, or why it does not answer."""

    url: str
    answers: bool
    reason: str = ""
    """Why it does not answer; then the keys below are missing."""
    deployments: list[str] = Field(default_factory=list)
    workers: list[Worker] = Field(default_factory=list)
    """Those that the server knows."""
    schedules: list[Schedule] = Field(default_factory=list)
    runs: list[UnfinishedRun] = Field(default_factory=list)
    """Those that have not ended."""
    late: list[LateRun] = Field(default_factory=list)
    last_run: EndedRun | None = None
    dropped: list[EndedRun] = Field(default_factory=list)
    """The run that its deployment's limit cancelled last, unless another has ended since."""


class Device(Document):
    """A device of this machine that a trainer holds."""

    device: str
    holder: str


class App(Document):
    """An app of the folder, by what it answers about itself."""

    process: Count
    url: str
    model: str | None
    follows_champion: bool | None
    problem: str | None


class Worktree(Document):
    """The worktree of a run."""

    name: str
    in_use: bool
    """Whether its run holds its lock; if not, the next run removes it."""


class Versions(Document):
    """The versions, or the problem with them."""

    problem: str = ""
    """Why they cannot be read; then the keys below are missing."""
    versions: Count = 0
    champion: str | None = None
    champion_bpd: Figure = None
    hold: str | None = None
    """Why no winner is promoted without a person; null if nobody holds the champion."""
    waiting: str | None = None
    """The version that waits for a person."""
    unpublished: list[str] | None = None
    """The tags that the remote origin lacks; null without it."""
    unfetched: list[str] | None = None
    """The versions that only origin has; null without it."""


class SourceNow(Document):
    """What a run would find at its source of images, or why none would start."""

    problem: str = ""
    """Why no run would start; then the keys below are missing."""
    source: str = ""
    state: Literal["same", "changed", "missing", "imported"] = "changed"
    """`same`, `changed`, `imported`, or `missing` if it is not on this machine."""
    due: str = ""
    """What the next run has to do, and why."""
    added: Count | None = None
    """Files of other names than those of the newest run; this and what follows is null where it is not known."""
    empty: Count | None = None
    """Those of them without a byte."""
    removed: Count | None = None
    """Images of files that are gone, if no other file had them."""
    damaged: Count | None = None
    """Files that the newest run left out, which are not `added`."""
    since: str | None = None
    """The version or the commit of the newest run."""


class Status(Document):
    """The state of the retraining loop on this machine."""

    folder: str
    server: Server
    devices: list[Device]
    """Those that a trainer holds."""
    apps: list[App]
    """Those of the folder."""
    worktrees: list[Worktree]
    """Those of runs."""
    registry: Versions
    images: SourceNow
    """What a run would find now at its source of images."""
    disk_bytes: dict[str, Count]
    """By kind."""
    disk_free_bytes: Count
    problems: list[str] = Field(default_factory=list)
    """What to look at, and what to do."""


NEWEST, CHAMPIONS = "among the newest", "among the champions"
"""Why most versions stay."""


class Removed(Document):
    """What is removed of one kind."""

    count: Count
    bytes: Count | None
    """On disk; null if they are unknown."""
    names: list[str]
    reason: str
    """Why they go."""


class Pruned(Document):
    """What was removed, or would be, and what stays."""

    dry_run: bool
    """Whether nothing was removed, since it was only asked."""
    keep: Count
    removed: dict[str, Removed]
    """By kind."""
    kept: dict[str, str]
    """The versions and half-written folders that stay, each with the reason."""
