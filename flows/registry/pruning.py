"""What an installation needs to keep, and the tags, branches and cached files that it can do without.

Nothing on a remote is deleted, no tag of a champion, and no note of a refusal: the evidence of later versions counts
the refused ones (`num_judged`), and the next publication would carry a deletion of notes to the remote.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import lock_repo
from dvc.rwlock import rwlock

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.registry.git import Tag, annotated_tags, commit_of, contents, git, git_lines, git_text
from flows.registry.lock_file import read_lock
from flows.registry.publishing import REMOTE, remote_refs
from flows.registry.storage import cached_at, dvc_repository, files, pull, quiet, require
from flows.registry.versions import CHAMPION_TAG, MODEL, REFUSALS, Version, reign, versions

BRANCHES, TAGS = "refs/heads/", "refs/tags/"
FIELDS = ("refname", "objectname", "*objectname", "committerdate:unix", "worktreepath")
BETWEEN_CHECKS = 100
"""The number of files that are deleted between two checks that no run has started."""


class Ref(NamedTuple):
    """A branch or tag: its full name, its object, its commit, when that was made, and where it is checked out."""

    name: str
    digest: str
    commit: str
    made: int
    folder: str


class Kept(NamedTuple):
    """The name of a version or champion that stays, and why."""

    name: str
    reason: str


class Plan(NamedTuple):
    """What stays, and the branches and tags that go.

    `versions` are the versions and champions that stay with all their files, by commit.  The files of the commits in
    `others` stay, too: of the commit that is checked out, and of the branches and tags that stay.  `runs` are the runs
    that made any of these commits.  `since` is when the newest version was made, 0 without versions: whatever is newer
    may still become a version.
    """

    versions: dict[str, Kept]
    others: list[str]
    refs: list[Ref]
    runs: set[str]
    since: float


def make_plan(root: Path, keep: int, published: Mapping[str, str] | None) -> Plan:
    """Return what to keep for the last `keep` champions and the `keep` newest versions.

    `published` maps the remote's refs to their commits; None means that no remote is configured.  A version or a branch
    that the remote lacks stays.  Raises UserError (exit 5) outside a repository, or in one without a commit.
    """
    known, tags = versions(root), annotated_tags(root, MODEL)
    names = {tag.commit: tag.name for tag in tags} | {version.commit: version.name for version in known}
    reasons = reasons_to_keep(root, known, tags, keep, published)
    made = [datetime.fromisoformat(version.created).timestamp() for version in known if version.created]
    since = max(made, default=0.0)
    crowned = {tag.commit for tag in tags if CHAMPION_TAG.fullmatch(tag.name)}
    # An old champion keeps its tag, since the champion's history names it; its files go.
    refused = {TAGS + each.name for each in known if each.commit not in {*reasons, *crowned}}

    def goes(ref: Ref) -> bool:
        if not ref.name.startswith(BRANCHES + layout.RUN_BRANCHES):
            return ref.name in refused
        in_use = ref.folder and not Path(ref.folder).is_relative_to((root / layout.WORKTREES).resolve())
        unpublished = published is not None and published.get(ref.name) != ref.commit
        return not (ref.commit in reasons or in_use or unpublished or ref.made > since)

    every = refs(root)
    stay = [ref for ref in every if not goes(ref) and not ref.name.startswith((f"{TAGS}{MODEL}@", f"{TAGS}{MODEL}#"))]
    others = {commit_of(root, "HEAD"), *(ref.commit for ref in stay)} - reasons.keys()
    kept = {commit: Kept(names[commit], reason) for commit, reason in reasons.items()}
    return Plan(kept, sorted(others), list(filter(goes, every)), runs_of(root, {*reasons, *others}), since)


def reasons_to_keep(
    root: Path, known: list[Version], tags: list[Tag], keep: int, published: Mapping[str, str] | None
) -> dict[str, str]:
    """Return why the commits of versions and champions stay, by commit."""
    found = [(int(match[2]), tag) for tag in tags if (match := CHAMPION_TAG.fullmatch(tag.name)) and not match[1]]
    history = [tag for _, tag in sorted(found)]
    other_stages = [tag for tag in tags if tag.name.startswith(f"{MODEL}#") and not CHAMPION_TAG.fullmatch(tag.name)]
    notes = git_lines(root, "notes", f"--ref={REFUSALS}", "list")
    decided = {line.split()[1] for line in notes} | {tag.commit for tag in history}
    reasons: list[tuple[str, Iterable[str]]] = [
        (f"not on {REMOTE}", (each.commit for each in known if is_missing(each, published))),
        ("neither promoted nor refused", (each.commit for each in known if each.commit not in decided)),
        ("has another stage", (tag.commit for tag in other_stages)),
        ("among the newest", (version.commit for version in known[-keep:])),
        ("among the last champions", [*last(reign(tags), keep), *last(history, keep)]),
    ]
    # The last reason for a commit counts, so the most important reasons are last.
    return {commit: reason for reason, commits in reasons for commit in commits}


def is_missing(version: Version, published: Mapping[str, str] | None) -> bool:
    """Whether there is a remote and it lacks the version's tag, or has another commit by that name."""
    return published is not None and published.get(TAGS + version.name) != version.commit


