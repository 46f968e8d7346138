"""Give each run a folder: a git worktree on a new branch, which shares DVC's cache, training states and downloads.

A run starts from the commit that is checked out, or a newer one of the upstream branch if machines share versions.  It
commits its results to `runs/NAME`, and touches neither the checkout nor the index nor uncommitted work.  The worktree
is removed when the run ends well, or else when the next run starts, if no process works in it any more.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from configobj import ConfigObj
from dvc.config import Config

from flows.core import bounded_yaml, layout
from flows.core.errors import Exit, UserError
from flows.core.params import PUBLISHED_FOLDER
from flows.core.params_file import WHOLE, compose, parse_params
from flows.process.groups import processes_in
from flows.process.locks import lock_file
from flows.registry.git import content_of, git, git_text
from flows.registry.publishing import run_of
from flows.registry.storage import dvc_repository
from flows.registry.versions import MODEL


class Workspace(NamedTuple):
    """The folder and branch of a run, the root of its repository, and the commit from which it starts."""

    folder: Path
    branch: str
    root: Path
    base: str

    @property
    def reports(self) -> Path:
        """Return the folder for the run's report, Data Docs, card and samples.  It outlives the worktree."""
        return self.root / layout.RUN_REPORTS / self.folder.name


@contextmanager
def workspace(root: Path, params: str, base: str) -> Iterator[Workspace]:
    """Make a worktree of the commit `base` of the repository at `root`, with `params` as its params.yaml.

    Raises UserError (exit 5) if git cannot make it.
    """
    with new_folder(root) as folder:
        place = Workspace(folder, layout.RUN_BRANCHES + folder.name, root, base)
        git_text(root, "worktree", "add", "--quiet", "-b", place.branch, str(place.folder), base)
        (place.folder / layout.PRIVATE).mkdir()
        for shared in (layout.STATES, layout.DOWNLOADS):
            (root / shared).mkdir(exist_ok=True)
            (place.folder / shared).symlink_to(root / shared)
        share_cache(root, place.folder)
        (place.folder / layout.PARAMS).write_text(params, encoding="utf-8")
        # DVC writes git's index, too, and not as git does: git would miss a change of the same second and size.
        git_text(place.folder, "add", str(layout.PARAMS))
        yield place
        remove(root, place.folder)


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """Yield the folder of a new run, which is still to be made, and hold its lock."""
    parent = root / layout.WORKTREES
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        lock = parent / f"{name}.lock"
        with lock_file(lock, f"process {os.getpid()}", wait=True):
            if lock.exists():  # else `prune` removed it before it was locked, as one that was left behind
                yield parent / name
                return


def prune(root: Path) -> list[str]:
    """Remove the worktrees that ended runs left behind, unless a process works in them; return the runs' names."""
    gone = []
    for folder in sorted(left_behind(root)):
        with lock_file(folder.with_suffix(".lock"), f"process {os.getpid()}") as other:
            if not other and not processes_in(folder):
                remove(root, folder)
                gone.append(folder.name)
    return gone


def left_behind(root: Path) -> set[Path]:
    """Return the worktrees of runs of which a folder or a lock's file is there."""
    parent = root / layout.WORKTREES
    return {*parent.glob("*/"), *(lock.with_suffix("") for lock in parent.glob("*.lock"))}


def remove(root: Path, folder: Path) -> None:
    """Remove a worktree, and its branch unless a commit would be lost or still has to get a version."""
    with suppress(UserError):  # it is no worktree, or not yet
        git(root, "worktree", "remove", "--force", "--force", folder.name)  # twice: also one that is not whole yet
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    branch = layout.RUN_BRANCHES + folder.name
    with suppress(UserError):  # there is no such branch
        others = ["HEAD", f"--exclude={branch}", "--branches", f"--exclude=*/{branch}", "--remotes"]
        # Without its branch, a commit that has no version yet would be taken for a copy; see `is_own`.
        numbered = git(root, "tag", "--list", f"{MODEL}@*", "--points-at", branch)
        waits = run_of(root, branch) == folder.name and not numbered
        if not waits and not git(root, "rev-list", "--max-count=1", branch, "--not", *others):
            git(root, "branch", "--quiet", "-D", branch)


def share_cache(root: Path, folder: Path) -> None:
    """Let DVC in `folder` use the cache and the remotes of the repository at `root`."""
    ours = Config(str(root / ".dvc"))
    with dvc_repository(root) as repo:
        cache = repo.cache.local_cache_dir
    # Not written by DVC, which writes its configuration as ASCII and fails on a path with an umlaut.
    config = ConfigObj(encoding="utf-8")
    config.filename = str(folder / ".dvc" / "config.local")
    Path(config.filename).touch(mode=0o600)  # it may contain passwords
    # By default DVC keeps databases of every folder that it ever worked in, in /var/tmp; these go with the worktree.
    databases = str(folder / ".dvc" / "tmp")
    config["core"] = {"site_cache_dir": databases, **ours.get("core", {}), "autostage": True}
    config["cache"] = {**ours.get("cache", {}), "dir": cache}
    for name, settings in ours.get("remote", {}).items():
        # DVC made the paths absolute, so a remote beside the repository is found from the worktree, too.
        config[f'remote "{name}"'] = dict(settings)
    config.write()


def compose_params(root: Path, base: str, preset: str | None, overrides: Mapping[str, Any]) -> str:
    """Return the params.yaml of a run: that of the commit `base`, or a preset of it, with the overrides by dotted key.

    Raises UserError (exit 2) for an invalid file, an unknown preset or key, or an invalid value.
    """
    name = f"{layout.PRESETS}/{preset}.yaml" if preset else str(layout.PARAMS)
    found = content_of(root, f"{base}:{name}")
    if found is None:
        listed = git_text(root, "ls-tree", "--name-only", base, f"{layout.PRESETS}/").split()
        known = ", ".join(sorted(Path(path).stem for path in listed))
        missing = f"preset {preset!r}" if preset else name
        raise UserError(f"no {missing} in commit {base[:12]}; presets: {known}", Exit.USAGE)
    if preset:
        whole = content_of(root, f"{base}:{layout.PRESETS}/{WHOLE}.yaml") or b""
        found = compose(whole.decode(), found.decode()).encode()
    if parse_params(found, f"{name} of commit {base[:12]}").data.source is None:
        raise UserError(f"{name}: data.source must be a path; write {PUBLISHED_FOLDER} instead of null", Exit.USAGE)
    if not overrides:
        return found.decode()
    document = bounded_yaml.load(found)
    for key, value in overrides.items():
        section, _, parameter = key.partition(".")
        if parameter not in document.get(section, {}):
            raise UserError(f"override {key} is not a parameter of {name}, such as train.steps", Exit.USAGE)
        document[section][parameter] = value
    text = bounded_yaml.dump(document)
    parse_params(text, f"{name} with the overrides")
    return text


def commit(place: Workspace, message: str) -> str:
    """Commit what the run changed; return the commit."""
    git_text(place.folder, "add", "--all")
    git_text(place.folder, "commit", "--quiet", "--no-verify", f"--message={message}\n\nRun: {place.folder.name}")
    return git_text(place.folder, "rev-parse", "HEAD")
