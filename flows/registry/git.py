"""Run git, in as few processes as possible: a listing of a hundred versions starts three."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO, NamedTuple

from flows.core.errors import Exit, UserError
from flows.core.files import MOST_BYTES
from flows.process.environment import search_path
from flows.process.locks import lock_file

# Subject and body, since `contents` would include a signature.
FIELDS = ("refname:strip=2", "objecttype", "*objectname", "taggerdate:unix", "contents:subject", "contents:body")

# Hooks are for the commits of people: a hook of `dvc install` fails in a worktree that has no outputs yet.  A key to
# sign with may need a password.
SETTINGS = (
    "core.hooksPath=/dev/null",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "log.showSignature=false",
    "trailer.separators=:",
)
MARKS = ("fatal: ", "error: ", "! ")
END_OF_ADVICE = r"fatal: |error: |! |hint: |To \S+$"
REMOTE_SAYS = "remote:"
MOST_CHARACTERS = 500
UNATTENDED = [option for setting in SETTINGS for option in ("-c", setting)]


class Tag(NamedTuple):
    """An annotated tag: its name, its commit, when it was made (ISO 8601, or '' if unknown), its message."""

    name: str
    commit: str
    created: str = ""
    message: str = ""


def git(root: Path, *arguments: str, stdin: Iterable[str] | None = None, seconds: float | None = None) -> bytes:
    """Return what a git command prints.  It runs no hooks, except `push`, and signs nothing.

    `stdin` has the lines that the command reads.  Raises UserError (exit 5) if git fails, takes longer than `seconds`,
    or prints more than MOST_BYTES.
    """
    with printed(root, *arguments, stdin=stdin, seconds=seconds) as output:
        content = output.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"git {arguments[0]} in {root.absolute()}: prints more than {MOST_BYTES:,} bytes", Exit.MISSING)
    return content


@contextmanager
def printed(
    root: Path, *arguments: str, stdin: Iterable[str] | None, seconds: float | None = None
) -> Iterator[BinaryIO]:
    """Yield a temporary file with what a git command prints, which may not fit into memory.  Raises UserError."""
    # Nobody can enter a password, and `reason_in` reads English.
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LANGUAGE": "C"}
    # The hook that `dvc install` writes calls `dvc`, which is not on the PATH of a service.
    environment["PATH"] = search_path()
    given = None if stdin is None else "".join(f"{line}\n" for line in stdin).encode()
    with tempfile.TemporaryFile() as output:
        streams: dict[str, Any] = {"input": given, "stdout": output, "stderr": subprocess.PIPE}
        options = [] if arguments[0] == "push" else UNATTENDED
        try:
            result = subprocess.run(
                ["git", *options, *arguments], cwd=root, env=environment, timeout=seconds, **streams
            )
        except FileNotFoundError as error:
            reason = error.strerror if shutil.which("git") else "git is not installed, or not on PATH"
            raise UserError(f"git in {root}: {reason}", Exit.MISSING) from error
        except subprocess.TimeoutExpired as error:
            message = f"git {arguments[0]} in {root.absolute()}: no answer in {seconds:g} s"
            raise UserError(message, Exit.MISSING) from error
        if result.returncode != 0:
            reason = reason_in(result.stderr.decode(errors="replace"))
            if "fatal: not a git repository (or any" in reason:  # else git names a worktree whose repository is gone
                reason += "; change to the project's folder, which must be a git repository"
            raise UserError(f"git {arguments[0]} in {root.absolute()}: {reason}", Exit.MISSING)
        output.seek(0)
        yield output


def reason_in(stderr: str) -> str:
    """Return why git failed, from its stderr, in one line: the first line marked as an error, else the last line.

    If refs were pushed together, skip those that failed only because another one did.  Append what the remote's hooks
    say about the ref, or else git's advice below the line.
    """
    lines = [line.strip() for line in stderr.splitlines() if "failed to push some refs" not in line and line.strip()]
    marked = [place for place, line in enumerate(lines) if line.startswith(MARKS)]
    if not marked:
        return lines[-1] if lines else "no reason given"
    at_fault = [place for place in marked if "atomic push" not in lines[place]]
    first = (at_fault or marked)[0]
    said = " ".join(line.removeprefix(REMOTE_SAYS).strip() for line in lines if line.startswith(REMOTE_SAYS)).strip()
    if said and lines[first].startswith("! "):
        return shorten(f"{lines[first]}; the remote says: {said}", MOST_CHARACTERS, placeholder=" ...")
    advice = takewhile(lambda line: not re.match(END_OF_ADVICE, line), lines[first + 1 :])
    return shorten(" ".join([lines[first], *advice]), MOST_CHARACTERS, placeholder=" ...")


def git_text(root: Path, *arguments: str) -> str:
    """Return what a git command prints as text, stripped.  Raises UserError (exit 5)."""
    return git(root, *arguments).decode(errors="replace").strip()


def git_lines(root: Path, *arguments: str) -> list[str]:
    """Return the lines that a git command prints, without empty ones.  Raises UserError (exit 5).

    Only a line feed ends a line.  The name of a ref may have other characters at which `str.splitlines` splits.
    """
    return [line for line in git(root, *arguments).decode(errors="replace").split("\n") if line]


def require_top(root: Path) -> None:
    """Raise UserError: exit 2 unless the folder is the top of its git repository, 5 outside a repository."""
    if (root / ".git").exists():
        return
    top = git_text(root, "rev-parse", "--show-toplevel")
    if Path(top).resolve() != root.resolve():
        reason = f"not the top folder of its git repository, {top}, where a project with versions must be"
        raise UserError(f"{root.absolute()}: {reason}; change to that folder, or move the project there", Exit.USAGE)


def annotated_tags(root: Path, prefix: str) -> list[Tag]:
    """Return the annotated tags whose names start with the prefix.  GTO ignores lightweight tags, too.

    Raises UserError; see `require_top`.
    """
    require_top(root)
    form = "--format=" + "".join(f"%({field})%00" for field in FIELDS)
    output = git(root, "for-each-ref", form, f"refs/tags/{prefix}*").decode(errors="replace")
    # Messages contain line breaks, so a record ends after its sixth field.
    fields = output.split("\0")[:-1]
    records = [fields[start : start + 6] for start in range(0, len(fields), 6)]
    return [
        Tag(name.lstrip("\n"), commit, iso_time(made), f"{subject}\n\n{body}".strip())
        for name, kind, commit, made, subject, body in records
        if kind == "tag"
    ]


def iso_time(seconds: str) -> str:
    """Return a time in seconds since 1970 as ISO 8601 in UTC; '' for text that is no time, as in a forged tag."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return ""


