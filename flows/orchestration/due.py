"""What a run would have to do, and why: code, parameters or images that are other than those of the newest run."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from flows.core import bounded_yaml, layout
from flows.core.errors import UserError
from flows.core.files import parse_json
from flows.core.params import CHAMPION
from flows.images.download import line_for_name
from flows.images.folder import find_images
from flows.orchestration.answers import SourceNow
from flows.orchestration.arrivals import damaged_files, recorded_files
from flows.orchestration.workspace import compose_params
from flows.project.project import Project
from flows.registry.versions import VERSION_NAME
from flows.repository.commit import Commit
from flows.repository.repository import MODEL, Repository
from flows.repository.sources import SourceState, compare_source


class Due(NamedTuple):
    """The newest run, and what differs from it.  As text, what a run has to do and why, or that there is nothing."""

    source: Path
    newest: Commit | None
    """The commit of the newest run; None in a project without runs."""
    images: SourceState = "changed"
    """Those of the source.  An import is looked at in the run's folder, where it is brought up to date."""
    same_code: bool = False
    same_parameters: bool = False
    same_preparation: bool = False
    """Whether the newest run read its images by the same code and parameters, so that its images may be compared."""
    is_undecided: bool = False
    """Whether the newest run was killed before its model was promoted or refused."""

    @property
    def is_nothing(self) -> bool:
        """Whether a run would repeat the newest one; on a machine without the source, with the recorded images."""
        same = self.same_code and self.same_parameters and self.images in ("same", "missing")
        return same and not self.is_undecided

    @property
    def lacks_source(self) -> bool:
        """Whether the source is not on this machine."""
        return self.images == "missing"

    def __str__(self) -> str:
        if self.newest is None:
            return "the first run"
        if self.is_nothing:
            said = say_nothing_to_do(self.newest.repository, self.newest.digest)
        else:
            name = self.newest.repository.name_of(self.newest.digest)
            parts = {"code": self.same_code, "parameters": self.same_parameters, "images": self.images != "changed"}
            other = [part for part, is_same in parts.items() if not is_same]
            reasons = [f"other {' and '.join(other)} than those of {name}"] if other else []
            if self.images == "imported":
                reasons.append(f"{self.source} is an import, which a run brings up to date")
            if self.is_undecided:
                reasons.append(f"{name} was neither promoted nor refused")
            said = "; ".join(reasons)
        return f"{said}; {self.without_source}" if self.lacks_source else said

    @property
    def without_source(self) -> str:
        """What a run does on a machine without the source; "" if the source is there."""
        if not self.lacks_source:
            return ""
        return f"{self.source} is not on this machine, so the images are those of the newest run"


def say_nothing_to_do(repository: Repository, commit: str) -> str:
    """Return in one line that a commit has the results of a run already."""
    name = repository.name_of(commit)
    return f"nothing to do: {name} has the results of this code, these parameters and these images"


def find_due(project: Project, base: str, parameters: dict[str, Any], images: SourceState | None = None) -> Due:
    """Return what a run of the commit `base` with these parameters has to do; `images` is the source's state if known.

    Raises UserError (exit 5) for a relative source that neither git nor DVC tracks, since a run would not have it.
    """
    repository = project.repository
    source, newest = Path(str(parameters["data"]["source"])), newest_results(repository)
    images = images or compare_source(repository, base, source, newest)
    if newest is None:
        return Due(source, None, images)
    undecided = project.is_undecided(newest.digest)
    try:
        recorded = newest.lock
    except UserError:  # of a version that was made by hand
        return Due(source, newest, images, is_undecided=undecided)
    code = [str(layout.DVC_GRAPH), *sorted(recorded.code)]
    preparing = [path for path in code if path in list_dependencies(repository, base, "download")]

    def is_same(paths: list[str]) -> bool:
        return repository.objects(base, paths) == repository.objects(newest.digest, paths)

    return Due(
        source,
        newest,
        images,
        same_code=is_same(code),
        same_parameters=all(
            take_recorded(newest, parameters.get(name, {}), values) == values
            for name, values in recorded.parameters.items()
        ),
        same_preparation=parameters["data"] == recorded.parameters.get("data") and is_same(preparing),
        is_undecided=undecided,
    )


def newest_results(repository: Repository) -> Commit | None:
    """Return the commit of the newest run or version; None before the first."""
    made = list_results(repository)
    return Commit(repository, made[0], "the newest run") if made else None


