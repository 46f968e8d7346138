"""Push files and then refs to the remotes, so that no tag there points to files that are missing; fetch them.

Machines settle the numbers of versions at the git remote: whoever publishes a number first keeps it.  The runs of the
other machine take new numbers, and are compared with the champion of that moment.
"""

from collections.abc import Iterable
from pathlib import Path

from dvc_data.hashfile.hash_info import HashInfo

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.registry.git import git, git_text, registry_lock
from flows.registry.lock_file import read_lock
from flows.registry.remote import REMOTE, Target, ask, has_remote, local_refs, remote_refs, upstream
from flows.registry.storage import dvc_repository, lacking, lost_listings, require_remote, used_at
from flows.registry.versions import (
    MODEL,
    REFUSED,
    Tag,
    model_tags,
    record_refusal,
    registered,
    versions,
)

TAGS, HEADS = "refs/tags/", "refs/heads/"
RUNS = f"{HEADS}{layout.RUN_BRANCHES}"
ATTEMPTS = 3
"""How often refs are pushed while other machines publish at the same time."""


class Outrun(UserError):
    """Another machine published a tag of the same number first; `fetch_versions` makes room for its tag (exit 2)."""


def publish(root: Path) -> list[str]:
    """Push the model tags that the git remote lacks, after their files, with the branches of the runs that made them.

    The refs are pushed at once: either the remote takes all of them, or none.  Return the names of the tags and
    branches that were pushed.

    Raises UserError: exit 2 without remotes, or for a tag made by hand whose name the remote has for another commit;
    5 if a hook or a rule of the git remote declines the push, and, after pushing everything else, for a version whose
    files are lost.  Raises NetworkError (exit 5) when a remote does not answer.  Raises Outrun, before anything is
    pushed, if a run's version must be withdrawn.
    """
    require_remotes(root)
    try:
        there = remote_refs(root)
        for _ in range(ATTEMPTS - 1):
            try:
                return push_missing(root, there)
            except NetworkError:
                before, there = there, remote_refs(root)
                if there == before:  # else another machine has published meanwhile
                    raise
        return push_missing(root, there)
    except NetworkError as error:
        raise NetworkError(f"publish: {error}; the next run with publish=true publishes again") from error


def require_remotes(root: Path) -> None:
    """Raise UserError (exit 2) unless git has the remote, and DVC a default remote."""
    if not has_remote(root):
        raise UserError(f"{root.absolute()}: no git remote {REMOTE}; `git remote add {REMOTE} URL`", Exit.USAGE)
    require_remote(root)


def push_missing(root: Path, there: dict[str, Target]) -> list[str]:
    """Push what the remote, which has the refs `there`, lacks; see `publish`."""
    tags = model_tags(root)
    if taken := conflicting(tags, there):
        problem = f"publish: {REMOTE} has other commits under the names of {', '.join(tag.name for tag in taken)}"
        if to_withdraw(root, tags, there) or any(tag.stage == REFUSED for tag in taken):
            raise Outrun(problem, Exit.USAGE)
        removed = " ".join(f"'{tag.name}'" for tag in taken)
        advice = f"`git tag -d {removed} && git fetch --tags {REMOTE}`, and register, promote or roll back again"
        raise UserError(f"{problem}; {advice}", Exit.USAGE)
    new = [tag for tag in tags if TAGS + tag.name not in there]
    lost = push_bytes(root, registered(new))
    pushed = [tag.name for tag in new if tag.commit not in lost]
    made = {f"{RUNS}{run_of(root, tag.commit)}" for tag in registered(new) if tag.commit not in lost}
    # A branch that is at the remote already may have more commits there.
    branches = sorted(made & local_refs(root).keys() - there.keys())
    if pushed:
        refs = branches + [TAGS + name for name in pushed]
        ask(root, "push", "--quiet", "--atomic", "--no-follow-tags", REMOTE, *refs)
    for tag in new:
        if tag.commit in lost:
            raise UserError(f"publish: {tag.name} is not published: {lost[tag.commit]}", Exit.MISSING)
    return [branch.removeprefix(HEADS) for branch in branches] + pushed


def conflicting(tags: Iterable[Tag], there: dict[str, Target]) -> list[Tag]:
    """Return the tags whose names the remote has for other commits."""
    return [tag for tag in tags if TAGS + tag.name in there and there[TAGS + tag.name].commit != tag.commit]