def last(tags: list[Tag], count: int) -> list[str]:
    """Return the commits of the last tags, `count` different ones."""
    return list(dict.fromkeys(tag.commit for tag in reversed(tags)))[:count]


def published(root: Path) -> dict[str, str] | None:
    """Return the commits of the remote's branches and tags; None without a remote.  Raises NetworkError (exit 5)."""
    return remote_refs(root) if REMOTE in git_text(root, "remote").split() else None


def refs(root: Path) -> list[Ref]:
    """Return all local branches and tags."""
    form = "--format=" + "%00".join(f"%({field})" for field in FIELDS)
    lines = git_lines(root, "for-each-ref", form, BRANCHES, TAGS)
    # `*objectname` is the commit of an annotated tag, and empty for anything else.
    return [
        Ref(name, digest, commit or digest, int(made or 0), folder)
        for name, digest, commit, made, folder in (line.split("\0") for line in lines)
    ]


def runs_of(root: Path, commits: Iterable[str]) -> set[str]:
    """Return the names of the runs that made the commits."""
    form = "--format=%(trailers:key=Run,valueonly)"
    listed = git(root, "log", "--no-walk", form, "--stdin", stdin="".join(f"{one}\n" for one in commits).encode())
    return set(listed.decode(errors="replace").split())


def delete_refs(root: Path, refs: Iterable[Ref]) -> None:
    """Delete branches and tags, all or none.  Raises UserError (exit 5) if one of them has changed meanwhile."""
    lines = "".join(f"delete {ref.name} {ref.digest}\n" for ref in refs)
    git(root, "update-ref", "--stdin", stdin=lines.encode())


@contextmanager
def cache_locked(root: Path) -> Iterator[Any]:
    """Open DVC's repository and hold its locks: of the repository, and of all paths, which stages hold while they run.

    Raises UserError: exit 5 outside a repository or when a lock cannot be written, 6 while a DVC command runs.
    """
    with ExitStack() as stack:
        repo = stack.enter_context(dvc_repository(root))
        stack.enter_context(quiet("dvc", "dvc_data", "dvc_objects"))
        try:
            stack.enter_context(lock_repo(repo))
            stack.enter_context(rwlock(repo.tmp_dir, repo.fs, "vdmctl prune", [], [repo.root_dir], False))
        except LockError as error:
            raise UserError(f"{root}: another DVC command is running; wait for it", Exit.BUSY) from error
        except DvcException as error:
            raise UserError(f"{root}: {error}", Exit.MISSING) from error
        except OSError as error:
            reason = f"{repo.tmp_dir}: DVC cannot write its lock: {error.strerror}"
            raise UserError(f"{reason}; on a full disk, delete a file to make room for it", Exit.MISSING) from error
        yield repo


