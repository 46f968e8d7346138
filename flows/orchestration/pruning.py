"""Remove what an installation no longer needs: `vdmctl prune`.

Refused versions that are not among the newest go: their tags, the branches of their runs, and the files in DVC's cache
that no other commit needs.  The tags that say why they were refused stay, since the evidence of later versions counts
them (`num_judged`).  Nothing on a remote is deleted.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.files import SCRATCH, remove
from flows.orchestration import workspace
from flows.orchestration.answers import CHAMPIONS, NEWEST, Pruned, Removed
from flows.orchestration.status import size_of
from flows.process.groups import find_processes
from flows.process.locks import folder_of_devices, list_held_locks
from flows.registry.project import Project
from flows.registry.publishing import RUNS
from flows.registry.versions import FORMER, Registry
from flows.repository.cache import digests_used_at, list_lacking, list_unused, lock_dvc
from flows.repository.repository import HEADS, MODEL, REMOTE, TAGS
from flows.repository.tags import CHAMPION, REFUSED

OLD = 14 * 24 * 3600.0
"""Seconds after which what nobody wrote to is abandoned: a weekly schedule had two chances to continue a training."""
WRITTEN = (layout.IMAGES.parent, layout.TRAINED.parent, layout.REPORTS, layout.DOWNLOADS)
"""Where a stage that was killed leaves a folder half written."""
BY_AGE = {"reports": layout.RUN_REPORTS, "fetched_models": layout.FETCHED, "training_states": layout.TRAININGS}


def prune(project: Project, *, keep: int, dry_run: bool) -> Pruned:
    """Remove refused versions that are not among the `keep` newest, and what nothing needs; return what goes and stays.

    Raises UserError: exit 6 while a run, a trainer or a DVC command is in progress; 5 outside a repository with git and
    DVC, or if a listing of a version that stays is lost; 2 below the top of a repository, or for a cache that other
    projects may use.  Raises NetworkError (exit 5) when a remote does not answer.  Then nothing is removed.
    """
    project.require_top()
    root = project.folder.resolve()
    listed = project.git_lines("worktree", "list", "--porcelain")
    of_runs = (root / layout.WORKTREES).resolve()
    others = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    others = [each for each in others if each != root and not each.is_relative_to(of_runs) and (each / ".dvc").is_dir()]
    require_idle([root, *others])
    with ExitStack() as stack:
        repo = stack.enter_context(lock_dvc(project))
        stack.enter_context(project.registry_lock())
        registry, refs = project.registry, project.refs()
        known = registry.versions
        kept, used = reasons_to_keep(repo, registry, keep)
        gone = {version.commit for version in known if version.name not in kept}
        tags = [TAGS + version.name for version in known if version.name not in kept]
        branches = [
            name
            for name, target in refs.items()
            if name.startswith(RUNS) and target.commit in gone and f"branch {name}" not in listed
        ]
        # The tag of a refusal stays, and keeps no files.
        needed = {
            target.commit
            for name, target in refs.items()
            if name not in (*tags, *branches) and not (name.startswith(f"{TAGS}{MODEL}#") and target.commit in gone)
        }
        for version in known:
            if version.name in kept and version.commit not in used:
                used[version.commit] = digests_used_at(
                    repo, version
                )  # or refuse: nobody knows what a lost listing needs
        used = {commit: found for commit, found in used.items() if commit in needed}
        files = list_unused(
            repo, root, others, needed - used.keys(), set[str]().union(*used.values()), younger_than=OLD
        )
        left = sorted(workspace.left_behind(project))
        runs = {project.run_of(each.commit) for each in known if each.name in kept}
        folders = {kind: old_folders(root / place) for kind, place in BY_AGE.items()}
        folders["reports"] = [folder for folder in folders["reports"] if folder.name not in runs]
        names = [file.parent.name + file.name for file in files]
        # A DVC command, which writes there, holds the lock that this one has.
        unfinished = sorted(path for place in WRITTEN for path in (root / place).glob(f"{SCRATCH}*/"))
        removed = {
            "worktrees": part([folder.name for folder in left], sum(map(size_of, left))),
            "branches": part([name.removeprefix(HEADS) for name in branches]),
            "versions": part([name.removeprefix(TAGS) for name in tags]),
            "cached_files": part(names, sum(file.stat().st_size for file in files)),
            "unfinished": part([str(each.relative_to(root)) for each in unfinished], sum(map(size_of, unfinished))),
            **{kind: part([each.name for each in old], sum(map(size_of, old))) for kind, old in folders.items()},
        }
        if not dry_run:
            workspace.clear_up(project)
            # Before their files, since nobody could fetch a version whose files are gone.
            project.git(
                "update-ref", "--stdin", stdin=[f"delete {name} {refs[name].digest}" for name in branches + tags]
            )
            for file in files:
                file.unlink(missing_ok=True)
            for folder in [*unfinished, *(each for old in folders.values() for each in old)]:
                remove(folder)
    return Pruned(dry_run=dry_run, keep=keep, removed=removed, kept=kept)


def part(names: list[str], size: int | None = None) -> Removed:
    """Return what is removed of one kind; the bytes on disk are None if they are unknown."""
    return Removed(count=len(names), bytes=size, names=names)


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
