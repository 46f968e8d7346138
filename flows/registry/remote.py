"""The refs of this repository and of its git remote, and the commands of git that talk to the remote."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.registry.git import git, git_lines, git_text
from flows.registry.versions import MODEL, REFUSALS

REMOTE = "origin"
NOTES = f"refs/notes/{REFUSALS}"
OURS = (f"refs/tags/{MODEL}@", f"refs/tags/{MODEL}#")
NAME_ANOTHER = f"`git fetch {REMOTE} && git branch -u {REMOTE}/NAME` names another"
"""What to do about an upstream branch that cannot be used."""
# A remote may accept the connection and never answer.
LIST_SECONDS, TRANSFER_SECONDS = 60, 900


class Target(NamedTuple):
    """What a branch or tag names: an object, and its commit, which differs from the object for an annotated tag."""

    digest: str
    commit: str


def upstream(root: Path) -> tuple[str, str]:
    """Return the remote and the ref of the upstream branch: "" for both without one, "." for a branch of this clone."""
    checked_out = git_text(root, "rev-parse", "--symbolic-full-name", "HEAD")  # HEAD itself if it is detached
    form = "--format=%(upstream:remotename) %(upstream:remoteref)"
    remote, _, ref = git_text(root, "for-each-ref", form, checked_out).partition(" ")
    return remote, ref


def first_commit(root: Path, *, shared: bool) -> str:
    """Return the commit from which a run starts: the one that is checked out.

    If machines share versions, it is the commit of the upstream branch where that is newer.  Raises UserError (exit 2)
    if that branch is not at the remote `REMOTE`: nothing is fetched from other remotes.
    """
    head = git_text(root, "rev-parse", "HEAD")
    if shared:
        place, _ = upstream(root)
        if place not in ("", ".", REMOTE):
            raise UserError(f"{root}: the upstream branch is at {place}, not at {REMOTE}; {NAME_ANOTHER}", Exit.USAGE)
        with suppress(UserError):  # no branch, no upstream branch, or a branch with local commits
            newest = git_text(root, "rev-parse", "--verify", "--quiet", "@{upstream}")
            git_text(root, "merge-base", "--is-ancestor", head, newest)
            return newest
    return head


def local_refs(root: Path) -> dict[str, Target]:
    """Return the targets of this repository's refs."""
    # `*objectname` is the commit of an annotated tag, and empty for any other ref.
    listed = git_lines(root, "for-each-ref", "--format=%(objectname) %(*objectname) %(refname)")
    return {name: Target(digest, of or digest) for digest, of, name in (line.split(" ", 2) for line in listed)}


def remote_refs(root: Path) -> dict[str, Target]:
    """Return the targets of the remote's refs.  Raises NetworkError (exit 5).

    git lists an annotated tag twice: with its own digest, then as NAME^{} with its commit's.
    """
    found: dict[str, Target] = {}
    listed = ask(root, "ls-remote", REMOTE, seconds=LIST_SECONDS).decode(errors="replace")
    for digest, name in (line.split("\t", 1) for line in listed.split("\n") if line):
        ref = name.removesuffix("^{}")
        # A server that is not git's may list only the second.
        own = found[ref].digest if name != ref and ref in found else digest
        found[ref] = Target(own, digest)
    return found


def ask(root: Path, *arguments: str, seconds: float, stdin: Iterable[str] | None = None) -> bytes:
    """Run a git command that talks to a remote; return what it prints.  Raises NetworkError (exit 5) if it fails."""
    try:
        return git(root, *arguments, stdin=stdin, seconds=seconds)
    except UserError as error:
        raise NetworkError(str(error)) from error


def other_objects(there: dict[str, Target], mine: dict[str, Target]) -> list[str]:
    """Return the model tags that name the same commit here and at the remote, and are other objects.

    Two machines made them, with other evidence.  The remote's was first, and replaces ours, unless it is not annotated:
    then it is no version.
    """
    both = sorted(name for name in there if name.startswith(OURS) and name in mine)
    alike = [name for name in both if mine[name] != there[name] and mine[name].commit == there[name].commit]
    return [name for name in alike if there[name].digest != there[name].commit]


def fetch(root: Path, *arguments: str, stdin: Iterable[str] | None = None) -> None:
    """Fetch these refs and no others, whatever the remote's configuration adds.  Raises NetworkError (exit 5)."""
    alone = ("--no-tags", "--refmap=", "--no-write-fetch-head")
    ask(root, "fetch", "--quiet", *alone, *arguments, stdin=stdin, seconds=TRANSFER_SECONDS)


def is_up_to_date(root: Path, ref: str, mine: Target, there: dict[str, Target]) -> bool:
    """Whether there is nothing to push to the remote, which has the refs `there`.

    It has the same object, or its branch has commits that ours lacks, or another branch there has our commit.
    """
    theirs = there.get(ref)
    if theirs == mine:
        return True
    if not ref.startswith("refs/heads/"):
        return False
    if not theirs:
        return is_merged(root, mine.commit, there)
    try:
        git(root, "merge-base", "--is-ancestor", theirs.commit, mine.commit)
    except UserError:  # the remote's branch has commits that this one lacks
        return True
    return False  # ours is ahead


def is_merged(root: Path, commit: str, there: Mapping[str, Target]) -> bool:
    """Whether a branch of the remote that is not a run's has the commit, as far as this repository knows."""
    branches, runs = "refs/heads/", f"refs/heads/{layout.RUN_BRANCHES}"
    heads = [of.commit for name, of in there.items() if name.startswith(branches) and not name.startswith(runs)]
    return bool(heads) and not git(root, "rev-list", "--ignore-missing", "--max-count=1", commit, "--not", *heads)
