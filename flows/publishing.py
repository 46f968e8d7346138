"""Publishing: bytes first, then commits, then tags, so that no tag ever points to bytes that the remote lacks.

Everything that is missing at the remotes is published, so that a run completes what an interrupted one began.
"""

from pathlib import Path
from typing import Any

from dvc.config import NoRemoteError
from dvc_data.hashfile.hash_info import HashInfo

from flows.errors import Exit, NetworkError, UserError
from flows.git import Tag, annotated_tags, git_text
from flows.lineage import read_lock
from flows.registry import METRICS, MODEL
from flows.storage import obtain, opened, quiet
from flows.workspace import PREFIX

AGAIN = "the next run publishes again"
# A remote that takes the connection and then says nothing would hold the run for ever.
LIST_SECONDS, PUSH_SECONDS = 60, 900


def publish(root: Path, remote: str = "origin") -> list[str]:
    """Push every model tag that the git remote lacks, with its branch and its bytes; the names of the tags pushed.

    Raises UserError (exit 2 without remotes; when all others are pushed, exit 2 for a tag whose name the remote has
    for another commit and exit 5 for one whose bytes are lost), NetworkError (exit 5) when a remote does not answer.
    """
    if remote not in git_text(root, "remote").split():
        raise UserError(f"publish: no git remote {remote}; `git remote add {remote} URL`", Exit.USAGE)
    here = [*annotated_tags(root, f"{MODEL}@"), *annotated_tags(root, f"{MODEL}#")]  # versions before champions
    there = remote_tags(root, remote)
    taken = {tag.name: tag.commit for tag in here if there.get(tag.name, tag.commit) != tag.commit}
    tags = [tag for tag in here if tag.name not in there and tag.commit not in taken.values()]
    lost = push_bytes(root, tags)
    if git_text(root, "for-each-ref", f"refs/heads/{PREFIX}"):
        push(root, remote, f"refs/heads/{PREFIX}*:refs/heads/{PREFIX}*")
    whole = [tag.name for tag in tags if tag.name not in lost]
    for name in whole:
        push(root, remote, f"refs/tags/{name}")
    for name in taken:
        renumber = f"`git tag -d {name} && git fetch --tags {remote}`, and the next run numbers it anew"
        raise UserError(f"publish: {name} stays here: {remote} has another commit by that name; {renumber}", Exit.USAGE)
    for name, reason in lost.items():
        raise UserError(f"publish: {name} stays here: {reason}", Exit.MISSING)
    return whole


def push_bytes(root: Path, tags: list[Tag]) -> dict[str, str]:
    """Push what DVC caches of the tags' commits; the tags whose bytes nobody has, with the reason.

    Raises UserError (exit 2) without a DVC remote, NetworkError (exit 5) when it does not answer.
    """
    lost = {}
    with opened(root) as repo, quiet("dvc", "dvc_data", "dvc_objects"):
        try:
            repo.cloud.get_remote()
        except NoRemoteError as error:
            raise UserError("publish: no DVC remote; `dvc remote add --default NAME URL`", Exit.USAGE) from error
        for tag in tags:
            try:
                upload(repo, bytes_of(repo, root, tag))
            except NetworkError:
                raise
            except UserError as error:
                lost[tag.name] = str(error)
    return lost


def bytes_of(repo: Any, root: Path, tag: Tag) -> set[str]:
    """The digests of all objects of a tag's commit, which are in the cache then.  Raises UserError (exit 5)."""
    outputs = {path: digest for path, digest in read_lock(root, tag).outputs.items() if path != METRICS}
    stored = obtain(repo, outputs)
    return {*outputs.values(), *(file.md5 for files in stored.values() for file in files)}


def upload(repo: Any, digests: set[str]) -> None:
    """Raises NetworkError (exit 5)."""
    try:
        result = repo.cloud.push([HashInfo("md5", digest) for digest in sorted(digests)])
    except Exception as error:  # every kind of remote has errors of its own
        reason = str(error) or type(error).__name__
        raise NetworkError(f"publish: the DVC remote failed: {reason}; {AGAIN}") from error
    if result.failed:
        raise NetworkError(f"publish: the DVC remote did not take {len(result.failed)} files; {AGAIN}")


def remote_tags(root: Path, remote: str) -> dict[str, str]:
    """The remote's tags and their commits.  Raises NetworkError (exit 5)."""
    try:
        listed = git_text(root, "ls-remote", "--tags", remote, seconds=LIST_SECONDS)
    except UserError as error:
        raise NetworkError(f"publish: {error}; {AGAIN}") from error
    pairs = [line.split("\trefs/tags/", 1) for line in listed.splitlines()]
    # The commit of an annotated tag is in a second line, after the tag's own.
    return {name.removesuffix("^{}"): digest for digest, name in pairs}


def push(root: Path, remote: str, refspec: str) -> None:
    try:
        git_text(root, "push", "--quiet", remote, refspec, seconds=PUSH_SECONDS)
    except UserError as error:
        raise NetworkError(f"publish: {error}; {AGAIN}") from error
