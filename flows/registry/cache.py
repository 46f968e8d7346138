"""The files in DVC's cache that nothing needs."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc.config import NoRemoteError
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import lock_repo
from dvc.rwlock import rwlock

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.process.ending import on_stop
from flows.registry.git import Tag, content_of, contents, git
from flows.registry.lock_file import read_lock
from flows.registry.pruning import Plan
from flows.registry.storage import cached_at, dvc_repository, files, quiet, require_cached

DIGEST = re.compile(rb"md5: '?([0-9a-f]{32}(?:[.]dir)?)'?\n")  # YAML quotes one that looks like a number
BETWEEN_CHECKS = 100
"""The number of files that are deleted between two checks that no run has started."""


@contextmanager
def cache_locked(root: Path) -> Iterator[Any]:
    """Open DVC's repository and hold its locks: of the repository, and of all paths, which stages hold while they run.

    Raises UserError: exit 5 outside a repository or when a lock cannot be written, 6 while a DVC command runs.
    """
    with dvc_repository(root) as repo, quiet(), ExitStack() as stack:
        try:
            stack.enter_context(lock_repo(repo))
            stack.enter_context(paths_locked(repo))
        except LockError as error:
            reason = f"{root}: another DVC command is running; wait for it, or if none is, delete {repo.tmp_dir}/rwlock"
            raise UserError(reason, Exit.BUSY) from error
        except DvcException as error:
            advice = f"if no DVC command runs, delete {repo.tmp_dir}/rwlock, which a full disk may have cut short"
            raise UserError(f"{root}: {brief(error)}; {advice}", Exit.MISSING) from error
        except OSError as error:
            reason = f"{repo.tmp_dir}: DVC cannot write its lock: {error.strerror}"
            raise UserError(f"{reason}; on a full disk, delete a file to make room for it", Exit.MISSING) from error
        yield repo


@contextmanager
def paths_locked(repo: Any) -> Iterator[None]:
    """Hold DVC's lock of all paths.  No signal stops this process while DVC writes the file, which it does in place."""
    with ExitStack() as stack:
        with held_back():
            stack.enter_context(rwlock(repo.tmp_dir, repo.fs, "vdmctl prune", [], [repo.root_dir], False))
        try:
            yield
        finally:
            with held_back():
                stack.close()


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back the signals that stop a command until the block has ended, also with an error."""
    signals: list[int] = []
    try:
        with on_stop(lambda number, frame: signals.append(number)):
            yield
    finally:
        for number in signals[:1]:
            signal.raise_signal(number)


def superfluous(repos: list[Any], root: Path, plan: Plan) -> tuple[list[Path], int]:
    """Return the files in DVC's cache that nothing needs, listings of folders first, and the number of unpushed files.

    Unpushed files are those of past champions that DVC's default remote lacks; they stay.  `repos` are DVC's
    repositories of all worktrees, the one at `root` first.

    Raises UserError: exit 5 when it is not known what a version needs or what the remote has, 2 for a cache outside the
    repository.
    """
    repo, *others = repos
    if not Path(repo.cache.local_cache_dir).resolve().is_relative_to(root.resolve()):
        reason = "is outside the repository, so other projects may use it; `dvc gc --projects` prunes such a cache"
        raise UserError(f"DVC's cache {repo.cache.local_cache_dir} {reason}", Exit.USAGE)
    place, cached = cached_at(repo), set(repo.cache.local.all())
    going = cached - needed(repo, root, plan) if cached else set()
    for other in others:
        going -= used_in(other)
    unpushed = lacking(repo, going & files_of(repo, root, plan.past))
    going -= unpushed
    # DVC takes a folder for complete if its listing is there, so no listing may outlive its files.
    ordered = sorted(going, key=lambda digest: (not digest.endswith(".dir"), digest))
    return [place(digest) for digest in ordered], len(unpushed)


def files_of(repo: Any, root: Path, tags: list[Tag]) -> set[str]:
    """Return the digests in the dvc.lock of the tags' commits, and in the listings of their folders that are cached.

    Runs git twice for all tags.  The text is searched and not parsed: parsing would take seconds for hundreds of tags.
    Raises UserError (exit 5) if one tag's dvc.lock or listing cannot be read.
    """
    place, names = cached_at(repo), sorted({f"{tag.commit}:{layout.DVC_LOCK}" for tag in tags})
    locks = contents(root, names).values()
    found = {digest.decode() for lock in locks if lock for digest in DIGEST.findall(lock)}
    for listing in [digest for digest in found if digest.endswith(".dir")]:
        with suppress(FileNotFoundError):  # not cached; any other error must not pass for that
            found |= {file.md5 for file in files(listing, place)}
    return found


def readable_files(repo: Any, root: Path, tags: list[Tag]) -> tuple[set[str], dict[str, str]]:
    """Return what `files_of` does for the tags that it can read, and the names of the others with the reason."""
    with suppress(UserError):
        return files_of(repo, root, tags), {}
    found: set[str] = set()
    unreadable: dict[str, str] = {}
    for tag in tags:  # only now one by one, since each starts git twice
        try:
            found |= files_of(repo, root, [tag])
        except UserError as error:
            unreadable[tag.name] = str(error)
    return found, unreadable


def lacking(repo: Any, digests: set[str]) -> set[str]:
    """Return the objects that the default remote lacks; without a remote, none of them.

    Raises NetworkError (exit 5) when the remote does not answer.
    """
    if not digests:
        return set()
    try:
        return digests - set(repo.cloud.get_remote_odb(command="prune").oids_exist(sorted(digests)))
    except NoRemoteError:
        return set()
    except Exception as error:  # each kind of remote raises its own errors
        raise NetworkError(f"the DVC remote does not answer: {brief(error)}") from error


def needed(repo: Any, root: Path, plan: Plan) -> set[str]:
    """Return the digests of all files that the plan's commits, the working tree and DVC's experiments need.

    A run that failed after its training has its results in DVC's run cache only.  Those newer than the newest version
    stay, since the next run continues from them.
    """
    commits = [*plan.versions, *plan.others]
    # DVC would wait forever for an object that a partial clone lacks.
    objects = ["rev-list", "--objects", "--no-walk", "--missing=print", "--stdin"]
    listed = git(root, *objects, stdin=commits).split(b"\n")
    if any(line.startswith(b"?") for line in listed):
        advice = "`git fetch --refetch --no-filter` completes a partial clone"
        raise UserError(f"{root}: git lacks objects of commits that stay; {advice}", Exit.MISSING)
    for commit in commits:
        version = plan.versions.get(commit)
        try:
            require_listings(repo, root, Tag(version.name if version else commit[:12], commit))
        except UserError:
            if version and content_of(root, f"{commit}:{layout.DVC_LOCK}") is not None:
                raise
    entries = Path(repo.stage_cache.cache_dir).glob("*/*/*")
    recent = [(path.parent.name, path.name) for path in entries if path.stat().st_mtime > plan.since]
    return used_in(repo, revs=commits, all_experiments=True, used_run_cache=recent)


def used_in(repo: Any, **options: Any) -> set[str]:
    """Return the digests of all files that a worktree needs, and of those that `options` of DVC's `used_objs` add.

    Raises UserError (exit 5) if DVC cannot find them.
    """
    try:
        with chdir(repo.root_dir):  # DVC takes the stages in its run cache for those of the working directory
            used = repo.used_objs(force=True, **options)
    except Exception as error:  # each library that DVC reads git with raises its own errors
        cause = f": {brief(error.__cause__)}" if error.__cause__ else ""
        reason = f"DVC cannot tell what is in use in {repo.root_dir}: {brief(error)}{cause}"
        raise UserError(reason, Exit.MISSING) from error
    return {each.value for objects in used.values() for each in objects}


def require_listings(repo: Any, root: Path, tag: Tag) -> None:
    """Fetch the listings of a commit's folders that are not in the cache.

    Without a listing nobody knows the folder's files, so they would be deleted.  Raises UserError (exit 5) for one that
    is damaged, or neither in the cache nor in the remote.
    """
    outputs = read_lock(root, tag).outputs
    listings = {path: digest for path, digest in outputs.items() if digest.endswith(".dir")}
    require_cached(repo, listings, f"{tag.name}: ")
    for digest in listings.values():
        list(files(digest, cached_at(repo)))


def delete_files(paths: list[Path], check: Callable[[], None]) -> None:
    """Delete files.  Call `check`, which raises an error to stop, before every `BETWEEN_CHECKS` of them."""
    for start in range(0, len(paths), BETWEEN_CHECKS):
        check()
        for path in paths[start : start + BETWEEN_CHECKS]:
            path.unlink(missing_ok=True)
