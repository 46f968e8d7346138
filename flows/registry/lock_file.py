"""dvc.lock and dvc.yaml at a commit: which data, parameters and code made which outputs."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from flows.core import bounded_yaml, layout
from flows.core.documents import Document, DocumentType, FolderOrFileMd5, RelativePath, checked
from flows.core.errors import Exit, UserError
from flows.core.files import parse_json, read_bounded, relative_path
from flows.registry.git import Tag, content_of
from flows.registry.versions import MODEL, Version


def without_slash(path: Any) -> Any:
    """Return the path of a folder as `vdm` where dvc.yaml names it `vdm/`; DVC copies that to dvc.lock."""
    return path.removesuffix("/") if isinstance(path, str) else path


class Entry(Document):
    """A dependency or an output of a stage in dvc.lock."""

    path: Annotated[str, BeforeValidator(without_slash), AfterValidator(relative_path)]
    md5: FolderOrFileMd5
    files: None = None  # DVC would use a listing here instead of the one with the digest


class Stage(Document):
    """A stage in dvc.lock.  The keys of `params` are a file and a section."""

    deps: list[Entry] = Field(default_factory=list)
    outs: list[Entry] = Field(default_factory=list)
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)


class LockFile(Document):
    """dvc.lock as DVC writes it."""

    stages: dict[str, Stage]


class Artifact(Document):
    """An artifact in dvc.yaml."""

    path: RelativePath


class Outputs(Document):
    """The outputs of a stage in dvc.yaml: paths, or paths with options."""

    outs: list[str | dict[str, Any]] = Field(default_factory=list)
    metrics: list[str | dict[str, Any]] = Field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """Return the paths without their options."""
        return [path for out in self.outs + self.metrics for path in ([out] if isinstance(out, str) else out)]


class Graph(Document):
    """The artifacts in dvc.yaml, and the outputs of its stages; the other keys are ignored."""

    artifacts: dict[str, Artifact] = Field(default_factory=dict)
    stages: dict[str, Outputs] = Field(default_factory=dict)


class Lock(NamedTuple):
    """The digests and parameters in a dvc.lock.

    `outputs` maps paths to md5 digests, which end in `.dir` for a folder; `dependencies` maps paths to the digests that
    the stages list.  `parameters` maps sections to their values.  `repeated` names the sections whose values differ
    between stages.
    """

    outputs: dict[str, str]
    dependencies: dict[str, set[str]]
    parameters: dict[str, Any]
    repeated: set[str]

    @property
    def cached(self) -> dict[str, str]:
        """Return the outputs that are in DVC's cache and not in git."""
        in_git = set(map(str, layout.IN_GIT))
        return {path: digest for path, digest in self.outputs.items() if path not in in_git}

    @property
    def code(self) -> dict[str, str]:
        """Return the dependencies that are not outputs of a stage, with their md5."""
        return {path: min(digests) for path, digests in self.dependencies.items() if path not in self.outputs}

    @property
    def contradictions(self) -> list[str]:
        """Return the paths whose digests differ between stages, and the sections whose values do."""
        seen = {path: digests | {self.outputs.get(path, min(digests))} for path, digests in self.dependencies.items()}
        return sorted({path for path, digests in seen.items() if len(digests) > 1} | self.repeated)


def read_lock(root: Path, version: Version | Tag, base: str | None = None) -> Lock:
    """Return the dvc.lock of a version's or tag's commit, without stages that dvc.yaml at the commit `base` lacks.

    The default for `base` is the same commit.  Raises UserError (exit 5).
    """
    file = read_yaml(LockFile, root, version, str(layout.DVC_LOCK))
    graph = content_of(root, f"{base or version.commit}:{layout.DVC_GRAPH}")
    return lock_of(file, graph, f"{version.name}: {layout.DVC_LOCK} at {version.commit[:12]}")


def lock_here(root: Path) -> Lock:
    """Return the dvc.lock in the working tree.  Raises OSError, UserError (exit 5)."""
    path, graph = root / layout.DVC_LOCK, root / layout.DVC_GRAPH
    defined = read_bounded(graph) if graph.is_file() else None
    return lock_of(parse_yaml(LockFile, read_bounded(path), str(path)), defined, str(path))


