"""Run git for the registry: on this repository, and on its remote `origin`."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from flows.core.errors import Exit, NetworkError, UserError
from flows.process.groups import search_path
from flows.process.locks import lock_file

# Hooks are for the commits of people: a hook of `dvc install` fails in a worktree that has no outputs yet.  A key to
# sign with may need a password.  Messages are written and read as UTF-8, whatever the repository says.
SETTINGS = (
    "core.hooksPath=/dev/null",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "log.showSignature=false",
    "i18n.commitEncoding=UTF-8",
    "i18n.logOutputEncoding=UTF-8",
)
UNATTENDED = [option for setting in SETTINGS for option in ("-c", setting)]
REMOTE = "origin"
# A remote may accept the connection and never answer.
LIST_SECONDS, TRANSFER_SECONDS = 60, 900


def git(root: Path, *arguments: str, stdin: Iterable[str] | None = None, seconds: float | None = None) -> bytes:
    """Return what a git command prints.  It runs no hooks, except `push`, and signs nothing.

    `stdin` has the lines that the command reads.  Raises UserError (exit 5) if git fails, or takes longer than
    `seconds`.
    """
    # Nobody can enter a password, and `ask` reads English.  The hook that `dvc install` writes calls `dvc`.
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LANGUAGE": "C", "PATH": search_path()}
    given = None if stdin is None else "".join(f"{line}\n" for line in stdin).encode()
    command = ["git", *([] if arguments[0] == "push" else UNATTENDED), *arguments]
    place = f"git {arguments[0]} in {root.absolute()}"
    try:
        result = subprocess.run(
            command, cwd=root, env=environment, input=given, timeout=seconds, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise UserError(f"{place}: git or the folder is missing", Exit.MISSING) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{place}: no answer in {seconds:g} s", Exit.MISSING) from error
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").splitlines()
        # A ref that failed only because another one of the same push did says nothing.
        reason = " ".join(line.strip() for line in lines if "atomic push fail" not in line) or "no reason given"
        raise UserError(f"{place}: {shorten(reason, 500, placeholder=' ...')}", Exit.MISSING)
    return result.stdout


def git_text(root: Path, *arguments: str) -> str:
    """Return what a git command prints as text, stripped.  Raises UserError (exit 5)."""
    return git(root, *arguments).decode(errors="replace").strip()


def git_lines(root: Path, *arguments: str) -> list[str]:
    """Return the lines that a git command prints, without empty ones.  Raises UserError (exit 5)."""
    return [line for line in git(root, *arguments).decode(errors="replace").split("\n") if line]


def require_top(root: Path) -> None:
    """Raise UserError: exit 2 unless the folder is the top of its git repository, 5 outside a repository."""
    top = git_text(root, "rev-parse", "--show-toplevel")
    if Path(top).resolve() != root.resolve():
        reason = f"not the top folder of its git repository, {top}, where a project with versions must be"
        raise UserError(f"{root.absolute()}: {reason}; change to that folder, or move the project there", Exit.USAGE)


def require_identity(root: Path) -> None:
    """Raise UserError (exit 2) unless an author and a committer are configured in UTF-8; git may not guess one."""
    try:
        for role in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            git(root, "-c", "user.useConfigOnly=true", "var", role).decode()
    except (UserError, UnicodeDecodeError) as error:
        advice = "`git config user.name NAME` and `git config user.email ADDRESS`, in UTF-8"
        raise UserError(f"git needs an identity: {advice}", Exit.USAGE) from error


def contents(root: Path, names: list[str]) -> dict[str, bytes | None]:
    """Return the contents of files by their names `COMMIT:PATH`, None for a missing one.  Runs git once."""
    output = git(root, "cat-file", "--batch", stdin=names)
    found: dict[str, bytes | None] = {}
    start = 0
    for name in names:
        end = output.index(b"\n", start)
        *_, size = output[start:end].split()  # digest, type and size, or the name and "missing"
        start = end + 1
        found[name] = None
        if size.isdigit():
            found[name] = output[start : start + int(size)]
            start += int(size) + 1
    return found


def content_of(root: Path, name: str) -> bytes | None:
    """Return the content of a file by its name `COMMIT:PATH`; None if it is missing."""
    return contents(root, [name])[name]


@contextmanager
def registry_lock(root: Path) -> Iterator[None]:
    """Wait for the registry's lock and hold it.  All worktrees of a repository share one lock, like their tags."""
    folder = git_text(root, "rev-parse", "--git-common-dir")  # relative to `root`, or absolute
    with lock_file(root / folder / "vdm-registry.lock", wait=True):
        yield


class Target(NamedTuple):
    """What a branch or tag names: an object, and its commit, which differs from the object for an annotated tag."""

    digest: str
    commit: str


def refs_of(root: Path, remote: str = ".") -> dict[str, Target]:
    """Return the targets of the branches and tags of this repository, or of a remote.  Raises NetworkError (exit 5)."""
    listed = ask(root, "ls-remote", "--heads", "--tags", remote, seconds=LIST_SECONDS).decode(errors="replace")
    found: dict[str, Target] = {}
    for digest, name in (line.split("\t", 1) for line in listed.split("\n") if line):
        ref = name.removesuffix("^{}")  # git lists an annotated tag twice: then with its commit's digest
        found[ref] = Target(found[ref].digest if ref in found else digest, digest)
    return found


def ask(root: Path, *arguments: str, seconds: float = TRANSFER_SECONDS) -> bytes:
    """Run a git command that talks to a remote; return what it prints.

    Raises NetworkError (exit 5) if it fails, and UserError (exit 5) if a hook or a rule of the remote declines a push.
    """
    try:
        return git(root, *arguments, seconds=seconds)
    except UserError as error:
        if "hook declined" in str(error) or "push declined" in str(error):
            raise
        raise NetworkError(str(error)) from error


def first_commit(root: Path, *, shared: bool) -> str:
    """Return the commit from which a run starts: the one that is checked out.

    If machines share versions, it is the commit of the upstream branch where that is newer.
    """
    head = git_text(root, "rev-parse", "HEAD")
    if shared:
        with suppress(UserError):  # no branch, no upstream branch, or a branch with local commits
            newest = git_text(root, "rev-parse", "--verify", "--quiet", "@{upstream}")
            git_text(root, "merge-base", "--is-ancestor", head, newest)
            return newest
    return head
