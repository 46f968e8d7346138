"""Decide which versions, branches and tags stay, and delete the branches and tags that do not.

Nothing on a remote is deleted.  Tags of champions stay, and so do notes of refusals: the evidence of later versions
counts the refused ones (`num_judged`), and the next publication would delete the notes at the remote, too.
"""

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from flows.core import layout
from flows.registry.git import Tag, commit_of, git, git_lines, git_text
from flows.registry.remote import REMOTE, Target, is_merged, remote_refs
from flows.registry.versions import (
    Version,
    champion_history,
    deregistered,
    model_tags,
    of_stage,
    refusals,
    reign,
    versions,
)

BRANCHES, TAGS = "refs/heads/", "refs/tags/"
FIELDS = ("refname", "objectname", "objecttype", "*objectname", "*objecttype", "committerdate:unix", "worktreepath")


class Ref(NamedTuple):
    """A branch or tag: its full name, its object, its commit, when that was made, and where it is checked out.

    The commit is "" for a tag of a file or a folder.  The time is 0 for an annotated tag.
    """

    name: str
    digest: str
    commit: str
    made: int
    folder: str


class Kept(NamedTuple):
    """The name of a version or champion that stays, and why."""

    name: str
    reason: str


class Plan(NamedTuple):
    """What stays, and the branches and tags that go.

    `versions` are the versions and champions that stay with all their files, by commit.  The files of the commits in
    `others` stay, too, as far as they exist: of the commit that is checked out, of the branches and tags that stay, and
    of champions that GTO deregistered.  `runs` are the runs that made any of these commits.  `since` is when the newest
    version was made, 0 without versions: whatever is newer may still become a version.  `past` are the champions whose
    tags stay, but not their files.
    """

    versions: dict[str, Kept]
    others: list[str]
    refs: list[Ref]
    runs: set[str]
    since: float
    past: list[Tag]


def make_plan(root: Path, keep: int, published: Mapping[str, Target] | None) -> Plan:
    """Return what to keep for the last `keep` champions and the `keep` newest versions.

    `published` are the remote's refs; None means that no remote is configured.  A version that the remote lacks stays,
    and so does a branch whose commit no branch of the remote has.  Raises UserError (exit 5) outside a repository, or
    in one without a commit.
    """
    known, tags = versions(root), model_tags(root)
    names = {tag.commit: tag.name for tag in tags} | {version.commit: version.name for version in known}
    reasons = reasons_to_keep(root, known, tags, keep, published)
    made = [datetime.fromisoformat(version.created).timestamp() for version in known if version.created]
    since = max((seconds for seconds in made if seconds <= time.time()), default=0.0)  # a clock may have been wrong
    crowned = {tag.commit for tag in champion_history(tags)}
    # An old champion keeps its tag, since the champion's history names it; its files go.
    refused = {TAGS + each.name for each in known if each.commit not in {*reasons, *crowned}}

    def goes(ref: Ref) -> bool:
        if not ref.name.startswith(BRANCHES + layout.RUN_BRANCHES):
            return ref.name in refused
        in_use = ref.folder and not Path(ref.folder).is_relative_to((root / layout.WORKTREES).resolve())
        unpublished = is_missing(ref.name, ref.commit, published) and not is_merged(root, ref.commit, published or {})
        return not (ref.commit in reasons or in_use or unpublished or ref.made > since)

    every = refs(root)
    going = list(filter(goes, every))
    gone_or_versions = {ref.name for ref in going} | {TAGS + tag.name for tag in tags}
    stay = [ref for ref in every if ref.name not in gone_or_versions]
    needed = reasons.keys() - deregistered(tags)
    others = {commit_of(root, "HEAD"), *(ref.commit for ref in stay if ref.commit), *reasons} - needed
    return Plan(
        versions={commit: Kept(names[commit], reasons[commit]) for commit in needed},
        others=sorted(others),
        refs=going,
        runs=runs_of(root, {*reasons, *others}),
        since=since,
        past=[tag for tag in tags if tag.commit in crowned - reasons.keys()],
    )


def reasons_to_keep(
    root: Path, known: list[Version], tags: list[Tag], keep: int, published: Mapping[str, Target] | None
) -> dict[str, str]:
    """Return why the commits of versions and champions stay, by commit."""
    history = champion_history(tags)
    other_stages = [tag for tag in tags if of_stage(tag) and tag not in history]
    promotions = [tag for tag in history if "!" not in tag.name]
    decided = {*refusals(root), *(tag.commit for tag in promotions)}
    reasons: list[tuple[str, Iterable[str]]] = [
        (f"not on {REMOTE}", (each.commit for each in known if is_missing(TAGS + each.name, each.commit, published))),
        ("neither promoted nor refused", (each.commit for each in known if each.commit not in decided)),
        ("has another stage", (tag.commit for tag in other_stages)),
        ("among the newest", (version.commit for version in known[-keep:])),
        ("among the last champions", [*last(reign(tags), keep), *last(promotions, keep)]),
    ]
    # The last reason for a commit counts, so the most important reasons are last.
    return {commit: reason for reason, commits in reasons for commit in commits}


def is_missing(ref: str, commit: str, published: Mapping[str, Target] | None) -> bool:
    """Whether there is a remote, and it lacks the branch or tag or has another commit by that name."""
    return published is not None and (ref not in published or published[ref].commit != commit)


def last(tags: list[Tag], count: int) -> list[str]:
    """Return the commits of the last tags, `count` different ones."""
    return list(dict.fromkeys(tag.commit for tag in reversed(tags)))[:count]


def published(root: Path) -> dict[str, Target] | None:
    """Return the remote's refs; None without a remote.  Raises NetworkError (exit 5)."""
    return remote_refs(root) if REMOTE in git_text(root, "remote").split() else None


def refs(root: Path) -> list[Ref]:
    """Return all local branches and tags."""
    form = "--format=" + "%00".join(f"%({field})" for field in FIELDS)
    lines = git_lines(root, "for-each-ref", form, BRANCHES, TAGS)
    # `*objectname` is what an annotated tag names, and empty for anything else.
    return [
        Ref(name, digest, "" if (of_kind or kind) in ("blob", "tree") else (of or digest), int(made or 0), folder)
        for name, digest, kind, of, of_kind, made, folder in (line.split("\0") for line in lines)
    ]


def runs_of(root: Path, commits: Iterable[str]) -> set[str]:
    """Return the names of the runs that made the commits."""
    form = "--format=%(trailers:key=Run,valueonly)"
    listed = git(root, "log", "--no-walk", form, "--stdin", stdin=commits)
    return set(listed.decode(errors="replace").split())


def delete_refs(root: Path, refs: Iterable[Ref]) -> None:
    """Delete branches and tags, all or none.  Raises UserError (exit 5) if one of them has changed meanwhile."""
    git(root, "update-ref", "--stdin", stdin=[f"delete {ref.name} {ref.digest}" for ref in refs])
