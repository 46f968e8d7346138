"""Restore in a run's worktree what was made before: by DVC's cache, its run cache and its remote.

DVC itself asks its run cache only for a stage whose dependencies differ from dvc.lock.  If dvc.lock records outputs
that were made on another machine and are not in this cache, DVC would run the stage again, even if the run cache has
its results.
"""

import contextlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import networkx
from dvc.exceptions import CheckoutError, DownloadError, DvcException
from dvc.logger import set_loggers_level
from prefect import get_run_logger
from ruamel.yaml import YAML

from flows.core import bounded_yaml, layout
from flows.core.errors import Exit, NetworkError, UserError, of_remote
from flows.orchestration.looking import name_of, results
from flows.orchestration.workspace import Workspace
from flows.registry.git import content_of, git, git_text
from flows.registry.storage import dvc_repository

DOWNLOAD = "download"
"""The stage that reads the source."""


def stages(repo: Any) -> list[Any]:
    """Return DVC's stages with a command, sorted so that each comes after its dependencies."""
    # DVC's edges point from a stage to what it needs.
    graph = networkx.reverse_view(repo.index.graph)
    return [stage for stage in networkx.lexicographical_topological_sort(graph, key=str) if stage.cmd]


def restore(place: Workspace, *, shared: bool, recorded: bool = False) -> bool:
    """Restore what can be restored of the outputs; return whether these are all, so that no stage must run.

    With `recorded`, the images are those in dvc.lock, whatever became of their source.

    Raises NetworkError (exit 5) if machines share versions and DVC's remote does not answer: another machine may have
    made what would take hours here, or if it fails later.
    """
    with dvc_repository(place.folder) as repo:
        check_out(repo)
        if not repo.status():
            return True
        if answers := bool(repo.config["core"].get("remote")):
            try:
                pull(repo)
            except NetworkError as error:
                if shared:
                    raise
                answers = False
                get_run_logger().warning("%s; what this machine's cache lacks is made again", error)
        check_out(repo)
        for stage in stages(repo):
            if not stage.outs_cached() and not (recorded and stage.name == DOWNLOAD):
                stage.dvcfile._lockfile.remove_stage(stage)
    # DVC makes the stages of its run cache in the working directory.
    with contextlib.chdir(place.folder), dvc_repository(place.folder) as repo, repo.lock:
        complete = restored(repo, pull=answers, recorded=recorded)
    git_text(place.folder, "add", "--all")
    return complete


def check_out(repo: Any) -> None:
    """Check out the outputs that dvc.lock records, where the cache has them."""
    with set_loggers_level(logging.ERROR), suppress(CheckoutError):
        repo.checkout(force=True, allow_missing=True)


def restored(repo: Any, *, pull: bool, recorded: bool) -> bool:
    """Restore what the run cache has, stage by stage, until one must run; return whether none must.

    With `pull`, their outputs may come from the remote.  Raises NetworkError.
    """
    done: list[Any] = []
    complete = True
    for stage in stages(repo):
        if not stage.changed() or (recorded and stage.name == DOWNLOAD):
            continue
        complete = is_in_run_cache(repo, stage, pull=pull)
        if not complete:
            break
        done.append(stage)
    if done:
        done[0].dvcfile.dump_stages(done, update_pipeline=False)
    return complete


def is_in_run_cache(repo: Any, stage: Any, *, pull: bool) -> bool:
    """Whether the run cache has the results of a stage, which are restored then.  Raises NetworkError."""
    try:
        repo.stage_cache.restore(stage, pull=pull)
    except DvcException:  # neither the run cache nor the remote has them
        return False
    except Exception as error:  # each kind of remote raises its own errors
        raise of_remote("DVC's remote cannot be read", error) from error
    stage.save()
    stage.commit()
    return True


def restore_stage(folder: Path, name: str) -> None:
    """Restore the results of one stage if another machine has made them meanwhile.  Raises NetworkError (exit 5).

    `dvc repro --pull` would do so, but would not tell an outage of the remote from other errors.
    """
    with contextlib.chdir(folder), dvc_repository(folder) as repo, repo.lock:
        (stage,) = [each for each in stages(repo) if each.name == name]
        if not stage.changed():
            return
        try:
            repo.stage_cache.pull(None)
        except DvcException:  # the remote has no run cache, or not all of it
            pass
        except Exception as error:  # each kind of remote raises its own errors
            raise of_remote("DVC's remote cannot be read", error) from error
        if is_in_run_cache(repo, stage, pull=True):
            stage.dvcfile.dump_stages([stage], update_pipeline=False)


