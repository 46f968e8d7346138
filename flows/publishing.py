"""Publishing: bytes first, then commits, then tags, so that no tag ever points to bytes that the remote lacks.

Everything that is missing at the remotes is published, so that a run completes what an interrupted one began.
"""

from pathlib import Path

from dvc.config import NoRemoteError
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.errors import Exit, NetworkError, UserError
from flows.git import git_text
from flows.workspace import PREFIX

TAGS = ("vdm@", "vdm#")


def publish(root: Path, remote: str = "origin") -> list[str]:
    """Push every model tag that the git remote lacks, with its branch and its bytes; the tags pushed, oldest first.

    Raises UserError (exit 2) without remotes, NetworkError (exit 5) when one does not answer.
    """
    if remote not in git_text(root, "remote").split():
        raise UserError(f"publish: no git remote {remote}; `git remote add {remote} URL`", Exit.USAGE)
    missing = unpublished(root, remote)
    commits = sorted({git_text(root, "rev-list", "-n1", tag) for tag in missing})
    try:
        with Repo(str(root)) as repo:
            if commits:
                repo.push(revs=commits, workspace=False)
    except NoRemoteError as error:
        raise UserError("publish: no DVC remote; `dvc remote add --default NAME URL`", Exit.USAGE) from error
    except (DvcException, OSError) as error:
        raise NetworkError(f"publish: the DVC remote failed: {error}; the next run publishes again") from error
    push(root, remote, f"refs/heads/{PREFIX}*:refs/heads/{PREFIX}*")
    for tag in missing:
        push(root, remote, f"refs/tags/{tag}")
    return missing


def unpublished(root: Path, remote: str) -> list[str]:
    """The model tags that the remote lacks, oldest first."""
    try:
        listed = git_text(root, "ls-remote", "--tags", "--refs", remote)
    except UserError as error:
        raise NetworkError(f"publish: {error}; the next run publishes again") from error
    there = {line.split("refs/tags/", 1)[1] for line in listed.splitlines()}
    tags = git_text(root, "for-each-ref", "--sort=creatordate", "--format=%(refname:strip=2)", "refs/tags").splitlines()
    return [tag for tag in tags if tag.startswith(TAGS) and tag not in there]


def push(root: Path, remote: str, refspec: str) -> None:
    try:
        git_text(root, "push", "--quiet", remote, refspec)
    except UserError as error:
        raise NetworkError(f"publish: {error}; the next run publishes again") from error
