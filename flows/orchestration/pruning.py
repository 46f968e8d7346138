"""Remove what an installation no longer needs: `vdmctl prune`.

It is decided first, as a list of things, each of which goes or has a reason to stay; then what goes is removed.

Refused versions that are not among the newest go: their tags, the branches of their runs, and the files in DVC's cache
that no other commit needs.  The tags that say why they were refused stay, since the evidence of later versions counts
them (`num_judged`).  Nothing on a remote is deleted.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.files import find_unfinished, remove
from flows.orchestration import workspace
from flows.orchestration.answers import CHAMPIONS, NEWEST, Pruned, Removed
from flows.orchestration.status import size_of
from flows.process.groups import find_processes
from flows.process.locks import folder_of_devices, list_held_locks
from flows.project.project import Project
from flows.registry.publishing import RUNS
from flows.registry.versions import FORMER, Registry, open_registry
from flows.repository.cache import digests_used_at, list_lacking, list_unused, lock_dvc
from flows.repository.repository import HEADS, MODEL, REMOTE, TAGS, Target
from flows.repository.tags import CHAMPION, REFUSED

OLD = 14 * 24 * 3600.0
"""Seconds after which what nobody wrote to is abandoned: a weekly schedule had two chances to continue a training."""
WRITTEN = (layout.IMAGES.parent, layout.TRAINED.parent, layout.REPORTS, layout.DOWNLOADS)
"""Where a stage or a command that was killed leaves a folder half written."""
BY_AGE = {"reports": layout.RUN_REPORTS, "fetched_models": layout.FETCHED, "training_states": layout.TRAININGS}
WHY = {
    "worktrees": "the run has ended",
    "branches": "of a version that goes",
    "versions": "refused, and not among the newest",
    "cached_files": "nothing that stays needs them",
    "unfinished": "whoever wrote them has ended",
    "reports": "14 days old, and of no version that stays",
    "fetched_models": "14 days old",
    "training_states": "nothing was written for 14 days",
}
"""The kinds of things, in the order of the answer, and why one goes."""


class Thing(NamedTuple):
    """Something that may go: its kind, its name, and why it stays, "" if it goes.

    A version and a branch have a `ref` of git, with its digest, all others a `path`.
    """

    kind: str
    name: str
    stays: str = ""
    path: Path = Path()
    ref: str = ""
    digest: str = ""


def prune(project: Project, *, keep: int, dry_run: bool) -> Pruned:
    """Remove refused versions that are not among the `keep` newest, and what nothing needs; return what goes and stays.

    Raises UserError: exit 6 while a run, a trainer or a DVC command is in progress; 5 outside a repository with git and
    DVC, or if a listing of a version that stays is lost; 2 below the top of a repository, or for a cache that other
    projects may use.  Raises NetworkError (exit 5) when a remote does not answer.  Then nothing is removed.
    """
    project.repository.require_top()
    others = find_other_worktrees(project)
    require_idle([project.folder.resolve(), *others])
    with lock_dvc(project.repository) as repo, project.repository.registry_lock():
        things = list_things(project, repo, others, keep)
        gone = [each for each in things if not each.stays]
        removed = {kind: describe([each for each in gone if each.kind == kind], kind) for kind in WHY}
        if not dry_run:
            remove_things(project, gone)
    kept = {each.name: each.stays for each in things if each.stays}
    return Pruned(dry_run=dry_run, keep=keep, removed=removed, kept=kept)


def find_other_worktrees(project: Project) -> list[Path]:
    """Return the other worktrees of the repository that have DVC, without those of runs."""
    root = project.folder.resolve()
    of_runs = (root / layout.WORKTREES).resolve()
    listed = project.repository.git_lines("worktree", "list", "--porcelain")
    found = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    return [each for each in found if each != root and not each.is_relative_to(of_runs) and (each / ".dvc").is_dir()]


def list_things(project: Project, repo: Any, others: list[Path], keep: int) -> list[Thing]:
    """Return what goes, and the versions and half-written folders that stay.  Raises what `prune` raises."""
    root, registry, refs = project.folder.resolve(), open_registry(project.repository), project.repository.refs()
    kept, used = reasons_to_keep(repo, registry, keep)
    versions = [
        Thing(
            "versions", each.name, kept.get(each.name, ""), ref=TAGS + each.name, digest=refs[TAGS + each.name].digest
        )
        for each in registry.versions
    ]
    gone = {each.commit for each in registry.versions if each.name not in kept}
    branches = list(find_branches(project, refs, gone))
    going = {each.ref for each in (*versions, *branches) if not each.stays}
    # The tag of a refusal stays, and keeps no files.
    needed = {
        target.commit
        for name, target in refs.items()
        if name not in going and not (name.startswith(f"{TAGS}{MODEL}#") and target.commit in gone)
    }
    for version in registry.versions:
        if version.name in kept and version.commit not in used:
            used[version.commit] = digests_used_at(repo, version)  # or refuse: nobody knows what a lost listing needs
    digests = set[str]().union(*(found for commit, found in used.items() if commit in needed))
    files = list_unused(repo, root, others, needed - used.keys(), digests, younger_than=OLD)
    reports_kept = {project.repository.run_of(each.commit) for each in registry.versions if each.name in kept}
    return [
        *(Thing("worktrees", each.name, path=each) for each in sorted(workspace.left_behind(project))),
        *branches,
        *versions,
        *(Thing("cached_files", each.parent.name + each.name, path=each) for each in files),
        *(
            Thing("unfinished", str(folder.relative_to(root)), stays, folder)
            for place in WRITTEN
            for folder, stays in find_unfinished(root / place)
        ),
        *(
            Thing(kind, folder.name, path=folder)
            for kind, place in BY_AGE.items()
            for folder in old_folders(root / place)
            if kind != "reports" or folder.name not in reports_kept
        ),
    ]


def find_branches(project: Project, refs: dict[str, Target], commits: set[str]) -> Iterator[Thing]:
    """Yield the branches of runs that made these commits, unless they are checked out."""
    listed = project.repository.git_lines("worktree", "list", "--porcelain")
    for name, target in refs.items():
        if name.startswith(RUNS) and target.commit in commits and f"branch {name}" not in listed:
            yield Thing("branches", name.removeprefix(HEADS), ref=name, digest=target.digest)


def describe(things: list[Thing], kind: str) -> Removed:
    """Return the names of things of one kind, and their bytes on disk, which are unknown of git's branches and tags."""
    sizes = [size_of(each.path) if each.path.is_dir() else each.path.lstat().st_size for each in things if not each.ref]
    size = None if kind in ("branches", "versions") else sum(sizes)
    return Removed(count=len(things), bytes=size, names=[each.name for each in things], reason=WHY[kind])


