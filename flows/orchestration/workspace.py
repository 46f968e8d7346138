"""Give each run a folder: a git worktree on a new branch, which shares DVC's cache, training states and downloads.

A run starts from the commit that is checked out, or a newer one of the upstream branch if machines share versions.  It
commits its results to `runs/NAME`, and touches neither the checkout nor the index nor uncommitted work.  The worktree
is removed when the run ends well, or else when the next run starts, if no process works in it any more.
"""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from flows.core import bounded_yaml, layout
from flows.core.errors import Exit, UserError
from flows.core.params_file import WHOLE, compose, parse_params
from flows.process.groups import find_processes
from flows.process.locks import Holder, lock_file
from flows.project.project import Project
from flows.repository.cache import share_cache
from flows.repository.repository import MODEL

RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
"""What `new_name` makes."""


class Instructions(NamedTuple):
    """What a run is told; see `flows.train_vdm.train_vdm`."""

    preset: str | None = None
    overrides: Mapping[str, Any] = MappingProxyType({})
    force: bool = False
    shared: bool = False
    """Whether its worker shares versions with those of other machines; see flows.orchestration.serve."""
    wait_hours: float = 0.0


NOTHING_SPECIAL = Instructions()


class Run:
    """A run: its project, which is a worktree of the main one, on a branch of its own from the commit `base`."""

    def __init__(self, main: Project, name: str, base: str, given: Instructions = NOTHING_SPECIAL) -> None:
        """Name the folder, which `workspace` makes."""
        self.project = Project(main.worktrees / name)
        self.main, self.name, self.base, self.given = main, name, base, given
        self.branch = layout.RUN_BRANCHES + name

    @property
    def folder(self) -> Path:
        """The worktree."""
        return self.project.folder

    @property
    def reports(self) -> Path:
        """The folder for the run's report, Data Docs, card and samples.  It outlives the worktree."""
        return self.main.folder / layout.RUN_REPORTS / self.name

    def commit(self, message: str) -> str:
        """Commit what the run changed; return the commit."""
        git_text = self.project.repository.git_text
        git_text("add", "--all")
        git_text("commit", "--quiet", "--no-verify", f"--message={message}\n\nRun: {self.name}")
        return git_text("rev-parse", "HEAD")


@contextmanager
def workspace(project: Project, params: str, base: str, given: Instructions = NOTHING_SPECIAL) -> Iterator[Run]:
    """Make a worktree of the commit `base` of the project, with `params` as its params.yaml.

    Raises UserError (exit 5) if git cannot make it.
    """
    with new_name(project) as name:
        run = Run(project, name, base, given)
        project.repository.git_text("worktree", "add", "--quiet", "-b", run.branch, str(run.folder), base)
        (run.folder / layout.PRIVATE).mkdir()
        for shared in (layout.TRAININGS, layout.DOWNLOADS):
            (project.folder / shared).mkdir(exist_ok=True)
            (run.folder / shared).symlink_to(project.folder / shared)
        # A run that repeats one that was interrupted or failed goes on with its costs.
        costs = project.folder / layout.COSTS_OF_RUNS / f"{hashlib.sha256((base + params).encode()).hexdigest()}.json"
        costs.parent.mkdir(exist_ok=True)
        (run.folder / layout.COSTS).symlink_to(costs)
        share_cache(project.repository, run.folder)
        (run.folder / layout.PARAMS).write_text(params, encoding="utf-8")
        # DVC writes git's index, too, and not as git does: git would miss a change of the same second and size.
        run.project.repository.git_text("add", str(layout.PARAMS))
        yield run
        remove_worktree(project, run.folder)


@contextmanager
def new_name(project: Project) -> Iterator[str]:
    """Yield the name of a new run, of which the folder is still to be made, and hold its lock."""
    parent = project.worktrees
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        lock = parent / f"{name}.lock"
        with lock_file(lock, Holder(process=os.getpid()), wait=True):
            if lock.exists():  # else `prune` removed it before it was locked, as one that was left behind
                yield name
                return


def clear_up(project: Project) -> list[str]:
    """Remove the worktrees that ended runs left behind, unless a process works in them; return the runs' names."""
    return [folder.name for folder in sorted(left_behind(project)) if remove_if_ended(project, folder)]


def remove_if_ended(project: Project, folder: Path) -> bool:
    """Remove the worktree of a run, unless the run or another process works in it; return whether it is gone."""
    with lock_file(folder.with_suffix(".lock"), Holder(process=os.getpid())) as other:
        if other or find_processes(folder):
            return False
        remove_worktree(project, folder)
    return True


def left_behind(project: Project) -> set[Path]:
    """Return the worktrees of runs of which a folder or a lock's file is there."""
    parent = project.worktrees
    return {*parent.glob("*/"), *(lock.with_suffix("") for lock in parent.glob("*.lock"))}


def remove_worktree(project: Project, folder: Path) -> None:
    """Remove a worktree, and its branch unless a commit would be lost or still has to get a version."""
    with suppress(UserError):  # it is no worktree, or not yet
        project.repository.git(
            "worktree", "remove", "--force", "--force", folder.name
        )  # twice: also one that is not whole yet
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    branch = layout.RUN_BRANCHES + folder.name
    with suppress(UserError):  # there is no such branch
        others = ["HEAD", f"--exclude={branch}", "--branches", f"--exclude=*/{branch}", "--remotes"]
        # Without its branch, a commit that has no version yet would be taken for a copy; see `is_own`.
        numbered = project.repository.git("tag", "--list", f"{MODEL}@*", "--points-at", branch)
        waits = project.repository.run_of(branch) == folder.name and not numbered
        if not waits and not project.repository.git("rev-list", "--max-count=1", branch, "--not", *others):
            project.repository.git("branch", "--quiet", "-D", branch)


def compose_params(project: Project, base: str, given: Instructions = NOTHING_SPECIAL) -> str:
    """Return the params.yaml of a run: that of the commit `base`, or a preset of it, with the overrides by dotted key.

    Raises UserError (exit 2) for an invalid file, an unknown preset or key, or an invalid value.
    """
    name = str(layout.PARAMS) if given.preset is None else f"{layout.PRESETS}/{given.preset}.yaml"
    found = project.repository.content_of(f"{base}:{name}")
    if found is None:
        listed = project.repository.git_text("ls-tree", "--name-only", base, f"{layout.PRESETS}/").split()
        known = ", ".join(sorted(Path(path).stem for path in listed))
        missing = name if given.preset is None else f"preset {given.preset!r}"
        raise UserError(f"no {missing} in commit {base[:12]}; presets: {known}", Exit.USAGE)
    if given.preset is not None:
        whole = project.repository.content_of(f"{base}:{layout.PRESETS}/{WHOLE}.yaml") or b""
        found = compose(whole.decode(), found.decode()).encode()
    parse_params(found, f"{name} of commit {base[:12]}")
    if not given.overrides:
        return found.decode()
    document = bounded_yaml.load(found)
    for key, value in given.overrides.items():
        section, _, parameter = key.partition(".")
        if parameter not in document.get(section, {}):
            raise UserError(f"override {key} is not a parameter of {name}, such as train.steps", Exit.USAGE)
        document[section][parameter] = value
    text = bounded_yaml.dump(document)
    parse_params(text, f"{name} with the overrides")
    return text
