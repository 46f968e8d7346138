"""Which files DVC's cache and its remote have, and which of them nothing needs."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any

from configobj import ConfigObj
from dvc.config import Config
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc_data.hashfile.hash_info import HashInfo

from flows.core.errors import Exit, UserError, brief, remote_error
from flows.repository.commit import Named
from flows.repository.repository import Repository


def require_remote(repository: Repository) -> None:
    """Raise UserError (exit 2) unless DVC has a default remote to which `dvc push` can write."""
    with repository.dvc() as repo:
        try:
            repo.cloud.get_remote_odb(command="push")  # refuses also a remote that keeps versions of files itself
        except Exception as error:  # each kind of remote raises its own errors
            reason = f"DVC's default remote cannot be used: {brief(error)}"
            raise UserError(f"{repository.folder.absolute()}: {reason}", Exit.USAGE) from error


def digests_used_at(repo: Any, commit: Named) -> set[str]:
    """Return the digests of all files and listings of a version; listings that the cache lacks are pulled.

    Raises UserError (exit 5) if a listing is lost: without it nobody knows which files belong to a folder.  Raises
    NetworkError (exit 5) when the remote does not answer.
    """
    cache = repo.cache.local
    try:
        with repo.switch(commit.commit):  # DVC takes 0.1 s to read the graph of a commit
            folders = [out for out in repo.index.outs if out.use_cache and out.is_dir_checksum]
            missing = [out for out in folders if not cache.exists(out.hash_info.value)]
            if not missing:
                return digests(repo.index.used_objs(force=True))
    except DvcException as error:
        raise lost(commit, brief(error)) from error
    if missing and repo.config["core"].get("remote"):
        try:
            repo.cloud.pull([out.hash_info for out in missing])
        except Exception as error:  # each kind of remote raises its own errors
            raise remote_error("the DVC remote does not answer", error) from error
    for out in missing:
        if not cache.exists(out.hash_info.value):
            raise lost(commit, f"the listing of {out.def_path} is lost, so nobody knows which files belong to it")
    with repo.switch(commit.commit):
        return digests(repo.index.used_objs(force=True))


def lost(commit: Named, reason: str) -> UserError:
    """Return the error (exit 5) about a version of which a file is lost."""
    return UserError(f"{commit.name}: {reason}; {repair_advice(commit)}", Exit.MISSING)


def repair_advice(commit: Named) -> str:
    """Return the advice for a version that cannot be repaired."""
    return f"`gto deprecate {commit.name.replace('@', ' ')}` gives the version up"


def digests(used: dict[Any, set[Any]]) -> set[str]:
    """Return the digests of what DVC says is in use."""
    return {each.value for objects in used.values() for each in objects}


def list_lacking(repo: Any, digests: set[str]) -> set[str]:
    """Return the objects that DVC's default remote lacks.  Raises NetworkError (exit 5) when it does not answer."""
    try:
        return digests - set(repo.cloud.get_remote_odb(command="push").oids_exist(sorted(digests)))
    except Exception as error:  # each kind of remote raises its own errors
        raise remote_error("the DVC remote does not answer", error) from error


def push(repo: Any, commit: Named) -> None:
    """Push the files of a version to DVC's remote.

    Raises UserError (exit 5) if one of them is lost, NetworkError (exit 5) when the remote does not answer.
    """
    used = digests_used_at(repo, commit)
    try:
        repo.cloud.push([HashInfo("md5", digest) for digest in used])
    except Exception as error:  # each kind of remote raises its own errors
        raise remote_error("the DVC remote failed", error) from error
    if missing := sorted(list_lacking(repo, used)):
        raise lost(commit, f"{missing[0]} is not in the cache, or damaged there, and not in the DVC remote")


def list_unused(
    repo: Any, root: Path, others: list[Path], commits: set[str], used: set[str], *, younger_than: float
) -> list[Path]:
    """Return the files in DVC's cache that nothing needs, listings of folders first.

    Needed are the digests `used`, what the commits name, DVC's experiments, the worktrees, and entries of DVC's run
    cache that are younger than so many seconds, from which a run that failed after its training continues.  Raises
    UserError (exit 2) for a cache that other projects may use.
    """
    cache = Path(repo.cache.local_cache_dir).resolve()
    if not any(cache.is_relative_to(folder) for folder in (root, *others)):
        reason = "is outside the repository, so other projects may use it; `dvc gc --projects` prunes such a cache"
        raise UserError(f"DVC's cache {cache} {reason}", Exit.USAGE)
    entries = Path(repo.stage_cache.cache_dir).glob("*/*/*")
    young = [(path.parent.name, path.name) for path in entries if path.stat().st_mtime > time.time() - younger_than]
    with chdir(root):  # DVC takes the stages in its run cache for those of the working directory
        used |= digests(repo.used_objs(revs=sorted(commits), all_experiments=True, used_run_cache=young, force=True))
    for other in others:
        with Repository(other).dvc() as another:
            used |= digests(another.used_objs(force=True))
    # DVC takes a folder for complete if its listing is there, so no listing may outlive its files.
    left = sorted(set(repo.cache.local.all()) - used, key=lambda digest: (not digest.endswith(".dir"), digest))
    return [Path(repo.cache.local.oid_to_path(digest)) for digest in left]


@contextmanager
def lock_dvc(repository: Repository) -> Iterator[Any]:
    """Open DVC's repository and hold its lock.  Raises UserError (exit 6) while another DVC command runs."""
    with repository.dvc() as repo, ExitStack() as stack:
        try:
            stack.enter_context(repo.lock)
        except LockError as error:
            raise UserError(f"{repository.folder}: another DVC command is running; wait for it", Exit.BUSY) from error
        yield repo


def share_cache(repository: Repository, folder: Path) -> None:
    """Let DVC in a worktree use the cache and the remotes of the repository."""
    ours = Config(str(repository.folder / ".dvc"))
    with repository.dvc() as repo:
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