def superfluous(repos: list[Any], root: Path, plan: Plan) -> list[Path]:
    """Return the files in DVC's cache that nothing needs, listings of folders first.

    `repos` are DVC's repositories of all worktrees, that at `root` first.

    Raises UserError: exit 5 when it is not known what a version needs, 2 for a cache outside the repository.
    """
    repo, *others = repos
    if not Path(repo.cache.local_cache_dir).resolve().is_relative_to(root.resolve()):
        reason = "is outside the repository, so other projects may use it; `dvc gc --projects` prunes such a cache"
        raise UserError(f"DVC's cache {repo.cache.local_cache_dir} {reason}", Exit.USAGE)
    place, cached = cached_at(repo), set(repo.cache.local.all())
    going = cached - needed(repo, root, plan) if cached else set()
    for other in others:
        going -= used_in(other)
    # DVC takes a folder for complete if its listing is there, so no listing may outlive its files.
    return [place(digest) for digest in sorted(going, key=lambda digest: (not digest.endswith(".dir"), digest))]


def needed(repo: Any, root: Path, plan: Plan) -> set[str]:
    """Return the digests of all files that the plan's commits, the working tree and DVC's experiments need.

    A run that failed after its training has its results in DVC's run cache only.  Those newer than the newest version
    stay, since the next run continues from them.
    """
    commits = [*plan.versions, *plan.others]
    locks = contents(root, [f"{commit}:{layout.DVC_LOCK}" for commit in commits])
    for commit in commits:
        version = plan.versions.get(commit)
        if locks[f"{commit}:{layout.DVC_LOCK}"] is not None:
            try:
                require_listings(repo, root, Tag(version.name if version else commit[:12], commit, "", ""))
            except UserError:
                if version:
                    raise
    entries = Path(repo.stage_cache.cache_dir).glob("*/*/*")
    recent = [(path.parent.name, path.name) for path in entries if path.stat().st_mtime > plan.since]
    return used_in(repo, revs=commits, all_experiments=True, used_run_cache=recent)


def used_in(repo: Any, **options: Any) -> set[str]:
    """Return the digests of all files that a worktree needs, and those of `options`.

    Raises UserError (exit 5) if DVC cannot find them.
    """
    try:
        with chdir(repo.root_dir):  # DVC takes the stages in its run cache for those of the working directory
            used = repo.used_objs(force=True, **options)
    except DvcException as error:
        raise UserError(f"DVC cannot tell what is in use in {repo.root_dir}: {error}", Exit.MISSING) from error
    return {each.value for objects in used.values() for each in objects}


def require_listings(repo: Any, root: Path, tag: Tag) -> None:
    """Fetch the listings of a commit's folders that are not in the cache.

    Without a listing nobody knows the folder's files, so they would be deleted.  Raises UserError (exit 5) for one that
    is damaged, or neither in the cache nor in the remote.
    """
    place = cached_at(repo)
    outputs = read_lock(root, tag).outputs
    listings = {path: digest for path, digest in outputs.items() if digest.endswith(".dir")}
    missing = {digest for digest in listings.values() if not place(digest).is_file()}
    pull(repo, missing, f"{tag.name}: ")
    for path, digest in listings.items():
        require(repo, place(digest), f"{tag.name}: {path}")
        list(files(digest, place))


def delete_files(paths: list[Path], check: Callable[[], None]) -> None:
    """Delete files.  Call `check`, which raises an error to stop, before every `BETWEEN_CHECKS` of them."""
    for start in range(0, len(paths), BETWEEN_CHECKS):
        check()
        for path in paths[start : start + BETWEEN_CHECKS]:
            path.unlink(missing_ok=True)
