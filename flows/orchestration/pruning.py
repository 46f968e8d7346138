"""Remove what an installation no longer needs: `vdmctl prune`.

Refused versions that are not among the newest go: their tags, the branches of their runs, and the files in DVC's cache
that no other commit needs.  The tags that say why they were refused stay, since the evidence of later versions counts
them (`num_judged`).  Nothing on a remote is deleted.
"""

import time
from contextlib import ExitStack, chdir
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dvc.lock import LockError

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.folders import remove
from flows.orchestration import workspace
from flows.orchestration.status import Entry, size_of
from flows.process.groups import processes_in
from flows.process.locks import folder_of_devices, held_locks
from flows.registry.git import git, git_lines, registry_lock, require_top
from flows.registry.lock_file import read_lock
from flows.registry.publishing import HEADS, RUNS, TAGS, run_of
from flows.registry.remote import REMOTE, Target, has_remote, remote_refs
from flows.registry.storage import dvc_repository, lacking, lost_listings, used_at
from flows.registry.versions import CHAMPION, FORMER, MODEL, REFUSED, Version, model_tags, versions

OLD = 14 * 24 * 3600.0
"""Seconds after which what nobody wrote to is abandoned: a weekly schedule had two chances to continue a training."""
BY_AGE = {"reports": layout.RUN_REPORTS, "fetched_models": layout.FETCHED, "training_states": layout.STATES}
FIELDS = ("refname", "objectname", "objecttype", "*objectname", "*objecttype", "committerdate:unix", "worktreepath")


class Ref(NamedTuple):
    """A branch or tag of a commit: its full name, its object, its commit, when that was made, where it is checked out.

    The time is 0 for an annotated tag.
    """

    name: str
    digest: str
    commit: str
    made: int
    folder: str


def prune(root: Path, *, keep: int, dry_run: bool) -> Entry:
    """Remove refused versions that are not among the `keep` newest, and what nothing needs; return it as a JSON object.

    Raises UserError: exit 6 while a run, a trainer or a DVC command is in progress; 5 outside a repository with git and
    DVC, or if a listing of a version that stays is lost; 2 below the top of a repository, or for a cache that other
    projects may use.  Raises NetworkError (exit 5) when a remote does not answer.  Then nothing is removed.
    """
    require_top(root)
    root = root.resolve()
    others = worktrees(root)
    require_idle([root, *others])
    with ExitStack() as stack:
        repo = stack.enter_context(dvc_repository(root))
        try:
            stack.enter_context(repo.lock)
        except LockError as error:
            raise UserError(f"{root}: another DVC command is running; wait for it", Exit.BUSY) from error
        stack.enter_context(registry_lock(root))
        known, every = versions(root), refs(root)
        theirs = remote_refs(root) if has_remote(root) else None
        kept = reasons_to_keep(repo, root, known, keep, theirs)
        going = superfluous(every, known, kept, theirs)
        files = unused(repo, root, others, [each for each in known if each.name in kept], every, going)
        left = sorted(workspace.left_behind(root))
        runs = {run_of(root, each.commit) for each in known if each.name in kept}
        folders = {kind: old_folders(root / place) for kind, place in BY_AGE.items()}
        folders["reports"] = [folder for folder in folders["reports"] if folder.name not in runs]
        removed = {
            "worktrees": part([folder.name for folder in left], sum(map(size_of, left))),
            "branches": part([ref.name.removeprefix(HEADS) for ref in going if ref.name.startswith(HEADS)]),
            "versions": part([ref.name.removeprefix(TAGS) for ref in going if ref.name.startswith(TAGS)]),
            "cached_files": part(
                [each.parent.name + each.name for each in files], sum(each.stat().st_size for each in files)
            ),
            **{kind: part([each.name for each in old], sum(map(size_of, old))) for kind, old in folders.items()},
        }
        if not dry_run:
            workspace.prune(root)
            # Before their files, since nobody could fetch a version whose files are gone.
            git(root, "update-ref", "--stdin", stdin=[f"delete {ref.name} {ref.digest}" for ref in going])
            for file in files:
                file.unlink(missing_ok=True)
            for folder in chain.from_iterable(folders.values()):
                remove(folder)
    return {"dry_run": dry_run, "keep": keep, "removed": removed, "kept": kept, "skipped": [], "problems": []}


def part(names: list[str], size: int | None = None) -> Entry:
    """Return what is removed of one kind as a JSON object; the bytes on disk are None if they are unknown."""
    return {"count": len(names), "bytes": size, "names": names}


def worktrees(root: Path) -> list[Path]:
    """Return the other worktrees in which DVC is set up, which may share its cache, without those of runs."""
    listed = git_lines(root, "worktree", "list", "--porcelain")
    folders = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    of_runs = (root / layout.WORKTREES).resolve()
    apart = [each for each in folders if each != root and not each.is_relative_to(of_runs)]
    return [each for each in apart if (each / ".dvc").is_dir()]


def require_idle(folders: list[Path]) -> None:
    """Raise UserError (exit 6) if a run, an experiment or a trainer works in a worktree: it may use any cached file."""
    for name, holder in held_locks(folder_of_devices()).items():
        if any(Path(holder.partition(" in ")[2]).is_relative_to(folder) for folder in folders):
            raise UserError(f"{holder} trains on {Path(name).stem}; prune when it has ended", Exit.BUSY)
    for folder in folders:
        for name, holder in sorted(held_locks(folder / layout.WORKTREES).items()):
            raise UserError(f"run {Path(name).stem} is in progress ({holder}); prune when it has ended", Exit.BUSY)
        for place in (folder / layout.WORKTREES, folder / ".dvc/tmp/exps"):
            for process in processes_in(place):
                raise UserError(f"process {process} works in {place}; prune when it has ended", Exit.BUSY)


