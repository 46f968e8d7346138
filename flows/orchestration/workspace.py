"""A run's own folder: a git worktree and a branch, with DVC's cache and the saved training states in common.

Nobody's checkout, index or uncommitted work is touched: a run takes the commit that is checked out in the repository,
and leaves a commit of its own on `runs/NAME`.  The worktree goes when the run ends well; one that a failed or killed
run left behind goes when the next run starts, if no process works in it any more.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from configobj import ConfigObj
from dvc.config import Config
from dvc.exceptions import DvcException
from dvc.repo import Repo
from ruamel.yaml import YAML

from flows.core import bounded_yaml, layout
from flows.core.errors import Exit, UserError
from flows.core.params import parse_params
from flows.process.groups import processes_in
from flows.process.locks import lock_file
from flows.registry.git import Tag, contents, git_text
from flows.registry.lineage import read_lock
from flows.registry.storage import cached_at, files, opened
from flows.registry.versions import is_decided

RESULTS = (f"refs/heads/{layout.RUN_BRANCHES}", "refs/tags/vdm@*")


class Workspace(NamedTuple):
    """Where a run works: its folder, its branch, the repository it belongs to and the commit it starts from."""

    folder: Path
    branch: str
    root: Path
    base: str


@contextmanager
def workspace(root: Path, params: str) -> Iterator[Workspace]:
    """A worktree of the commit that is checked out at `root`, with `params` as its params.yaml.

    Raises UserError (exit 5) where git cannot make one.
    """
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    place = Workspace(
        root / layout.WORKTREES / name, layout.RUN_BRANCHES + name, root, git_text(root, "rev-parse", "HEAD")
    )
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    with claimed(place.folder):
        git_text(root, "worktree", "add", "--quiet", "-b", place.branch, str(place.folder), place.base)
        (place.folder / layout.PRIVATE).mkdir()
        (root / layout.STATES).mkdir(exist_ok=True)
        (place.folder / layout.STATES).symlink_to(root / layout.STATES)
        share_cache(root, place.folder)
        (place.folder / layout.PARAMS).write_text(params)
        yield place
        remove(root, place.folder)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; yield whether it was free."""
    with lock_file(folder.with_suffix(".lock"), f"process {os.getpid()}") as other:
        yield other is None


def prune(root: Path) -> list[str]:
    """Remove the worktrees in which nothing works any more; returns their names."""
    gone = []
    for folder in sorted((root / layout.WORKTREES).glob("*/")):
        with claimed(folder) as free:
            if free and not processes_in(folder):
                remove(root, folder)
                gone.append(folder.name)
    git_text(root, "worktree", "prune")
    return gone


def remove(root: Path, folder: Path) -> None:
    """Remove a worktree, and its branch unless that holds a commit of the run."""
    subprocess.run(["git", "worktree", "remove", "--force", "--force", folder], cwd=root, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    git_text(root, "worktree", "prune")
    folder.with_suffix(".lock").unlink(missing_ok=True)
    branch = layout.RUN_BRANCHES + folder.name
    subjects = subprocess.run(
        ["git", "log", "--format=%(trailers:key=Run,valueonly)", "-1", branch], cwd=root, capture_output=True, text=True
    )
    if subjects.returncode == 0 and folder.name not in subjects.stdout:
        git_text(root, "branch", "--quiet", "-D", branch)


def share_cache(root: Path, folder: Path) -> None:
    """Let DVC in `folder` use the cache and the remotes of the repository at `root`."""
    ours = Config(str(root / ".dvc"))
    with Repo(str(root)) as repo:
        cache = repo.cache.local_cache_dir
    # Written here, in UTF-8: DVC writes its configuration as ASCII, and fails on the path of a folder with an umlaut.
    config = ConfigObj(encoding="utf-8")
    config.filename = str(folder / ".dvc" / "config.local")
    config["core"] = {**ours.get("core", {}), "autostage": True}
    config["cache"] = {**ours.get("cache", {}), "dir": cache}
    for name, settings in ours.get("remote", {}).items():
        # The paths are absolute by now: a remote beside the repository is not beside the worktree.
        config[f'remote "{name}"'] = dict(settings)
    config.write()


def compose_params(root: Path, preset: str | None, overrides: Mapping[str, Any]) -> str:
    """params.yaml of a run: the committed one or a committed preset, with dotted keys replaced, checked.

    Raises UserError (exit 2) for a file that is not valid, an unknown preset or key, a value that the key does not
    take.
    """
    name = f"{layout.PRESETS}/{preset}.yaml" if preset else layout.PARAMS
    content = contents(root, [f"HEAD:{name}"])[f"HEAD:{name}"]
    if content is None:
        listed = git_text(root, "ls-tree", "--name-only", "HEAD", f"{layout.PRESETS}/").split()
        known = ", ".join(sorted(Path(path).stem for path in listed))
        missing = f"preset {preset!r}" if preset else name
        raise UserError(f"no {missing} in the commit that is checked out; presets: {known}", Exit.USAGE)
    parse_params(content, f"{name} of the commit that is checked out")
    if not overrides:
        return content.decode()
    document = bounded_yaml.load(content)
    for key, value in overrides.items():
        *sections, last = key.split(".")
        node = document
        for section in sections:
            node = node.get(section) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping) or isinstance(node.get(last, node), Mapping):
            raise UserError(f"override {key} is not a known parameter", Exit.USAGE)
        node[last] = value  # type: ignore[index]
    stream = StringIO()
    YAML(typ="rt").dump(document, stream)
    parse_params(stream.getvalue(), f"{name} with the overrides")
    return stream.getvalue()


