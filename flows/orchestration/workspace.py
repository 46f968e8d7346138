"""Give each run a folder: a git worktree on a new branch, which shares DVC's cache, training states and downloads.

A run starts from the commit that is checked out, or a newer one of the upstream branch if machines share versions.  It
commits its results to `runs/NAME`, and touches neither the checkout nor the index nor uncommitted work.  The worktree
is removed when the run ends well, or else when the next run starts, if no process works in it any more.
"""

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from configobj import ConfigObj
from dvc.config import Config
from dvc.exceptions import DvcException

from flows.core import bounded_yaml, layout
from flows.core.errors import Exit, UserError
from flows.core.params_file import parse_params
from flows.core.presets import WHOLE, compose
from flows.process.groups import processes_in
from flows.process.locks import lock_file
from flows.registry.git import content_of, contents, git, git_lines, git_text, require_identity
from flows.registry.lock_file import lock_here
from flows.registry.publishing import run_of
from flows.registry.storage import dvc_repository
from flows.registry.versions import MODEL

RESULTS = (f"refs/heads/{layout.RUN_BRANCHES}", f"refs/tags/{MODEL}@*")


class Workspace(NamedTuple):
    """The folder and branch of a run, the root of its repository, and the commit from which it starts."""

    folder: Path
    branch: str
    root: Path
    base: str


@contextmanager
def workspace(root: Path, params: str, base: str) -> Iterator[Workspace]:
    """Make a worktree of the commit `base` of the repository at `root`, with `params` as its params.yaml.

    Raises UserError: see `add_worktree`, `require_identity` and `make_shared`.
    """
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    place = Workspace(root / layout.WORKTREES / name, layout.RUN_BRANCHES + name, root, base)
    with claimed(place.folder) as free:
        if not free:
            raise UserError(f"{place.folder} is in use by another process; run again", Exit.BUSY)
        add_worktree(place)
        require_identity(place.folder)  # git's configuration may depend on the folder and the branch
        (place.folder / layout.PRIVATE).mkdir()
        for shared in (layout.STATES, layout.DOWNLOADS):
            make_shared(root / shared)
            (place.folder / shared).symlink_to(root / shared)
        share_cache(root, place.folder)
        (place.folder / layout.PARAMS).write_text(params, encoding="utf-8")
        yield place
        remove(root, place.folder)


def make_shared(folder: Path) -> None:
    """Make a folder that all runs share.  Raises UserError (exit 5) for a link to a folder that is missing."""
    if folder.is_symlink() and not folder.exists():
        target = folder.readlink()
        raise UserError(f"{folder} is a link to {target}, which is missing; mount its disk and run again", Exit.MISSING)
    folder.mkdir(exist_ok=True)


def add_worktree(place: Workspace) -> None:
    """Make the run's branch and worktree, which has all files, even if the checkout is sparse.

    Raises UserError: exit 2 in a submodule, 5 if git cannot make the worktree.
    """
    if parent := git_text(place.root, "rev-parse", "--show-superproject-working-tree"):
        reason = "in whose worktrees DVC cannot work; serve a clone outside it"
        raise UserError(f"{place.root} is a submodule of {parent}, {reason}", Exit.USAGE)
    try:
        git_text(place.root, "worktree", "add", "--quiet", "-b", place.branch, str(place.folder), place.base)
    except UserError as error:
        free = shutil.disk_usage(place.folder.parent).free / 1e6
        raise UserError(f"{error}; {place.folder.parent} has {free:,.1f} MB of free space", error.code) from error
    if git_text(place.folder, "config", "--type=bool", "--default=false", "core.sparseCheckout") == "true":
        git_text(place.folder, "sparse-checkout", "disable")


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock if it is free; yield whether it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)  # git may list a worktree whose folder is gone
    with lock_file(folder.with_suffix(".lock"), f"process {os.getpid()}") as other:
        yield other is None


def prune(root: Path) -> list[str]:
    """Remove the worktrees that ended runs left behind, unless a process works in them; return the runs' names."""
    gone = []
    for folder in sorted(left_behind(root)):
        with claimed(folder) as free:
            if free and not processes_in(folder):
                remove(root, folder)
                gone.append(folder.name)
    return gone