def to_withdraw(root: Path, tags: list[Tag], there: dict[str, Target]) -> list[str]:
    """Return the commits of runs whose versions are not published, oldest first, if another machine took a tag of one.

    All of them are returned, since a later version may have been compared with an earlier one.
    """
    clashing = conflicting(tags, there)
    published = {tag.commit for tag in tags if TAGS + tag.name in there and tag not in clashing}
    commits = [tag.commit for tag in registered(tags) if tag.commit not in published and run_of(root, tag.commit)]
    taken = {tag.commit for tag in clashing}
    return commits if taken.intersection(commits) else []


def push_bytes(root: Path, tags: list[Tag]) -> dict[str, str]:
    """Push the files of the tags' commits to the DVC remote; return why those of some commits are lost, by commit.

    Raises NetworkError (exit 5) when the remote does not answer.
    """
    lost = {}
    with dvc_repository(root) as repo:
        for tag in tags:
            try:
                outputs = read_lock(root, tag).cached
            except UserError as error:
                lost[tag.commit] = str(error)
                continue
            if not (missing := set(lost_listings(repo, outputs))):
                wanted = lacking(repo, used_at(repo, tag.commit))
                try:
                    repo.cloud.push([HashInfo("md5", digest) for digest in sorted(wanted)])
                except Exception as error:  # each kind of remote raises its own errors
                    raise NetworkError(f"the DVC remote failed: {brief(error)}") from error
                missing = lacking(repo, wanted)
            if missing:
                first = sorted(missing)[0]
                files = f"{first} and {len(missing) - 1} more" if len(missing) > 1 else first
                lost[tag.commit] = f"{files}: not in the cache, or damaged there, and not in the DVC remote"
    return lost


def fetch_versions(root: Path) -> tuple[list[str], list[str]]:
    """Fetch the upstream branch, the branches of runs, and the versions and stages that are not here yet.

    If another machine took the number of a run's version, that version is withdrawn: see `to_withdraw`.  Its tags are
    removed, and its commit stays on the run's branch, so that it can become a version again.  Of two tags for one
    commit that of the remote stays.  Refusals whose number was taken get another one.  Other tags that differ stay.
    All tags change at once, or none.

    Return the names of the tags that were fetched, and the commits of the versions that were withdrawn, oldest first.
    Raises UserError (exit 2) without remotes; NetworkError (exit 5) when one does not answer, or no longer has the
    upstream branch.
    """
    require_remotes(root)
    there, mine, tags = remote_refs(root), local_refs(root), model_tags(root)
    withdrawn = to_withdraw(root, tags, there)
    again = [tag for tag in conflicting(tags, there) if tag.stage == REFUSED and tag.commit not in withdrawn]
    gone = {TAGS + tag.name for tag in tags if tag.commit in withdrawn or tag in again}
    taken = [
        name
        for name, target in sorted(there.items())
        if name.startswith((f"{TAGS}{MODEL}@", f"{TAGS}{MODEL}#"))
        and target.digest != target.commit  # GTO takes only annotated tags
        and (name not in mine or name in gone or mine[name].commit == target.commit)
        and mine.get(name) != target
    ]
    place, branch = upstream(root)
    # No shared run starts from a branch of another remote; see `first_commit`.
    wanted = [f"{RUNS}*", *([branch] if place == REMOTE else [])]
    heads = [f"+{name}:refs/remotes/{REMOTE}/{name.removeprefix(HEADS)}" for name in wanted]
    alone = ("--quiet", "--no-tags", "--refmap=", "--no-write-fetch-head")
    ask(root, "fetch", *alone, "--stdin", REMOTE, *heads, stdin=taken)  # of tags, only the objects
    changes = [f"delete {name}" for name in sorted(gone.difference(taken))]
    changes += [f"update {name} {there[name].digest}" for name in taken]
    with registry_lock(root):
        git(root, "update-ref", "--stdin", stdin=changes)
        known = {version.commit: version for version in versions(root)} if again else {}
        for tag in again:
            if tag.commit in known:
                record_refusal(root, known[tag.commit], tag.message)
    return [name.removeprefix(TAGS) for name in taken], withdrawn


def run_of(root: Path, commit: str) -> str:
    """Return the name of the run that made a commit; '' if no run did."""
    return git_text(root, "log", "-1", "--format=%(trailers:key=Run,valueonly)", commit)


def is_own(root: Path, commit: str) -> bool:
    """Whether a run made this very commit.  A rebased or squashed copy has the run's name, too, but no new model."""
    if not (run := run_of(root, commit)):
        return False
    refs = f"{RUNS}{run}", f"{TAGS}{MODEL}@*"
    return commit in git_text(root, "for-each-ref", "--format=%(objectname) %(*objectname)", *refs).split()
