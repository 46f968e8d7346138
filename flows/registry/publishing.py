"""Push files and then refs to the remotes, so that no tag there points to files that are missing; fetch them.

Whatever the remotes lack is pushed, so a run also completes the publication that an earlier run left unfinished.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc_data.hashfile.hash_info import HashInfo

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.registry.cache import lacking, readable_files
from flows.registry.git import Tag, git, git_lines, git_text, registry_lock
from flows.registry.lock_file import read_lock
from flows.registry.remote import (
    NAME_ANOTHER,
    NOTES,
    OURS,
    REMOTE,
    TRANSFER_SECONDS,
    Target,
    ask,
    fetch,
    is_up_to_date,
    local_refs,
    other_objects,
    remote_refs,
    upstream,
)
from flows.registry.storage import cached_at, check, dvc_repository, is_sound, obtain, quiet, require_remote
from flows.registry.versions import MODEL, REFUSALS, deregistered, model_tags, of_stage, registered


class Outrun(UserError):
    """Another machine published a version of the same number first; `fetch_versions` withdraws this one (exit 2)."""


def publish(root: Path) -> list[str]:
    """Push the model tags that the git remote lacks, with their files, the runs' branches and the notes of refusals.

    The refs are pushed at once: either the remote takes all of them, or none.  A tag that the remote has for the same
    commit, but as another object, is replaced by the remote's.  Return the names of the tags, branches and notes that
    were pushed.

    Raises UserError: exit 2 without remotes, 5 if a hook or a rule of the git remote declines the push.
    Raises NetworkError (exit 5) when a remote does not answer.
    Raises Outrun, before any ref is pushed, if a run's version must be withdrawn.
    After pushing everything else, raises UserError: exit 2 for a tag whose name the remote has for another commit,
    5 for a tag whose files are lost or damaged.
    """
    require_remotes(root)
    try:
        there = remote_refs(root)
        while True:
            try:
                if replaced := other_objects(there, local_refs(root)):
                    fetch(root, REMOTE, *(f"+{name}:{name}" for name in replaced))
                pushed = push_missing(root, there)
                # In a clone of one branch git's push leaves out the remote-tracking branches, which `status` reads.
                runs = f"{layout.RUN_BRANCHES}*"
                with suppress(NetworkError):  # everything is published already
                    fetch(root, REMOTE, f"+refs/heads/{runs}:refs/remotes/{REMOTE}/{runs}")
                return pushed
            except NetworkError:
                before, there = there, remote_refs(root)
                if there == before:  # else another machine has published meanwhile
                    raise
    except NetworkError as error:
        if "hook declined" in str(error) or "push declined" in str(error):  # by a rule of the forge
            advice = "correct that, and the next run with publish=true publishes again"
            raise UserError(f"publish: {error}; {advice}", Exit.MISSING) from error
        raise NetworkError(f"publish: {error}; the next run with publish=true publishes again") from error


def require_remotes(root: Path) -> None:
    """Raise UserError (exit 2) unless git has the remote, and DVC a default remote."""
    if REMOTE not in git_text(root, "remote").split():
        raise UserError(f"{root.absolute()}: no git remote {REMOTE}; `git remote add {REMOTE} URL`", Exit.USAGE)
    require_remote(root)


def push_missing(root: Path, there: dict[str, Target]) -> list[str]:
    """Push what the remote, which has the refs `there`, lacks; see `publish`.

    Tags whose names the remote has for other commits, and tags that depend on these, are not pushed.
    """
    if withdrawn := to_withdraw(root, there):
        commits = ", ".join(commit[:12] for commit in withdrawn)
        raise Outrun(f"publish: {REMOTE} has other versions with the numbers of these commits: {commits}", Exit.USAGE)
    here = sorted(model_tags(root), key=of_stage)  # versions before champions
    tagged = {name.removeprefix("refs/tags/"): target.commit for name, target in there.items()}
    taken = [tag for tag in here if tagged.get(tag.name, tag.commit) != tag.commit]
    held = taken + [tag for tag in here if tag.name not in tagged and follows(tag, taken)]
    tags = [tag for tag in here if tag.name not in tagged and tag not in held]
    gone = deregistered(here)
    bare = [tag for tag in tags if "!" in tag.name or tag.commit in gone]  # they need no files
    known = [tag for tag in here if tag.name in tagged and tag not in taken]
    lost = push_bytes(root, [tag for tag in tags if tag not in bare], known + bare)
    lost = {name: reason for name, reason in lost.items() if name not in {tag.name for tag in bare}}
    if NOTES in there:
        merge_notes(root)
    refs = named_refs(root, [tag for tag in tags if tag.name not in lost])
    mine = local_refs(root)
    pushed = [name for name, ref in refs.items() if ref in mine and not is_up_to_date(root, ref, mine[ref], there)]
    if pushed:
        chosen = [refs[name] for name in pushed]
        ask(root, "push", "--quiet", "--atomic", "--no-follow-tags", REMOTE, *chosen, seconds=TRANSFER_SECONDS)
    if taken:
        raise UserError(f"publish: {how_to_renumber(taken, held, here)}", Exit.USAGE)
    if lost:
        name, reason = next(iter(lost.items()))
        state = "is published, but damaged here" if name in tagged else "is not published"
        raise UserError(f"publish: {name} {state}: {reason}", Exit.MISSING)
    return pushed


def named_refs(root: Path, tags: list[Tag]) -> dict[str, str]:
    """Return what is pushed, by the names for the log: the branches of runs, the notes of refusals, and the tags."""
    return {
        **{f"branch {branch}": f"refs/heads/{branch}" for branch in finished_branches(root)},
        "the reasons of refusals": NOTES,
        **{tag.name: f"refs/tags/{tag.name}" for tag in tags},
    }


def follows(tag: Tag, taken: list[Tag]) -> bool:
    """Whether a tag depends on one of those whose names the remote has for other commits.

    A champion's tag names a version by its commit, and depends on all champions before it.
    """
    return any(tag.commit == other.commit or (of_stage(tag) and of_stage(other)) for other in taken)


def how_to_renumber(taken: list[Tag], held: list[Tag], here: list[Tag]) -> str:
    """Say which tags' names the remote has for other commits, and how to replace them and the others that are held.

    `here` are all tags of this repository.
    """
    problem = f"not published, since {REMOTE} has other commits under these names: {', '.join(t.name for t in taken)}"
    numbered = {tag.commit for tag in here if tag not in held and not of_stage(tag)}
    unnumbered = [tag.commit for tag in taken if not of_stage(tag) and tag.commit not in numbered]
    steps = [f"`gto register {MODEL} {commit[:12]}`" for commit in unnumbered]
    gone = deregistered(here)
    deprecate = f"`gto deprecate {MODEL} vX.Y.Z` with the new number of"
    steps += [f"{deprecate} {commit[:12]}" for commit in unnumbered if commit in gone]
    if any(map(of_stage, held)):
        steps.append("promote or roll back again")
    removed = " ".join(f"'{tag.name}'" for tag in held)
    then = f", and then {' and '.join(steps)}" if steps else ""
    return f"{problem}; `git tag -d {removed} && git fetch --tags {REMOTE}`{then}"


def to_withdraw(root: Path, there: dict[str, Target]) -> list[str]:
    """Return the commits of runs whose versions are not published, oldest first, if another machine took a tag of one.

    All of them are returned, since a later version may have been compared with an earlier one.
    """
    tags = model_tags(root)
    pairs = [(tag.commit, there[f"refs/tags/{tag.name}"].commit) for tag in tags if f"refs/tags/{tag.name}" in there]
    published = {ours for ours, theirs in pairs if ours == theirs}
    taken = {ours for ours, theirs in pairs if ours != theirs}
    if taken <= published:
        return []
    commits = [tag.commit for tag in registered(tags) if tag.commit not in published and run_of(root, tag.commit)]
    return list(dict.fromkeys(commits)) if taken.intersection(commits) else []  # a commit may have two versions


def fetch_versions(root: Path) -> tuple[list[str], list[str]]:
    """Fetch the upstream branch, the branches of runs, and the versions, champions and notes that are not here yet.

    If another machine took the number of a run's version, that version is withdrawn: see `to_withdraw`.  Of the other
    tags that differ, those that `other_objects` returns are replaced, and the rest stay.  Return the names of the tags
    that were fetched, and the commits of the versions that were withdrawn, oldest first.  Raises UserError: exit 2
    without remotes, 5 if the remote no longer has the upstream branch; NetworkError (exit 5) when it does not answer.
    """
    require_remotes(root)
    there, mine = remote_refs(root), local_refs(root)
    withdrawn = to_withdraw(root, there)
    ours = sorted(name for name in there if name.startswith(OURS))
    missing = [name for name in ours if name not in mine]
    taken = {name: there[name].digest for name in ours if name in mine and mine[name].commit in withdrawn}
    replaced = other_objects(there, mine)
    # Of the tags that other machines took only the objects are fetched: `withdraw` changes all names at once.
    wanted = [*(f"{name}:{name}" for name in missing), *(f"+{name}:{name}" for name in replaced), *taken]
    heads = [f"+refs/heads/{name}:refs/remotes/{REMOTE}/{name}" for name in branches(root, there)]
    fetch(root, "--stdin", REMOTE, *heads, stdin=wanted)
    if NOTES in there:
        merge_notes(root)
    if withdrawn:  # last, since another attempt after a failure would not find them again
        withdraw(root, withdrawn, taken)
    return [name.removeprefix("refs/tags/") for name in sorted([*missing, *replaced, *taken])], withdrawn


def branches(root: Path, there: dict[str, Target]) -> list[str]:
    """Return the names of the branches to fetch: those of runs, and the upstream branch if it is on the remote.

    Other branches are not fetched: if two names conflict, such as `a` and `a/b`, git refuses all of them.  Raises
    UserError (exit 5) if the upstream branch is not among the remote's refs `there`.
    """
    place, ref = upstream(root)
    if place != REMOTE:  # no upstream branch, or one from which no shared run starts: see `first_commit`
        return [f"{layout.RUN_BRANCHES}*"]
    name = ref.removeprefix("refs/heads/")
    if ref not in there:
        raise UserError(f"{root}: the upstream branch {name} is no longer at {REMOTE}; {NAME_ANOTHER}", Exit.MISSING)
    return [f"{layout.RUN_BRANCHES}*", name]


def withdraw(root: Path, commits: list[str], taken: dict[str, str]) -> None:
    """Remove the unpublished tags of these commits (versions, champions) and their unpublished notes of refusals.

    The names in `taken` become tags of the given objects.  All tags change at once, or none.  The commits stay on their
    runs' branches, so that they can become versions again.  Raises UserError.
    """
    with registry_lock(root):
        for commit in commits:
            git(root, "notes", f"--ref={REFUSALS}", "remove", "--ignore-missing", commit)
        names = [f"refs/tags/{tag.name}" for tag in model_tags(root) if tag.commit in commits]
        changes = [f"delete {name}" for name in names if name not in taken]
        changes += [f"update {name} {digest}" for name, digest in taken.items()]
        git(root, "update-ref", "--stdin", stdin=changes)


def merge_notes(root: Path) -> None:
    """Merge the remote's notes of refusals, which other machines may have pushed, into the local ones."""
    theirs = f"{NOTES}-{REMOTE}"
    fetch(root, REMOTE, f"+{NOTES}:{theirs}")
    with registry_lock(root):
        git_text(root, "notes", f"--ref={NOTES}", "merge", "--quiet", "--strategy=ours", theirs)


