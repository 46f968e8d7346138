"""A folder with git and DVC: git commands, here and at the remote `origin`, and DVC's handle."""

import logging
import os
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.process.groups import search_path
from flows.process.locks import lock_file

if TYPE_CHECKING:
    from flows.repository.commit import Commit, Named

# Hooks are for the commits of people: a hook of `dvc install` fails in a worktree that has no outputs yet.  So are
# signatures of commits; tags are signed if git's `tag.gpgSign` says so.  Messages are written and read as UTF-8,
# whatever the repository says.
SETTINGS = (
    "core.hooksPath=/dev/null",
    "commit.gpgSign=false",
    "log.showSignature=false",
    "i18n.commitEncoding=UTF-8",
    "i18n.logOutputEncoding=UTF-8",
)
UNATTENDED = [option for setting in SETTINGS for option in ("-c", setting)]
REMOTE = "origin"
TAGS, HEADS = "refs/tags/", "refs/heads/"
MODEL = "vdm"
"""The name of the model in GTO's tags."""
# A remote may accept the connection and never answer.
LIST_SECONDS, TRANSFER_SECONDS = 60, 900


class Target(NamedTuple):
    """What a branch or tag names: an object, and its commit, which differs from the object for an annotated tag."""

    digest: str
    commit: str


class Repository:
    """A folder with git and DVC, at the top of its git repository or not: see `require_top`.

    It holds nothing that may change, so that it may be kept and shared between threads.
    """

    def __init__(self, folder: Path = Path()) -> None:
        """Look at nothing yet."""
        self.folder = folder

    def git(
        self,
        *arguments: str,
        stdin: Iterable[str] | None = None,
        seconds: float | None = None,
        errors: bool = False,
    ) -> bytes:
        """Return what a git command prints, or with `errors` what it says on stderr.

        It runs no hooks, except `push`.  `stdin` has the lines that the command reads.  Raises UserError (exit 5) if
        git fails, or takes longer than `seconds`.
        """
        # Nobody can enter a password, and `ask` reads English.  The hook that `dvc install` writes calls `dvc`.
        environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LANGUAGE": "C", "PATH": search_path()}
        given = None if stdin is None else "".join(f"{line}\n" for line in stdin).encode()
        command = ["git", *([] if arguments[0] == "push" else UNATTENDED), *arguments]
        place = f"git {arguments[0]} in {self.folder.absolute()}"
        try:
            result = subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                input=given,
                timeout=seconds,
                capture_output=True,
                check=False,
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
        return result.stderr if errors else result.stdout

    def git_text(self, *arguments: str) -> str:
        """Return what a git command prints as text, stripped.  Raises UserError (exit 5)."""
        return self.git(*arguments).decode(errors="replace").strip()

    def git_lines(self, *arguments: str) -> list[str]:
        """Return the lines that a git command prints, without empty ones.  Raises UserError (exit 5)."""
        return [line for line in self.git(*arguments).decode(errors="replace").split("\n") if line]

    def require_top(self) -> None:
        """Raise UserError: exit 2 unless the folder is the top of its git repository, 5 outside a repository."""
        top = self.git_text("rev-parse", "--show-toplevel")
        if Path(top).resolve() != self.folder.resolve():
            reason = f"not the top folder of its git repository, {top}, where a project with versions must be"
            raise UserError(
                f"{self.folder.absolute()}: {reason}; change to that folder, or move the project there", Exit.USAGE
            )

    def require_identity(self) -> None:
        """Raise UserError (exit 2) unless an author and a committer are configured in UTF-8; git may not guess one."""
        try:
            for role in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
                self.git("-c", "user.useConfigOnly=true", "var", role).decode()
        except (UserError, UnicodeDecodeError) as error:
            advice = "`git config user.name NAME` and `git config user.email ADDRESS`, in UTF-8"
            raise UserError(f"git needs an identity: {advice}", Exit.USAGE) from error

    def contents(self, names: list[str]) -> dict[str, bytes | None]:
        """Return the contents of files by their names `COMMIT:PATH`, None for a missing one.  Runs git once."""
        output = self.git("cat-file", "--batch", stdin=names)
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

    def content_of(self, name: str) -> bytes | None:
        """Return the content of a file by its name `COMMIT:PATH`; None if it is missing."""
        return self.contents([name])[name]

    @contextmanager
    def registry_lock(self) -> Iterator[None]:
        """Wait for the registry's lock and hold it.  All worktrees of a repository share one lock, like their tags."""
        folder = self.git_text("rev-parse", "--git-common-dir")  # relative to the folder, or absolute
        with lock_file(self.folder / folder / "vdm-registry.lock", wait=True):
            yield

    def refs(self, remote: str = ".") -> dict[str, Target]:
        """Return the targets of the branches and tags, here or of a remote.  Raises NetworkError (exit 5)."""
        listed = self.ask("ls-remote", "--heads", "--tags", remote, seconds=LIST_SECONDS).decode(errors="replace")
        found: dict[str, Target] = {}
        for digest, name in (line.split("\t", 1) for line in listed.split("\n") if line):
            ref = name.removesuffix("^{}")  # git lists an annotated tag twice: then with its commit's digest
            found[ref] = Target(found[ref].digest if ref in found else digest, digest)
        return found

    def ask(self, *arguments: str, seconds: float = TRANSFER_SECONDS) -> bytes:
        """Run a git command that talks to a remote; return what it prints.

        Raises NetworkError (exit 5) if it fails, UserError (exit 5) if a hook or a rule of the remote declines a push.
        """
        try:
            return self.git(*arguments, seconds=seconds)
        except UserError as error:
            if "hook declined" in str(error) or "push declined" in str(error):
                raise
            raise NetworkError(str(error)) from error

    def first_commit(self, *, shared: bool) -> str:
        """Return the commit from which a run starts: the one that is checked out.

        If machines share versions, it is the commit of the upstream branch where that is newer.
        """
        head = self.git_text("rev-parse", "HEAD")
        if shared:
            with suppress(UserError):  # no branch, no upstream branch, or a branch with local commits
                newest = self.git_text("rev-parse", "--verify", "--quiet", "@{upstream}")
                self.git_text("merge-base", "--is-ancestor", head, newest)
                return newest
        return head

    def at(self, named: "Named") -> "Commit":
        """Return the commit of a version or a tag, which messages call by its name."""
        from flows.repository.commit import Commit  # which imports this file

        return Commit(self, named.commit, named.name)

    def name_of(self, commit: str) -> str:
        """Return the version of a commit, or if it has none, its first digits."""
        tags = self.git_lines("tag", "--points-at", commit, "--list", f"{MODEL}@*")
        return next((name for name in tags if "!" not in name), commit[:12])

    def run_of(self, commit: str) -> str:
        """Return the name of the run that made a commit; '' if no run did."""
        return self.git_text("log", "-1", "--format=%(trailers:key=Run,valueonly)", commit)

    def is_own(self, commit: str) -> bool:
        """Whether a run made this very commit.  A rebased or squashed copy has the run's name, but no new model."""
        if not (run := self.run_of(commit)):
            return False
        refs = f"{HEADS}{layout.RUN_BRANCHES}{run}", f"{TAGS}{MODEL}@*"
        return commit in self.git_text("for-each-ref", "--format=%(objectname) %(*objectname)", *refs).split()

    def objects(self, commit: str, paths: list[str]) -> list[str]:
        """Return git's digests of files and folders at a commit; of one that it lacks, that it is missing."""
        names = [f"{commit}:{path}" for path in paths]
        found = self.git("cat-file", "--batch-check=%(objectname)", stdin=names).decode().splitlines()
        return [line.replace(commit, "") for line in found]

    @contextmanager
    def dvc(self) -> Iterator[Any]:
        """Open DVC's repository, without the lines that DVC logs.  Its errors in the block are UserError (exit 5)."""
        from dvc.exceptions import DvcException  # DVC takes a second
        from dvc.logger import set_loggers_level
        from dvc.repo import Repo

        try:
            with set_loggers_level(logging.CRITICAL + 1), Repo(str(self.folder)) as repo:
                yield repo
        except DvcException as error:
            raise UserError(f"{self.folder}: {brief(error)}", Exit.MISSING) from error
        except sqlite3.Error as error:
            reason = f"DVC's databases (in core.site_cache_dir, or /var/tmp/dvc): {brief(error)}; is that disk full?"
            raise UserError(f"{self.folder}: {reason}", Exit.MISSING) from error
