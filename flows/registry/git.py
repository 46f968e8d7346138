"""Run git for the registry."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from flows.core.errors import Exit, UserError
from flows.process.environment import search_path
from flows.process.locks import lock_file

# Hooks are for the commits of people: a hook of `dvc install` fails in a worktree that has no outputs yet.  A key to
# sign with may need a password.
SETTINGS = (
    "core.hooksPath=/dev/null",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "log.showSignature=false",
    "trailer.separators=:",
)
UNATTENDED = [option for setting in SETTINGS for option in ("-c", setting)]


def git(root: Path, *arguments: str, stdin: Iterable[str] | None = None, seconds: float | None = None) -> bytes:
    """Return what a git command prints.  It runs no hooks, except `push`, and signs nothing.

    `stdin` has the lines that the command reads.  Raises UserError (exit 5) if git fails, or takes longer than
    `seconds`.
    """
    # Nobody can enter a password, and `reason_in` reads English.  The hook that `dvc install` writes calls `dvc`.
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
        raise UserError(f"{place}: {reason_in(result.stderr.decode(errors='replace'))}", Exit.MISSING)
    return result.stdout


def reason_in(stderr: str) -> str:
    """Return why git failed: what it or the remote marks as an error, with the advice after a fatal one.

    Refs that failed only because another one of the same push did are left out.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    end = next((place for place, line in enumerate(lines) if line.startswith("fatal: ")), len(lines))
    marked = [line for line in lines[:end] if line.startswith(("error: ", "! ", "remote: "))]
    found = [line for line in marked if "atomic push" not in line and "failed to push some refs" not in line]
    found += [" ".join(lines[end:])] if end < len(lines) else []
    return shorten("; ".join(found) or " ".join(lines[-1:]) or "no reason given", 500, placeholder=" ...")


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


def commit_of(root: Path, revision: str) -> str:
    """Return the full digest of a commit.  Raises UserError (exit 5) if git does not know it."""
    try:
        return git_text(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except UserError as error:
        raise UserError(f"{revision}: git knows no such commit", Exit.MISSING) from error


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


def require_identity(root: Path) -> None:
    """Raise UserError (exit 2) unless a committer and an author are configured; git may not guess one."""
    try:
        for role in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            git(root, "-c", "user.useConfigOnly=true", "var", role)
    except UserError as error:
        advice = "`git config user.name NAME` and `git config user.email ADDRESS`"
        raise UserError(f"git needs an identity: {advice}", Exit.USAGE) from error


@contextmanager
def registry_lock(root: Path) -> Iterator[None]:
    """Wait for the registry's lock and hold it.  All worktrees of a repository share one lock, like their tags."""
    folder = git_text(root, "rev-parse", "--git-common-dir")  # relative to `root`, or absolute
    with lock_file(root / folder / "vdm-registry.lock", wait=True):
        yield
