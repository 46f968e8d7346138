"""Push files and then refs to the remotes, so that no tag there points to files that are missing; fetch them.

Machines settle the numbers of versions at the git remote: whoever publishes a number first keeps it.  The runs of the
other machine take new numbers, and are compared with the champion of that moment.
"""

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.registry.versions import open_registry
from flows.repository.cache import push, require_remote
from flows.repository.repository import HEADS, MODEL, REMOTE, TAGS, Repository, Target
from flows.repository.tags import Tag, registered_tags

RUNS = f"{HEADS}{layout.RUN_BRANCHES}"


class Outrun(UserError):
    """Another machine published a tag of the same number first; `fetch_versions` makes room for its tag (exit 2)."""


def require_remotes(repository: Repository) -> None:
    """Raise UserError (exit 2) unless git has the remote, and DVC a default remote."""
    if REMOTE not in repository.git_lines("remote"):
        place = repository.folder.absolute()
        raise UserError(f"{place}: no git remote {REMOTE}; `git remote add {REMOTE} URL`", Exit.USAGE)
    require_remote(repository)


def publish(repository: Repository) -> list[str]:
    """Push the model tags that the git remote lacks, after their files, with the branches of the runs that made them.

    The refs are pushed at once: either the remote takes all of them, or none.  Return the names of the tags and
    branches that were pushed.

    Raises UserError: exit 2 without remotes, or for a tag made by hand whose name the remote has for another commit;
    5 for a version whose files are lost, or if a hook or a rule of the git remote declines the push.  Raises
    NetworkError (exit 5) when a remote does not answer, or when another machine publishes at this moment.  Raises
    Outrun if a run's version must be withdrawn.  Then no ref is pushed.
    """
    require_remotes(repository)
    try:
        there, tags = repository.refs(REMOTE), open_registry(repository).tags
        require_free(repository, tags, there)
        new = [tag for tag in tags if TAGS + tag.name not in there]
        push_files(repository, registered_tags(new))
        made = {f"{RUNS}{repository.run_of(tag.commit)}" for tag in registered_tags(new)}
        # A branch that is at the remote already may have more commits there.
        refs = sorted(made & repository.refs().keys() - there.keys()) + [TAGS + tag.name for tag in new]
        if new:
            repository.ask("push", "--quiet", "--atomic", "--no-follow-tags", REMOTE, *refs)
    except NetworkError as error:
        raise NetworkError(f"publish: {error}; the next run with publish=true publishes again") from error
    return [ref.removeprefix(HEADS).removeprefix(TAGS) for ref in refs]


def require_free(repository: Repository, tags: list[Tag], there: dict[str, Target]) -> None:
    """Raise Outrun or UserError (exit 2) if the remote has other commits under the names of tags."""
    if not (taken := list_conflicts(tags, there)):
        return
    problem = f"publish: {REMOTE} has other commits under the names of {', '.join(tag.name for tag in taken)}"
    if list_withdrawn(repository, tags, there):
        raise Outrun(problem, Exit.USAGE)
    removed = " ".join(f"'{tag.name}'" for tag in taken)
    advice = f"`git tag -d {removed} && git fetch --tags {REMOTE}`, and register, promote or roll back again"
    raise UserError(f"{problem}; {advice}", Exit.USAGE)


def list_conflicts(tags: list[Tag], there: dict[str, Target]) -> list[Tag]:
    """Return the tags whose names the remote has for other commits."""
    return [tag for tag in tags if TAGS + tag.name in there and there[TAGS + tag.name].commit != tag.commit]


def list_withdrawn(repository: Repository, tags: list[Tag], there: dict[str, Target]) -> list[str]:
    """Return the commits of runs whose versions are not published, oldest first, if another machine took a tag of one.

    All of them are returned, since a later version may have been compared with an earlier one.
    """
    clashing = list_conflicts(tags, there)
    published = {tag.commit for tag in tags if TAGS + tag.name in there and tag not in clashing}
    commits = [
        tag.commit for tag in registered_tags(tags) if tag.commit not in published and repository.run_of(tag.commit)
    ]
    taken = {tag.commit for tag in clashing}
    return commits if taken.intersection(commits) else []


def push_files(repository: Repository, tags: list[Tag]) -> None:
    """Push the files of the tags' commits to the DVC remote.

    Raises UserError (exit 5) for a version whose files are lost, NetworkError (exit 5) when the remote does not answer.
    """
    with repository.dvc() as repo:
        for tag in tags:
            push(repo, tag)


def fetch_versions(repository: Repository) -> tuple[list[str], list[str]]:
    """Fetch the remote's branches, and the versions and stages that are not here yet.

    If another machine took the number of a run's version, that version is withdrawn: see `list_withdrawn`.  Its tags
    are removed, and its commit stays on the run's branch, so that it can become a version again.  Other tags that
    differ stay, also those that are made meanwhile.  All tags change at once, or none.

    Return the names of the tags that were fetched, and the commits of the versions that were withdrawn, oldest first.
    Raises UserError (exit 2) without remotes; NetworkError (exit 5) when one does not answer, or when somebody changes
    a tag at this moment.
    """
    require_remotes(repository)
    listed, before = repository.refs(REMOTE), repository.refs()
    there = {name: target for name, target in listed.items() if name.startswith((f"{TAGS}{MODEL}@", f"{TAGS}{MODEL}#"))}
    new = sorted(name for name in there if before.get(name) != there[name])
    # Of tags, only the objects.
    repository.ask("fetch", "--quiet", "--prune", "--no-tags", REMOTE, f"+{HEADS}*:refs/remotes/{REMOTE}/*", *new)
    with repository.registry_lock():
        mine, tags = (
            repository.refs(),
            open_registry(repository).tags,
        )  # a run may have made some while this one fetched
        withdrawn = list_withdrawn(repository, tags, there)
        gone = {TAGS + tag.name for tag in tags if tag.commit in withdrawn} & mine.keys()
        taken = [name for name in sorted(there) if name not in mine or name in gone]
        changes = [f"delete {name} {mine[name].digest}" for name in sorted(gone.difference(taken))]
        changes += [f"update {name} {there[name].digest} {mine[name].digest}" for name in taken if name in mine]
        changes += [f"create {name} {there[name].digest}" for name in taken if name not in mine]
        try:
            repository.git("update-ref", "--stdin", stdin=changes)
        except UserError as error:  # somebody with GTO or git, who takes no lock, was faster
            raise NetworkError(f"the versions changed while others were fetched: {error}") from error
    return [name.removeprefix(TAGS) for name in taken], withdrawn


def fetch_tags(repository: Repository) -> list[str]:
    """Fetch the versions and stages that are not here yet, and change nothing else; return the names of their tags.

    A tag that the remote has for another commit stays as it is here, and nothing is withdrawn: that is for the runs,
    by `fetch_versions`.  Raises UserError (exit 5), which is a NetworkError if the remote does not answer.
    """
    listed, before = repository.refs(REMOTE), repository.refs()
    new = [name for name in listed if name.startswith((f"{TAGS}{MODEL}@", f"{TAGS}{MODEL}#")) and name not in before]
    if new:
        repository.ask("fetch", "--quiet", "--no-tags", REMOTE, *(f"{name}:{name}" for name in sorted(new)))
    return [name.removeprefix(TAGS) for name in sorted(new)]