def list_results(repository: Repository) -> list[str]:
    """Return the commits of runs and versions, newest first."""
    commit = "%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)"
    form = f"--format={commit} %(refname:lstrip=2) %(contents:trailers:key=Run,valueonly,separator=)"
    refs = (f"refs/heads/{layout.RUN_BRANCHES}", f"refs/tags/{MODEL}@*")
    order = "--sort=-version:refname", "--sort=-creatordate"
    found = []
    for made, name, *run in map(str.split, repository.git_text("for-each-ref", *order, form, *refs).splitlines()):
        # "!" is GTO's mark of withdrawn ones.  The branch of a run that made nothing is at the commit of its start.
        if "!" not in name if name.startswith(f"{MODEL}@") else name == layout.RUN_BRANCHES + "".join(run):
            found.append(made)
    return list(dict.fromkeys(found))


def take_recorded(newest: Commit, section: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a section's parameters, with what a run recorded in place of `start_from: champion`.

    The champion, or that there was none yet, is recorded by its name: another one alone is no reason to train.
    """
    if section.get("start_from") != CHAMPION:
        return section
    start = recorded.get("start_from")
    if start is None:
        before = newest.repository.content_of(f"{newest.digest}^:{layout.PARAMS}")  # where that run began
        was_champion = bounded_yaml.sections(before).get("train", {}).get("start_from") == CHAMPION
    else:
        was_champion = VERSION_NAME.fullmatch(start) is not None
    return section | {"start_from": start} if was_champion else section


def list_dependencies(repository: Repository, commit: str, stage: str) -> list[str]:
    """Return the dependencies of a stage in the graph of a commit."""
    graph = bounded_yaml.sections(repository.content_of(f"{commit}:{layout.DVC_GRAPH}"))
    return [str(path) for path in graph.get("stages", {}).get(stage, {}).get("deps", [])]


class FileChanges(NamedTuple):
    """How many files of a folder the newest run did not read, or that it read are gone; None where nobody knows."""

    added: int | None = None
    empty: int | None = None
    """Of those that were added."""
    removed: int | None = None
    """Images, of which a file may have several."""
    damaged: int | None = None
    """Left out by the newest run."""


def find_due_now(project: Project) -> SourceNow:
    """Return what a run of the newest commit would find, and count files if the source is a folder.

    They are counted if the files of the newest run are on this machine.  Raises UserError.
    """
    repository = project.repository
    base = repository.git_text("rev-parse", "HEAD").strip()
    parameters = bounded_yaml.parse(compose_params(project, base))
    source, newest = Path(str(parameters["data"]["source"])), newest_results(repository)
    changes, state = FileChanges(), None
    # Of a set without copies, the names do not say what is new.
    is_listed = source.is_dir() and not parameters["data"].get("without_copies")
    if newest and source.is_absolute() and is_listed:
        changes, state = count_changes(newest, source)
    due = find_due(project, base, parameters, state)
    if newest and due.images == "same":
        changes = FileChanges(added=0, empty=0, removed=0, damaged=changes.damaged)
    return SourceNow(
        source=str(source),
        state=due.images,
        due=str(due),
        since=repository.name_of(newest.digest) if newest else None,
        **changes._asdict(),
    )


def count_changes(newest: Commit, source: Path) -> tuple[FileChanges, SourceState | None]:
    """Return how the files of a folder differ from those of the newest run by their names, and "changed" if they do.

    None in place of it leaves the look at their contents to `find_due`.
    """
    known: dict[str, set[bytes]] = {}
    with suppress(UserError, ValueError):  # DVC's cache here lacks the run's files
        known, damaged = recorded_files(newest), damaged_files(newest)
    if not known or (found := find_images(source)).container:  # files with many pictures
        return FileChanges(), None
    names = {str(parse_json(line_for_name(name))): name for name in found.names}
    new = [source / name for said, name in names.items() if said not in known.keys() | damaged]
    kept = set[bytes]().union(*(images for name, images in known.items() if name in names))
    changes = FileChanges(
        added=len(new),
        empty=sum(path.stat().st_size == 0 for path in new),
        removed=len(set[bytes]().union(*known.values()) - kept),
        damaged=len(damaged & names.keys()),
    )
    # Files which nobody has read yet are not hashed.
    return changes, None if names.keys() - damaged == known.keys() else "changed"