def pull(repo: Any) -> None:
    """Pull into the cache what the remote has of the recorded outputs, and the run cache.  Raises NetworkError."""
    try:
        repo.fetch(run_cache=True)
    except DownloadError:
        return  # the remote lacks some of them
    except Exception as error:  # each kind of remote raises its own errors
        raise of_remote("DVC's remote cannot be read", error) from error


def push_run_cache(root: Path) -> None:
    """Push the run cache to the remote, so that other machines find what was made here.  Raises NetworkError."""
    with dvc_repository(root) as repo:
        try:
            repo.stage_cache.push(None)
        except Exception as error:  # each kind of remote raises its own errors
            raise of_remote("DVC's remote takes no run cache", error) from error


def record_images(place: Workspace, commit: str) -> None:
    """Record in the run's dvc.lock the images of an earlier run, for a machine that lacks their source.

    Raises UserError (exit 5) for a version that another graph made.
    """
    yaml, path = YAML(), place.folder / layout.DVC_LOCK
    lock: Any = yaml.load(path) if path.exists() else {"schema": "2.0", "stages": {}}
    theirs = yaml.load(content_of(place.root, f"{commit}:{layout.DVC_LOCK}") or b"{}") or {}
    if DOWNLOAD not in theirs.get("stages", {}):
        reason = f"{name_of(place.root, commit)} records no images of the stage {DOWNLOAD}"
        raise UserError(f"data.source is not on this machine, and {reason}; bring the source here", Exit.MISSING)
    lock["stages"][DOWNLOAD] = theirs["stages"][DOWNLOAD]
    yaml.dump(lock, path)


def update_import(place: Workspace, source: Path, newest: str | None) -> None:
    """Bring the import of a source up to date in the run's folder, from where the newest run left it.

    Thus nothing is downloaded if nothing changed since.  An import from elsewhere, which is newer, stays.
    Raises NetworkError (exit 5) if where it comes from does not answer.
    """
    file = place.folder / f"{source}.dvc"
    left = content_of(place.root, f"{newest}:{source}.dvc") if newest else None
    if left and origin(left) == origin(file.read_bytes()):
        file.write_bytes(left)
    with contextlib.chdir(place.folder), dvc_repository(place.folder) as repo:
        try:
            repo.update([str(file.relative_to(place.folder))])
        except Exception as error:  # each kind of remote raises its own errors
            raise of_remote(f"{source} cannot be brought up to date", error) from error
    git_text(place.folder, "add", "--all")


def check_out_source(place: Workspace, source: Path) -> None:
    """Check out a source that `dvc add` made files of the project.

    Raises UserError (exit 5) if it is neither in DVC's cache nor in its remote, NetworkError if that does not answer.
    """
    target = f"{source}.dvc"
    with contextlib.chdir(place.folder), dvc_repository(place.folder) as repo:
        with suppress(CheckoutError):
            repo.checkout([target], force=True)
            return
        try:
            repo.fetch([target])
            repo.checkout([target], force=True)
        except DvcException as error:
            reason = f"data.source: not all files of {source} are in DVC's cache or its default remote"
            raise UserError(f"{reason}; `dvc push {target}` where they are", Exit.MISSING) from error
        except Exception as error:  # each kind of remote raises its own errors
            raise of_remote(f"data.source: {source} cannot be fetched", error) from error


def is_tracked(place: Workspace, source: Path) -> bool:
    """Whether a source consists of files of the project that DVC tracks: by `dvc import-url` or `dvc add`."""
    return not source.is_absolute() and (place.folder / f"{source}.dvc").is_file()


def origin(import_file: bytes) -> list[Any]:
    """Return from where a `.dvc` file imports, without what was found there; [] if it is no import."""
    found = bounded_yaml.sections(import_file).get("deps", [])
    return [(each.get("path"), each.get("fs_config"), each.get("repo", {}).get("url")) for each in found]


def made_before(place: Workspace) -> str | None:
    """Return the commit that has the results in the workspace: the one from which it started, or an earlier run's."""
    here = git_text(place.folder, "hash-object", str(layout.DVC_LOCK))
    names = [f"{commit}:{layout.DVC_LOCK}" for commit in (place.base, *results(place.root))]
    found = git(place.root, "cat-file", "--batch-check=%(objectname)", stdin=names).decode().split("\n")
    return next((name[:40] for name, digest in zip(names, found, strict=False) if digest == here), None)
