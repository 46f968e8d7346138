"""git, asked in as few processes as possible: a listing of a hundred versions starts two."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flows.core.errors import Exit, UserError
from flows.core.files import MOST_BYTES
from flows.process.locks import lock_file

# Subject and body, since the whole of the contents would hold a signature, too.
FIELDS = "".join(
    f"%({field})%00"
    for field in (
        "refname:strip=2",
        "objecttype",
        "*objectname",
        "taggerdate:iso-strict",
        "contents:subject",
        "contents:body",
    )
)


class Tag(NamedTuple):
    """An annotated tag: its name, its commit, when it was made (ISO 8601), its message."""

    name: str
    commit: str
    created: str
    message: str


class Identity(NamedTuple):
    """Who makes a tag."""

    name: str
    email: str


def git(root: Path, *arguments: str, stdin: bytes | None = None, seconds: float | None = None) -> bytes:
    """Return what a git command prints.

    Raises UserError (exit 5) with git's own reason, when it takes too long, and when it prints too much.
    """
    with printed(root, *arguments, stdin=stdin, seconds=seconds) as output:
        content = output.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"git {arguments[0]} in {root.absolute()}: prints more than {MOST_BYTES:,} bytes", Exit.MISSING)
    return content


@contextmanager
def printed(root: Path, *arguments: str, stdin: bytes | None, seconds: float | None = None) -> Iterator[BinaryIO]:
    """Yield what a git command prints as a temporary file, since it may not fit into memory.  Raises UserError."""
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}  # nobody is there to give a password
    with tempfile.TemporaryFile() as output:
        streams: dict[str, Any] = {"input": stdin, "stdout": output, "stderr": subprocess.PIPE}
        try:
            result = subprocess.run(["git", *arguments], cwd=root, env=environment, timeout=seconds, **streams)
        except FileNotFoundError as error:
            raise UserError(f"git in {root}: {error.strerror}", Exit.MISSING) from error
        except subprocess.TimeoutExpired as error:
            late = f"git {arguments[0]} in {root.absolute()}: no answer in {seconds:g} s"
            raise UserError(late, Exit.MISSING) from error
        if result.returncode != 0:
            reason = reason_in(result.stderr.decode(errors="replace"))
            raise UserError(f"git {arguments[0]} in {root.absolute()}: {reason}", Exit.MISSING)
        output.seek(0)
        yield output


def reason_in(stderr: str) -> str:
    """The line of git's errors that says why: the first that is marked as one, else the last."""
    lines = [line.strip() for line in stderr.splitlines() if "failed to push some refs" not in line and line.strip()]
    marked = [line for line in lines if line.startswith(("fatal: ", "error: ", "! "))]
    return (marked or lines[-1:] or ["it gives no reason"])[0]


def git_text(root: Path, *arguments: str, seconds: float | None = None) -> str:
    """What a git command prints, as text without the space around it."""
    return git(root, *arguments, seconds=seconds).decode(errors="replace").strip()


def annotated_tags(root: Path, prefix: str) -> list[Tag]:
    """The annotated tags whose names start with the prefix.  Lightweight tags are left out, as GTO does."""
    output = git(root, "for-each-ref", f"--format={FIELDS}", f"refs/tags/{prefix}*").decode(errors="replace")
    # A message has lines of its own, so records end after the sixth field, not at the end of a line.
    fields = output.split("\0")[:-1]
    records = [fields[start : start + 6] for start in range(0, len(fields), 6)]
    return [
        Tag(name.lstrip("\n"), commit, created, f"{subject}\n\n{body}".strip())
        for name, kind, commit, created, subject, body in records
        if kind == "tag"
    ]


def tag_exists(root: Path, name: str) -> bool:
    """Whether there is a tag of that name, of either kind."""
    return bool(git(root, "for-each-ref", f"refs/tags/{name}"))


def commit_of(root: Path, revision: str) -> str:
    """The full name of a commit.  Raises UserError (exit 5)."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    except UserError as error:
        raise UserError(f"{revision}: git knows no such commit", Exit.MISSING) from error


def contents(root: Path, names: list[str], most: int = MOST_BYTES) -> dict[str, bytes | None]:
    """Return the files named `COMMIT:PATH`, None for one that is not there; one process for all of them.

    Of a file larger than `most` bytes the first `most` + 1 are returned, so that the caller sees that it is.
    """
    found: dict[str, bytes | None] = {}
    asked = [name for name in names if name.isprintable()]  # a line break would be two questions
    with printed(root, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in asked).encode()) as output:
        for name in asked:
            *_, last = output.readline().split()
            if last.isdigit():
                start, size = output.tell(), int(last)
                found[name] = output.read(min(size, most + 1))
                output.seek(start + size + 1)
            else:
                found[name] = None
    return {name: found.get(name) for name in names}


def identity(root: Path) -> Identity:
    """The committer.  Raises UserError (exit 2) when git has been told none; a guessed one is none."""
    try:
        line = git(root, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").decode()
    except UserError as error:
        raise UserError(
            "a commit needs a git identity: `git config user.name NAME` and `git config user.email ADDRESS`", Exit.USAGE
        ) from error
    name, _, rest = line.rpartition("<")
    return Identity(name.strip(), rest.partition(">")[0])


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the registry's lock, after waiting for it.  All worktrees share it, as they share their tags."""
    folder = git(root, "rev-parse", "--path-format=absolute", "--git-common-dir").decode().rstrip("\n")
    with lock_file(Path(folder) / "vdm-registry.lock", wait=True):
        yield