def reasons_to_keep(
    repo: Any, root: Path, known: list[Version], keep: int, theirs: dict[str, Target] | None
) -> dict[str, str]:
    """Return the names of the versions that stay, with the reason.  `theirs` are the refs of the git remote, if any.

    Raises NetworkError (exit 5) when the DVC remote does not answer.
    """
    staged = {tag.commit for tag in model_tags(root) if tag.stage not in (None, CHAMPION, REFUSED)}
    has_store = bool(repo.config["core"].get("remote"))
    reasons = {}
    for version in known:
        if version in known[-keep:]:
            reasons[version.name] = "among the newest"
        elif version.state in (CHAMPION, FORMER):
            reasons[version.name] = "among the champions"
        elif version.commit in staged:
            reasons[version.name] = "has another stage"
        elif version.state != REFUSED:
            reasons[version.name] = "neither promoted nor refused"
        elif theirs is not None and version.commit != getattr(theirs.get(TAGS + version.name), "commit", None):
            reasons[version.name] = f"not on {REMOTE}"
        elif has_store and not is_complete(repo, root, version):
            reasons[version.name] = "the DVC remote lacks its files"
    return reasons


def is_complete(repo: Any, root: Path, version: Version) -> bool:
    """Whether DVC's remote has all files of a version.  Raises NetworkError (exit 5) when it does not answer."""
    lost = lost_listings(repo, read_lock(root, version).cached)
    return not lost and not lacking(repo, used_at(repo, version.commit))


def refs(root: Path) -> list[Ref]:
    """Return all local branches and tags of commits."""
    form = "--format=" + "%00".join(f"%({field})" for field in FIELDS)
    lines = (line.split("\0") for line in git_lines(root, "for-each-ref", form, HEADS, TAGS))
    return [
        Ref(name, digest, of or digest, int(made or 0), folder)
        for name, digest, kind, of, of_kind, made, folder in lines
        if (of_kind or kind) == "commit"  # `*` is what an annotated tag names
    ]


def superfluous(
    every: list[Ref], known: list[Version], kept: dict[str, str], theirs: dict[str, Target] | None
) -> list[Ref]:
    """Return the tags of the versions that go, and the branches of runs that are no version that stays.

    A branch stays if it is newer than the newest version, since it may still become one, if it is checked out, or if
    the git remote lacks its commit.
    """
    gone = {TAGS + version.name for version in known if version.name not in kept}
    staying = {version.commit for version in known if version.name in kept}
    newest = max((datetime.fromisoformat(version.created).timestamp() for version in known), default=0.0)
    published = None if theirs is None else {target.commit for target in theirs.values()}

    def goes(branch: Ref) -> bool:
        if branch.commit in staying or branch.made > newest or branch.folder:
            return False
        return published is None or branch.commit in published

    return [ref for ref in every if ref.name in gone or (ref.name.startswith(RUNS) and goes(ref))]


def unused(
    repo: Any, root: Path, others: list[Path], staying: list[Version], every: list[Ref], going: list[Ref]
) -> list[Path]:
    """Return the files in DVC's cache that nothing needs, listings of folders first.

    Needed is what the branches and tags that stay name, DVC's experiments, the worktrees, and young entries of DVC's
    run cache, from which a run that failed after its training continues.

    Raises UserError: exit 5 if a listing of a version that stays is lost, 2 for a cache that other projects may use.
    """
    cache = Path(repo.cache.local_cache_dir).resolve()
    if not any(cache.is_relative_to(folder) for folder in (root, *others)):
        reason = "is outside the repository, so other projects may use it; `dvc gc --projects` prunes such a cache"
        raise UserError(f"DVC's cache {cache} {reason}", Exit.USAGE)
    for version in staying:
        if lost := lost_listings(repo, read_lock(root, version).cached):
            reason = f"the listing of {lost[0]} is lost, so nobody knows which files belong to it"
            given_up = f"`gto deprecate {version.name.replace('@', ' ')}` gives the version up"
            raise UserError(f"{version.name}: {reason}; {given_up}", Exit.MISSING)
    refused = {ref.commit for ref in going if ref.name.startswith(TAGS)}
    # The tag of a refusal keeps no files.
    gone = {*going, *(ref for ref in every if ref.name.startswith(f"{TAGS}{MODEL}#") and ref.commit in refused)}
    commits = sorted({ref.commit for ref in every if ref not in gone})
    entries = Path(repo.stage_cache.cache_dir).glob("*/*/*")
    young = [(path.parent.name, path.name) for path in entries if path.stat().st_mtime > time.time() - OLD]
    with chdir(root):  # DVC takes the stages in its run cache for those of the working directory
        used = digests(repo.used_objs(revs=commits, all_experiments=True, used_run_cache=young, force=True))
    for other in others:
        with dvc_repository(other) as another:
            used |= digests(another.used_objs(force=True))
    # DVC takes a folder for complete if its listing is there, so no listing may outlive its files.
    left = sorted(set(repo.cache.local.all()) - used, key=lambda digest: (not digest.endswith(".dir"), digest))
    return [Path(repo.cache.local.oid_to_path(digest)) for digest in left]


def digests(used: dict[Any, set[Any]]) -> set[str]:
    """Return the digests of what DVC says is in use."""
    return {each.value for objects in used.values() for each in objects}


def old_folders(parent: Path) -> list[Path]:
    """Return the folders in a folder, without links, in which nothing was written for a long time."""
    folders = [folder for folder in sorted(parent.glob("*/")) if not folder.is_symlink()]
    before = time.time() - OLD
    return [each for each in folders if max(path.lstat().st_mtime for path in [each, *each.rglob("*")]) < before]