def require_no_outputs(root: Path, out: Path) -> None:
    """Raise UserError (exit 2) if `out` lies in an output of the pipeline, or an output lies directly in `out`.

    DVC removes outputs before it makes them again.  Also raises UserError (exit 5) for a damaged dvc.yaml.
    """
    if path := output_at(root, out):
        raise UserError(f"{out}: {path} is an output of the pipeline; choose another place", Exit.USAGE)


def output_at(root: Path, place: Path) -> str | None:
    """Return an output in dvc.yaml that lies directly in the folder `place`, or contains `place`; None if none does.

    Raises UserError (exit 5) for a damaged dvc.yaml.
    """
    graph = root / layout.DVC_GRAPH
    if not graph.exists():
        return None
    ends = place.resolve(), unlinked(place)  # DVC may have linked an output itself to its cache
    stages = parse_yaml(Graph, read_bounded(graph), str(graph)).stages.values()
    for path in (path for stage in stages for path in stage.paths):
        output = unlinked(root / path)
        if any(end == output.parent or end.is_relative_to(output) for end in ends):
            return path
    return None


def unlinked(path: Path) -> Path:
    """Return the absolute path without links, except that the path itself may be one."""
    return path.parent.resolve() / path.name


def stages_of(file: LockFile, graph: bytes | None) -> list[Stage]:
    """Return the stages of dvc.lock that dvc.yaml still has; all of them if dvc.yaml is missing or damaged.

    DVC leaves stages that were renamed or removed in dvc.lock, and ignores them.
    """
    try:
        names = values_of(graph or b"")["stages"].keys()
    except (ValueError, LookupError, TypeError, AttributeError):
        return list(file.stages.values())
    # `foreach` and `matrix` make stages such as `train@1`.
    return [stage for name, stage in file.stages.items() if name.partition("@")[0] in names]


def lock_of(file: LockFile, graph: bytes | None, name: str) -> Lock:
    """Return the digests and parameters of the stages in the dvc.yaml `graph`."""
    stages = stages_of(file, graph)
    outs = [out for stage in stages for out in stage.outs]
    lock = Lock(outputs={out.path: out.md5 for out in outs}, dependencies={}, parameters={}, repeated=set())
    for stage in stages:
        for dependency in stage.deps:
            lock.dependencies.setdefault(dependency.path, set()).add(dependency.md5)
        for section, values in stage.params.get(str(layout.PARAMS), {}).items():
            if lock.parameters.setdefault(section, values) != values:
                lock.repeated.add(section)
    return lock


def model_path(root: Path, version: Version) -> str:
    """Return the folder that dvc.yaml at the version's commit declares as the artifact.  Raises UserError (exit 5)."""
    artifacts = read_yaml(Graph, root, version, str(layout.DVC_GRAPH)).artifacts
    if MODEL not in artifacts:
        raise UserError(f"{version.name}: its {layout.DVC_GRAPH} declares no artifact {MODEL}", Exit.MISSING)
    return artifacts[MODEL].path


def read_yaml(model: type[DocumentType], root: Path, version: Version | Tag, path: str) -> DocumentType:
    """Return a YAML file at the commit of a version or tag, parsed.  Raises UserError (exit 5)."""
    found = content_of(root, f"{version.commit}:{path}")
    if found is None:
        raise UserError(f"{version.name}: commit {version.commit[:12]} has no {path}", Exit.MISSING)
    return parse_yaml(model, found, f"{version.name}: {path} at {version.commit[:12]}")


def parse_yaml(model: type[DocumentType], content: bytes, name: str) -> DocumentType:
    """Parse a YAML document.  Raises UserError (exit 5) that starts with `name`."""
    try:
        return checked(model, values_of(content), name)
    except ValueError as error:
        raise UserError(f"{name}: damaged: {error}", Exit.MISSING) from error


@lru_cache(maxsize=32)  # a dvc.lock takes 0.03 s, and commands read the same one several times
def values_of(content: bytes) -> Any:
    """Return a YAML document as JSON values, which are cached: callers must not change them.  Raises ValueError."""
    return parse_json(json.dumps(bounded_yaml.parse(content)))