def remove_things(project: Project, things: list[Thing]) -> None:
    """Remove what was decided to go."""
    for each in things:
        if each.kind == "worktrees":
            workspace.remove_if_ended(project, each.path)
    # The versions before their files, since nobody could fetch a version whose files are gone.
    project.repository.git(
        "update-ref", "--stdin", stdin=[f"delete {each.ref} {each.digest}" for each in things if each.ref]
    )
    for each in things:
        if each.kind == "cached_files":
            each.path.unlink(missing_ok=True)
        elif each.kind in ("unfinished", *BY_AGE):
            remove(each.path)


def require_idle(folders: list[Path]) -> None:
    """Raise UserError (exit 6) if a run, an experiment or a trainer works in a worktree: it may use any cached file."""
    for name, holder in list_held_locks(folder_of_devices()).items():
        if holder.folder and any(Path(holder.folder).is_relative_to(folder) for folder in folders):
            raise UserError(f"{holder} trains on {Path(name).stem}; prune when it has ended", Exit.BUSY)
    for folder in folders:
        for name, holder in sorted(list_held_locks(folder / layout.WORKTREES).items()):
            raise UserError(f"run {Path(name).stem} is in progress ({holder}); prune when it has ended", Exit.BUSY)
        for place in (folder / layout.WORKTREES, folder / ".dvc/tmp/exps"):
            for process in find_processes(place):
                raise UserError(f"process {process} works in {place}; prune when it has ended", Exit.BUSY)


def reasons_to_keep(repo: Any, registry: Registry, keep: int) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return the names of the versions that stay, with the reason, and the files of those whose files were looked at.

    The latter are digests by commit.  Raises NetworkError (exit 5) when a remote does not answer.
    """
    project, known = registry.repository, registry.versions
    theirs = project.refs(REMOTE) if REMOTE in project.git_lines("remote") else None
    staged = {tag.commit for tag in registry.tags if tag.stage not in (None, CHAMPION, REFUSED)}
    reasons, used = dict[str, str](), dict[str, set[str]]()
    with_remote = bool(repo.config["core"].get("remote"))
    for version in known:
        if version in known[-keep:]:
            reasons[version.name] = NEWEST
        elif version.state in (CHAMPION, FORMER):
            reasons[version.name] = CHAMPIONS
        elif version.commit in staged:
            reasons[version.name] = "has another stage"
        elif version.state != REFUSED:
            reasons[version.name] = "neither promoted nor refused"
        elif theirs is not None and version.commit != getattr(theirs.get(TAGS + version.name), "commit", None):
            reasons[version.name] = f"not on {REMOTE}"
        elif with_remote:
            used[version.commit] = digests_used_at(repo, version)
            if list_lacking(repo, used[version.commit]):
                reasons[version.name] = "the DVC remote lacks its files"
    return reasons, used


def old_folders(parent: Path) -> list[Path]:
    """Return the folders in a folder, without links, in which nothing was written for a long time."""
    folders = [folder for folder in sorted(parent.glob("*/")) if not folder.is_symlink()]
    before = time.time() - OLD
    return [each for each in folders if max(path.lstat().st_mtime for path in [each, *each.rglob("*")]) < before]