def finished(place: Workspace) -> str | None:
    """The commit that has the results of the workspace's parameters already: the one it starts from, or a recent run's.

    Those results are then in the workspace.
    """
    for made in [place.base, *alike(place)[:3]]:
        try:
            require_contained(place.root, made)
            # With the reports: what of them DVC does not cache is in git.
            git_text(place.folder, "checkout", "--quiet", made, "--", str(layout.DVC_LOCK), str(layout.REPORTS))
        except (UserError, OSError):
            continue
        with Repo(str(place.folder)) as repo:
            try:
                repo.checkout(force=True)
            except DvcException:  # something is not in the cache
                continue
            if not repo.status():
                return made
    git_text(place.folder, "restore", f"--source={place.base}", "--staged", "--worktree", ".", ":!params.yaml")
    return None


def require_contained(root: Path, commit: str) -> None:
    """Raise UserError or OSError unless DVC can check out the commit's outputs and stays in its folder.

    DVC follows links, and the paths in the listing of a folder, wherever they lead.  A version may come from others.
    """
    if any(
        line.startswith("120000") for line in git_text(root, "ls-tree", "-r", commit, str(layout.REPORTS)).splitlines()
    ):
        raise UserError(f"commit {commit[:12]} has links among its reports", Exit.MISSING)
    outputs = read_lock(root, Tag(commit[:12], commit, "", "")).outputs
    with opened(root) as repo:
        for digest in outputs.values():
            list(files(digest, cached_at(repo)))


def alike(place: Workspace) -> list[str]:
    """The commits of runs and versions that have the workspace's parameters, the newest first."""
    # A tag's second object is its commit; a branch has only the one.
    listed = git_text(
        place.root, "for-each-ref", "--sort=-creatordate", "--format=%(*objectname) %(objectname)", *RESULTS
    )
    commits = dict.fromkeys(line.split()[0] for line in listed.splitlines())
    files = contents(place.root, [f"{commit}:params.yaml" for commit in commits])
    wanted = (place.folder / layout.PARAMS).read_bytes()
    return [commit for commit in commits if files[f"{commit}:params.yaml"] == wanted]


def pending(place: Workspace, made: str) -> bool:
    """Return whether the commit is a run's whose model is no version yet, or has not met the champion."""
    return bool(run_of(place.root, made)) and not is_decided(place.root, made)


def branch_of(place: Workspace, made: str) -> str:
    """Return the branch on which a run left the commit."""
    return layout.RUN_BRANCHES + run_of(place.root, made)


def run_of(root: Path, commit: str) -> str:
    """Return the name of the run that made a commit; '' where no run did."""
    return git_text(root, "log", "-1", "--format=%(trailers:key=Run,valueonly)", commit)


def commit(place: Workspace, message: str) -> str | None:
    """Commit what the run changed; the commit, None when nothing that git tracks did."""
    git_text(place.folder, "add", "--all")
    if not git_text(place.folder, "status", "--porcelain"):
        return None
    name = place.folder.name
    git_text(place.folder, "commit", "--quiet", "--no-verify", f"--message={message}\n\nRun: {name}")
    return git_text(place.folder, "rev-parse", "HEAD")