def commit_of(root: Path, revision: str) -> str:
    """Return the full digest of a commit.  Raises UserError (exit 5) if git does not know it."""
    try:
        return git_text(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except UserError as error:
        raise UserError(f"{revision}: git knows no such commit", Exit.MISSING) from error


def contents(root: Path, names: list[str], most: int = MOST_BYTES) -> dict[str, bytes | None]:
    """Return the contents of files by their names `COMMIT:PATH`, None for a missing one.  Runs git twice.

    A file larger than `most` bytes is replaced by `most` + 1 zeros, so that the caller can see that it is too large.
    git would write all of it to the disk, and a few bytes in the repository may be a terabyte.
    """
    asked = [name for name in names if name.isprintable()]  # a line break would ask for two files
    with printed(root, "cat-file", "--batch-check", stdin=asked) as output:
        last_words = [line.split()[-1] for line in output]
    sizes = {name: int(last) for name, last in zip(asked, last_words, strict=True) if last.isdigit()}
    small = [name for name, size in sizes.items() if size <= most]
    found: dict[str, bytes] = dict.fromkeys(sizes.keys() - set(small), bytes(most + 1))
    with printed(root, "cat-file", "--batch", stdin=small) as output:
        for name in small:
            output.readline()  # digest, type and size
            found[name] = output.read(sizes[name])
            output.readline()
    return {name: found.get(name) for name in names}


def content_of(root: Path, name: str, most: int = MOST_BYTES) -> bytes | None:
    """Return the content of a file by its name `COMMIT:PATH`, as `contents` does."""
    return contents(root, [name], most)[name]


def require_identity(root: Path) -> None:
    """Raise UserError (exit 2) unless a committer and an author are configured; git may not guess one."""
    try:
        for role in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            git(root, "-c", "user.useConfigOnly=true", "var", role)
    except UserError as error:
        raise UserError(
            "git needs an identity: `git config user.name NAME` and `git config user.email ADDRESS`", Exit.USAGE
        ) from error


@contextmanager
def registry_lock(root: Path) -> Iterator[None]:
    """Wait for the registry's lock and hold it.  All worktrees of a repository share one lock, like their tags."""
    folder = git(root, "rev-parse", "--git-common-dir").rstrip(b"\n")  # relative to `root`, or absolute
    with lock_file(root / os.fsdecode(folder) / "vdm-registry.lock", wait=True):
        yield
