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

from flows.core import layout
from flows.core.errors import NetworkError, of_remote
from flows.orchestration.workspace import Workspace
from flows.registry.git import content_of, git, git_text
from flows.registry.storage import dvc_repository
from flows.registry.versions import MODEL

DOWNLOAD = "download"
"""The stage that the run cache never has, since its output persists."""


def stages(repo: Any) -> list[Any]:
    """Return DVC's stages with a command, sorted so that each comes after its dependencies."""
    # DVC's edges point from a stage to what it needs.
    graph = networkx.reverse_view(repo.index.graph)
    return [stage for stage in networkx.lexicographical_topological_sort(graph, key=str) if stage.cmd]


def restore(place: Workspace, *, shared: bool) -> bool:
    """Restore what can be restored of the outputs; return whether these are all, so that no stage must run.

    Raises NetworkError (exit 5) if machines share versions and DVC's remote does not answer: another machine may have
    made what would take hours here, or if it fails later.
    """
    with dvc_repository(place.folder) as repo:
        check_out(repo)
        if not repo.status():
            return True
        know_the_images(place, repo)
    with dvc_repository(place.folder) as repo:  # with the new dvc.lock
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
            if stage.name != DOWNLOAD and not stage.outs_cached():
                stage.dvcfile._lockfile.remove_stage(stage)
    # DVC makes the stages of its run cache in the working directory.
    with contextlib.chdir(place.folder), dvc_repository(place.folder) as repo, repo.lock:
        complete = restored(repo, pull=answers)
    git_text(place.folder, "add", "--all")
    return complete


def check_out(repo: Any) -> None:
    """Check out the outputs that dvc.lock records, where the cache has them."""
    with set_loggers_level(logging.ERROR), suppress(CheckoutError):
        repo.checkout(force=True, allow_missing=True)


def restored(repo: Any, *, pull: bool) -> bool:
    """Restore what the run cache has, stage by stage, until one must run; return whether none must.

    With `pull`, their outputs may come from the remote.  Raises NetworkError.
    """
    done: list[Any] = []
    complete = True
    for stage in stages(repo):
        if not stage.changed():
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


def know_the_images(place: Workspace, repo: Any) -> None:
    """Record in dvc.lock the images of the newest run with the same `data:`, unless it records those of this run.

    `download` would read the source anew, which may take hours.
    """
    download = next(stage for stage in stages(repo) if stage.name == DOWNLOAD)
    if not download.changed_stage() and download.deps_cached():
        return
    yaml, path = YAML(), place.folder / layout.DVC_LOCK
    lock: Any = yaml.load(path) if path.exists() else {"schema": "2.0", "stages": {}}
    data = yaml.load(place.folder / layout.PARAMS)["data"]
    for commit in results(place):
        theirs = yaml.load(content_of(place.root, f"{commit}:{layout.DVC_LOCK}") or b"{}") or {}
        known = theirs.get("stages", {}).get(DOWNLOAD)
        if known and known["params"][str(layout.PARAMS)]["data"] == data:
            lock["stages"][DOWNLOAD] = known
            yaml.dump(lock, path)
            return


def results(place: Workspace) -> list[str]:
    """Return the commits of runs and versions, newest first."""
    form = "--format=%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)"
    refs = (f"refs/heads/{layout.RUN_BRANCHES}", f"refs/tags/{MODEL}@*")
    return list(dict.fromkeys(git_text(place.root, "for-each-ref", "--sort=-creatordate", form, *refs).split()))


def made_before(place: Workspace) -> str | None:
    """Return the commit that has the results in the workspace: the one from which it started, or an earlier run's."""
    here = git_text(place.folder, "hash-object", str(layout.DVC_LOCK))
    names = [f"{commit}:{layout.DVC_LOCK}" for commit in (place.base, *results(place))]
    found = git(place.root, "cat-file", "--batch-check=%(objectname)", stdin=names).decode().split("\n")
    return next((name[:40] for name, digest in zip(names, found, strict=False) if digest == here), None)