def run_of(root: Path, commit: str) -> str:
    """Return the name of the run that made a commit; '' if no run did."""
    return git_text(root, "log", "-1", "--format=%(trailers:key=Run,valueonly)", commit)


def is_own(root: Path, commit: str) -> bool:
    """Whether a run made this very commit.  A rebased or squashed copy has the run's name, too, but no new model."""
    if not (run := run_of(root, commit)):
        return False
    refs = f"refs/heads/{layout.RUN_BRANCHES}{run}", f"refs/tags/{MODEL}@*"
    return commit in git_text(root, "for-each-ref", "--format=%(objectname) %(*objectname)", *refs).split()


def finished_branches(root: Path) -> list[str]:
    """Return the branches that hold the commit of their run; a run that still works has not made it yet."""
    form = "--format=%(refname:lstrip=2) %(trailers:key=Run,valueonly,separator=%2C)"
    listed = [line.split(" ") for line in git_lines(root, "for-each-ref", form, f"refs/heads/{layout.RUN_BRANCHES}")]
    return [branch for branch, *runs in listed if branch.removeprefix(layout.RUN_BRANCHES) in runs]


def push_bytes(root: Path, tags: list[Tag], published: list[Tag]) -> dict[str, str]:
    """Push the tags' files to the DVC remote; return the tags whose files are lost or damaged, with the reason.

    Of published tags, and of tags that need no files, those that the remote lacks are pushed if they are in the cache.
    Cached copies of the metrics that git has are pushed, too, since `vdmctl prune` keeps files that the remote lacks.
    Raises NetworkError (exit 5) when the remote does not answer.
    """
    lost = {}
    with dvc_repository(root) as repo, quiet():
        for tag in tags:
            try:
                outputs = read_lock(root, tag).cached
                stored = obtain(repo, outputs)
                for path, files in stored.items():
                    for file in files:
                        check(file.cached, file, f"{tag.name}: {path}: ")
                upload(repo, {*outputs.values(), *(file.md5 for files in stored.values() for file in files)})
            except NetworkError:
                raise
            except UserError as error:
                lost[tag.name] = str(error)
        whole = [tag for tag in tags if tag.name not in lost]
        known, unreadable = readable_files(repo, root, [*published, *whole])
        lost |= unreadable
        place = cached_at(repo)
        spare = lacking(repo, known & set(repo.cache.local.all()))
        upload(repo, {digest for digest in spare if is_sound(place(digest), digest)})
    return lost


def upload(repo: Any, digests: set[str]) -> None:
    """Push the objects with these digests to the DVC remote.  Raises NetworkError (exit 5)."""
    if not digests:
        return
    try:
        result = repo.cloud.push([HashInfo("md5", digest) for digest in sorted(digests)])
    except Exception as error:  # each kind of remote raises its own errors
        raise NetworkError(f"the DVC remote failed: {brief(error)}") from error
    if missing := max(len(result.failed), len(lacking(repo, digests))):  # DVC counts no file that it finds damaged
        raise NetworkError(f"the DVC remote did not take {missing} files")
