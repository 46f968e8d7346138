"""DVC's stages in a run's folder: which there are, and what was made of them before.

DVC itself asks its run cache only for a stage whose dependencies differ from dvc.lock.  If dvc.lock records outputs
that were made on another machine and are not in this cache, DVC would run the stage again, even if the run cache has
its results.
"""

import contextlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import networkx
from dvc.exceptions import CheckoutError, DownloadError, DvcException
from dvc.logger import set_loggers_level
from ruamel.yaml import YAML

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError, remote_error
from flows.repository.commit import Commit
from flows.repository.repository import Repository

log = logging.getLogger(__name__)

DOWNLOAD = "download"
"""The stage that reads the source."""


def stage_names(repository: Repository) -> list[str]:
    """Return the names of the stages, sorted so that each comes after its dependencies."""
    with repository.dvc() as repo:
        return [stage.name for stage in stages(repo)]


def stages(repo: Any) -> list[Any]:
    """Return DVC's stages with a command, sorted so that each comes after its dependencies."""
    # DVC's edges point from a stage to what it needs.
    graph = networkx.reverse_view(repo.index.graph)
    return [stage for stage in networkx.lexicographical_topological_sort(graph, key=str) if stage.cmd]


def restore_outputs(
    run: Repository, *, shared: bool, recorded: bool = False, warn: Callable[[str], object] = log.warning
) -> bool:
    """Restore what can be restored of the outputs; return whether these are all, so that no stage must run.

    With `recorded`, the images are those in dvc.lock, whatever became of their source.

    Raises NetworkError (exit 5) if machines share versions and DVC's remote does not answer: another machine may have
    made what would take hours here, or if it fails later.  Otherwise `warn` is told.
    """
    with run.dvc() as repo:
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
                warn(f"{error}; what this machine's cache lacks is made again")
        check_out(repo)
        for stage in stages(repo):
            if not stage.outs_cached() and not (recorded and stage.name == DOWNLOAD):
                stage.dvcfile._lockfile.remove_stage(stage)
    # DVC makes the stages of its run cache in the working directory.
    with contextlib.chdir(run.folder), run.dvc() as repo, repo.lock:
        complete = restore_stages(repo, pull=answers, recorded=recorded)
    run.git_text("add", "--all")
    return complete


def check_out(repo: Any) -> None:
    """Check out the outputs that dvc.lock records, where the cache has them."""
    with set_loggers_level(logging.ERROR), suppress(CheckoutError):
        repo.checkout(force=True, allow_missing=True)


def restore_stages(repo: Any, *, pull: bool, recorded: bool) -> bool:
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
        raise remote_error("DVC's remote cannot be read", error) from error
    stage.save()
    stage.commit()
    return True


def restore_stage(run: Repository, name: str) -> None:
    """Restore the results of one stage if another machine has made them meanwhile.  Raises NetworkError (exit 5).

    `dvc repro --pull` would do so, but would not tell an outage of the remote from other errors.
    """
    with contextlib.chdir(run.folder), run.dvc() as repo, repo.lock:
        (stage,) = [each for each in stages(repo) if each.name == name]
        if not stage.changed():
            return
        try:
            repo.stage_cache.pull(None)
        except DvcException:  # the remote has no run cache, or not all of it
            pass
        except Exception as error:  # each kind of remote raises its own errors
            raise remote_error("DVC's remote cannot be read", error) from error
        if is_in_run_cache(repo, stage, pull=True):
            stage.dvcfile.dump_stages([stage], update_pipeline=False)


def pull(repo: Any) -> None:
    """Pull into the cache what the remote has of the recorded outputs, and the run cache.  Raises NetworkError."""
    try:
        repo.fetch(run_cache=True)
    except DownloadError:
        return  # the remote lacks some of them
    except Exception as error:  # each kind of remote raises its own errors
        raise remote_error("DVC's remote cannot be read", error) from error


def push_run_cache(repository: Repository) -> None:
    """Push the run cache to the remote, so that other machines find what was made here.  Raises NetworkError."""
    with repository.dvc() as repo:
        try:
            repo.stage_cache.push(None)
        except Exception as error:  # each kind of remote raises its own errors
            raise remote_error("DVC's remote takes no run cache", error) from error


def record_images(run: Repository, earlier: Commit) -> None:
    """Record in the run's dvc.lock the images of an earlier run, in place of those that the source has now.

    Raises UserError (exit 5) for a version that another graph made.
    """
    yaml, path = YAML(), run.folder / layout.DVC_LOCK
    lock: Any = yaml.load(path) if path.exists() else {"schema": "2.0", "stages": {}}
    theirs = yaml.load(earlier.content(layout.DVC_LOCK) or b"{}") or {}
    if DOWNLOAD not in theirs.get("stages", {}):
        name = run.name_of(earlier.digest)
        reason = f"{name} records no images of the stage {DOWNLOAD}"
        raise UserError(f"data.source is not on this machine, and {reason}; bring the source here", Exit.MISSING)
    lock["stages"][DOWNLOAD] = theirs["stages"][DOWNLOAD]
    yaml.dump(lock, path)


def has_results(run: Repository, commits: list[str]) -> str | None:
    """Return the first of some commits of which dvc.lock is that in the run's folder; None if none is."""
    here = run.git_text("hash-object", str(layout.DVC_LOCK))
    names = [f"{commit}:{layout.DVC_LOCK}" for commit in commits]
    found = run.git("cat-file", "--batch-check=%(objectname)", stdin=names).decode().split("\n")
    return next((commit for commit, digest in zip(commits, found, strict=False) if digest == here), None)
