"""dvc.lock, in the working tree and at a commit: which data, parameters and code made which outputs.

So a version is followed to its origin: tag -> commit -> dvc.lock there -> data, parameters, code, outputs.
"""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from flows.core import bounded_yaml, layout
from flows.core.documents import Document, FolderOrFileMd5, check_value
from flows.core.errors import Exit, UserError
from flows.core.files import read_bounded
from flows.repository.repository import Repository


class Entry(Document):
    """A dependency or an output of a stage."""

    path: str
    md5: FolderOrFileMd5


class Stage(Document):
    """A stage in dvc.lock.  The keys of `params` are a file and a section."""

    deps: list[Entry] = Field(default_factory=list)
    outs: list[Entry] = Field(default_factory=list)
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)


class LockFile(Document):
    """dvc.lock as DVC writes it."""

    stages: dict[str, Stage]


class Lock(NamedTuple):
    """The digests and parameters in a dvc.lock.

    `outputs` maps paths to md5 digests, which end in `.dir` for a folder; `code` does so for the dependencies that are
    not outputs of a stage.  `parameters` maps sections to their values.  `contradictions` names the paths and sections
    that differ between stages.  `source` is the path and the md5 of `data.source`, which is neither code nor output; it
    is None where no stage reads it, as in a project that brings its data/images itself.
    """

    outputs: dict[str, str]
    code: dict[str, str]
    parameters: dict[str, Any]
    contradictions: list[str]
    source: tuple[str, str] | None = None


def lock_here(repository: Repository) -> Lock:
    """Return the dvc.lock in the working tree.  Raises OSError, UserError (exit 5)."""
    path = repository.folder / layout.DVC_LOCK
    return parse_lock(read_bounded(path), read_bounded(repository.folder / layout.DVC_GRAPH), str(path))


def parse_lock(content: bytes, graph: bytes, name: str) -> Lock:
    """Return the digests and parameters in a dvc.lock.  Raises UserError (exit 5) that starts with `name`.

    DVC leaves stages that were renamed or removed in dvc.lock.  Those that dvc.yaml, `graph`, lacks do not count.
    """
    file = check_value(LockFile, values_of(content, name), name)
    known = values_of(graph, str(layout.DVC_GRAPH)).get("stages") or {}
    # `foreach` and `matrix` make stages such as `train@1`.
    stages = [stage for key, stage in file.stages.items() if key.partition("@")[0] in known]
    outputs = {out.path.rstrip("/"): out.md5 for stage in stages for out in stage.outs}
    digests, parameters = dict(outputs), dict[str, Any]()
    differing = set()
    for stage in stages:
        for dependency in stage.deps:
            path = dependency.path.rstrip("/")
            if digests.setdefault(path, dependency.md5) != dependency.md5:
                differing.add(path)
        for section, values in stage.params.get(str(layout.PARAMS), {}).items():
            if parameters.setdefault(section, values) != values:
                differing.add(section)
    source = str(parameters.get("data", {}).get("source")).rstrip("/")
    code = {path: md5 for path, md5 in digests.items() if path not in (*outputs, source)}
    read = (source, digests[source]) if source in digests else None
    return Lock(outputs, code, parameters, sorted(differing), read)


def values_of(content: bytes, name: str) -> dict[str, Any]:
    """Return a YAML document, which must be a mapping.  Raises UserError (exit 5) that starts with `name`."""
    try:
        found = bounded_yaml.parse(content)
    except ValueError as error:
        raise UserError(f"{name}: damaged: {error}", Exit.MISSING) from error
    if not isinstance(found, dict):
        raise UserError(f"{name}: damaged: no mapping", Exit.MISSING)
    return found


def require_no_outputs(repository: Repository, out: Path) -> None:
    """Raise UserError (exit 2) if `out` lies in an output of the pipeline, or an output lies directly in `out`.

    DVC removes outputs before it makes them again.  Also raises UserError (exit 5) for a damaged dvc.yaml.
    """
    if path := output_at(repository, out):
        raise UserError(f"{out}: {path} is an output of the pipeline; choose another place", Exit.USAGE)


def output_at(repository: Repository, place: Path) -> str | None:
    """Return an output in dvc.yaml that lies directly in the folder `place`, or contains `place`; None if none does.

    Raises UserError (exit 5) for a damaged dvc.yaml.
    """
    graph = repository.folder / layout.DVC_GRAPH
    if not graph.exists():
        return None
    end = place.resolve()
    for stage in values_of(read_bounded(graph), str(graph)).get("stages", {}).values():
        # Paths, or paths with options.
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path = out if isinstance(out, str) else next(iter(out))
            output = (repository.folder / path).resolve()
            if end == output.parent or end.is_relative_to(output):
                return str(path)
    return None
