"""The git remote: its refs, and the commit from which a run starts."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flows.core.errors import Exit, NetworkError, UserError
from flows.registry.git import git, git_lines, git_text

REMOTE = "origin"
# A remote may accept the connection and never answer.
LIST_SECONDS, TRANSFER_SECONDS = 60, 900


class Target(NamedTuple):
    """What a branch or tag names: an object, and its commit, which differs from the object for an annotated tag."""

    digest: str
    commit: str


def ask(root: Path, *arguments: str, seconds: float = TRANSFER_SECONDS, stdin: Iterable[str] | None = None) -> bytes:
    """Run a git command that talks to a remote; return what it prints.

    Raises NetworkError (exit 5) if it fails, and UserError (exit 5) if a hook or a rule of the remote declines a push.
    """
    try:
        return git(root, *arguments, stdin=stdin, seconds=seconds)
    except UserError as error:
        if "hook declined" in str(error) or "push declined" in str(error):
            raise
        raise NetworkError(str(error)) from error


def has_remote(root: Path) -> bool:
    """Whether git has the remote `REMOTE`."""
    return REMOTE in git_lines(root, "remote")


def remote_refs(root: Path) -> dict[str, Target]:
    """Return the targets of the remote's branches and tags.  Raises NetworkError (exit 5)."""
    listed = ask(root, "ls-remote", "--heads", "--tags", REMOTE, seconds=LIST_SECONDS).decode(errors="replace")
    found: dict[str, Target] = {}
    for digest, name in (line.split("\t", 1) for line in listed.split("\n") if line):
        ref = name.removesuffix("^{}")  # git lists an annotated tag twice: then with its commit's digest
        found[ref] = Target(found[ref].digest if ref in found else digest, digest)
    return found


def local_refs(root: Path) -> dict[str, Target]:
    """Return the targets of this repository's branches and tags."""
    # `*objectname` is the commit of an annotated tag, and empty for any other ref.
    form = "--format=%(objectname) %(*objectname) %(refname)"
    listed = git_lines(root, "for-each-ref", form, "refs/heads", "refs/tags")
    return {name: Target(digest, of or digest) for digest, of, name in (line.split(" ", 2) for line in listed)}


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
            advice = f"`git fetch {REMOTE} && git branch -u {REMOTE}/NAME` names another"
            raise UserError(f"{root}: the upstream branch is at {place}, not at {REMOTE}; {advice}", Exit.USAGE)
        with suppress(UserError):  # no branch, no upstream branch, or a branch with local commits
            newest = git_text(root, "rev-parse", "--verify", "--quiet", "@{upstream}")
            git_text(root, "merge-base", "--is-ancestor", head, newest)
            return newest
    return head