def left_behind(root: Path) -> set[Path]:
    """Return the worktrees of runs that have a folder, a lock, or an entry in git.

    `git worktree prune` would also remove the entries of other worktrees whose disk is not mounted now.
    """
    parent = (root / layout.WORKTREES).resolve()  # git resolves links
    listed = git_lines(root, "worktree", "list", "--porcelain")
    known = {Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")}
    locks = {lock.with_suffix("") for lock in parent.glob("*.lock")}
    return {folder for folder in known if folder.parent == parent} | {*parent.glob("*/")} | locks


def remove(root: Path, folder: Path) -> None:
    """Remove a worktree, and its branch unless a commit would be lost or still has to get a version."""
    with suppress(UserError):  # it is no worktree, or not yet
        # By its name: git knows it at the old place if the project was moved.
        git(root, "worktree", "remove", "--force", "--force", folder.name)
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
    name = f"{layout.PRESETS}/{preset}.yaml" if preset else layout.PARAMS
    found = content_of(root, f"{base}:{name}")
    if found is None:
        listed = git_text(root, "ls-tree", "--name-only", base, f"{layout.PRESETS}/").split()
        known = ", ".join(sorted(Path(path).stem for path in listed))
        missing = f"preset {preset!r}" if preset else name
        raise UserError(f"no {missing} in commit {base[:12]}; presets: {known}", Exit.USAGE)
    if preset:
        whole = content_of(root, f"{base}:{layout.PRESETS}/{WHOLE}.yaml") or b""
        found = compose(whole.decode(), found.decode()).encode()
    parse_params(found, f"{name} of commit {base[:12]}")
    if not overrides:
        return found.decode()
    try:
        document = bounded_yaml.load(found)
    except ValueError as error:  # ruamel's two readers differ in odd cases
        raise UserError(f"{name} of commit {base[:12]}: cannot be edited: {error}", Exit.USAGE) from error
    for key, value in overrides.items():
        section, _, parameter = key.partition(".")
        if parameter not in document.get(section, {}):
            raise UserError(f"override {key} is not a parameter of {name}, such as train.steps", Exit.USAGE)
        document[section][parameter] = value
    text = bounded_yaml.dump(document)
    parse_params(text, f"{name} with the overrides")
    return text


def finished(place: Workspace, *, shared: bool) -> str | None:
    """Return a commit that already has the results of the workspace's parameters, or None.

    The candidates are the commit from which the run starts and the three newest commits with the same parameters.  If
    the first one records images, the others must have the same.  The results are then checked out in the workspace.  If
    machines share versions, missing files come from DVC's remote.
    """
    images = recorded_images(place.folder)
    for made in [place.base, *alike(place)[:3]]:
        try:
            theirs = take_results(place, made)
        except (UserError, OSError):
            continue
        if images not in (None, theirs):
            continue
        if is_complete(place.folder, fetch=shared):
            return made
    git_text(place.folder, "restore", f"--source={place.base}", "--staged", "--worktree", ".", ":!params.yaml")
    return None


def take_images(place: Workspace) -> None:
    """Check out the recorded images, if there are any, from the cache or the remote.  DVC would read their source anew.

    Raises UserError (exit 5) if neither has them, NetworkError (exit 5) if the remote does not answer.
    """
    if recorded_images(place.folder):
        with dvc_repository(place.folder) as repo:
            repo.fetch([str(place.folder / layout.IMAGES)])
            repo.checkout([str(place.folder / layout.IMAGES)], force=True)


def take_results(place: Workspace, commit: str) -> str | None:
    """Check out a commit's dvc.lock and reports; return the digest of its images.  Raises UserError and OSError."""
    # Only the reports that DVC does not cache: it would check out what a `.dvc` file beside them names.
    in_git = [str(path) for path in layout.IN_GIT]
    there = git_lines(place.root, "ls-tree", "-r", "--name-only", commit, *in_git)
    taken = [path for path in in_git if path in there]
    git_text(place.folder, "checkout", "--quiet", commit, "--", str(layout.DVC_LOCK), *taken)
    return lock_here(place.folder).outputs.get(str(layout.IMAGES))


def recorded_images(folder: Path) -> str | None:
    """Return the digest of the images in the dvc.lock of a new worktree; None if `download` has other inputs now.

    The images themselves may be missing.  The digest still counts, since DVC does not watch where images come from.
    Raises UserError (exit 5) if DVC cannot work in the folder.
    """
    with dvc_repository(folder) as repo, suppress(UserError, OSError, DvcException):
        found = {stage.rpartition(":")[2]: causes for stage, causes in repo.status().items()}
        if all(isinstance(cause, dict) and "changed outs" in cause for cause in found.get("download", [])):
            return lock_here(folder).outputs.get(str(layout.IMAGES))
    return None


def is_complete(folder: Path, *, fetch: bool) -> bool:
    """Check out the recorded outputs; return whether all are there, made of the inputs that the folder has."""
    with dvc_repository(folder) as repo, suppress(DvcException):  # something is not in the cache
        if fetch:
            repo.fetch()
        repo.checkout(force=True)
        return not repo.status()
    return False


def alike(place: Workspace) -> list[str]:
    """Return the commits of runs and versions with the workspace's parameters: the newest first, future ones last."""
    # `*objectname` is the commit of a tag, and empty for a branch.  git cannot sort by a forged date.
    form = "--format=%(creatordate:unix) %(*objectname) %(objectname)"
    listed = [line.split() for line in git_text(place.root, "for-each-ref", form, *RESULTS).splitlines()]
    made = [(int(line[0]), line[1]) for line in listed if line[0].isdecimal()]
    dated = sorted((at < time.time() + 86_400, at, commit) for at, commit in made)  # a clock may have been wrong
    commits = dict.fromkeys(commit for _, _, commit in reversed(dated))
    wanted = (place.folder / layout.PARAMS).read_bytes()
    found = contents(place.root, [f"{commit}:{layout.PARAMS}" for commit in commits])
    return [commit for commit in commits if found[f"{commit}:{layout.PARAMS}"] == wanted]


def commit(place: Workspace, message: str) -> str | None:
    """Commit what the run changed; return the commit, or None if nothing changed or another run has the same files."""
    git_text(place.folder, "add", "--all")
    tree = git_text(place.folder, "write-tree")
    if any(git_text(place.root, "rev-parse", f"{made}^{{tree}}") == tree for made in [place.base, *alike(place)[:3]]):
        return None
    git_text(place.folder, "commit", "--quiet", "--no-verify", f"--message={message}\n\nRun: {place.folder.name}")
    return git_text(place.folder, "rev-parse", "HEAD")
