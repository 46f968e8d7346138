"""dvc.lock, in the working tree and at a commit: which data, parameters and code made which outputs.

So a version is followed to its origin: tag -> commit -> dvc.lock there -> data, parameters, code, outputs.
"""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from flows.core import bounded_yaml, layout
from flows.core.documents import Document, FolderOrFileMd5, checked
from flows.core.errors import Exit, UserError
from flows.core.files import read_bounded
from flows.registry.evidence import Evidence, evidence_of
from flows.registry.git import git
from flows.registry.versions import CHAMPION, Registry, Tag, Version, line


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
    is None in a dvc.lock of an earlier version.
    """

    outputs: dict[str, str]
    code: dict[str, str]
    parameters: dict[str, Any]
    contradictions: list[str]
    source: tuple[str, str] | None = None


def read_lock(root: Path, version: Version | Tag) -> Lock:
    """Return the dvc.lock at the commit of a version or tag.  Raises UserError (exit 5)."""
    commit = version.commit
    lock, graph = (git(root, "cat-file", "blob", f"{commit}:{path}") for path in (layout.DVC_LOCK, layout.DVC_GRAPH))
    return lock_of(lock, graph, f"{version.name}: {layout.DVC_LOCK} at {commit[:12]}")


def lock_here(root: Path) -> Lock:
    """Return the dvc.lock in the working tree.  Raises OSError, UserError (exit 5)."""
    path = root / layout.DVC_LOCK
    return lock_of(read_bounded(path), read_bounded(root / layout.DVC_GRAPH), str(path))


def lock_of(content: bytes, graph: bytes, name: str) -> Lock:
    """Return the digests and parameters in a dvc.lock.  Raises UserError (exit 5) that starts with `name`.

    DVC leaves stages that were renamed or removed in dvc.lock.  Those that dvc.yaml, `graph`, lacks do not count.
    """
    file = checked(LockFile, values_of(content, name), name)
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
    end = place.resolve()
    for stage in values_of(read_bounded(graph), str(graph)).get("stages", {}).values():
        # Paths, or paths with options.
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path = out if isinstance(out, str) else next(iter(out))
            output = (root / path).resolve()
            if end == output.parent or end.is_relative_to(output):
                return str(path)
    return None


class Lineage(NamedTuple):
    """A version with its dvc.lock and the evidence of its last refusal.

    `promotions` are the tags that made it the champion, and those that took this back.
    """

    version: Version
    lock: Lock
    promotions: list[Tag]
    refusal: Evidence | None
    ancestors: list[Version | None]
    """Those in its metrics, from the nearest to the first; None for one that is no version of this project."""

    def as_json(self) -> dict[str, Any]:
        """Return the lineage as a JSON object."""
        version, lock = self.version, self.lock
        images, validation = str(layout.IMAGES), str(layout.VALIDATION)
        return {
            "version": version.name,
            "created": version.created,
            "message": version.message,
            "stages": list(version.stages),
            "commit": version.commit,
            "parameters": lock.parameters,
            "source": {"path": lock.source[0], "md5": lock.source[1]} if lock.source else None,
            "data": {
                "path": images,
                "md5": lock.outputs.get(images),
                "sha256": version.metrics.data_sha256,
                "licence": version.metrics.licence,
            },
            "ancestors": [
                {
                    "name": ancestor.name,
                    "version": known.name if known else None,
                    "model_sha256": ancestor.model_sha256,
                    "data_sha256": known.metrics.data_sha256 if known else None,
                    "licence": ancestor.licence or (known.metrics.licence if known else None),
                }
                for ancestor, known in zip(version.metrics.ancestors or [], self.ancestors, strict=True)
            ],
            "validation": {"path": validation, "md5": lock.outputs.get(validation)},
            "code": lock.code,
            "outputs": lock.outputs,
            "metrics": version.metrics.model_dump(exclude_unset=True),
            "promotions": [
                {"tag": tag.name, "created": tag.created, "evidence": fields(evidence_of(tag.message)) or {}}
                for tag in self.promotions
            ],
            "refusal": fields(self.refusal),
        }


def fields(evidence: Evidence | None) -> dict[str, Any] | None:
    """Return the fields of the evidence that were set, as a JSON object."""
    return evidence.model_dump(exclude_unset=True) if evidence else None


def lineage(registry: Registry, version: Version) -> Lineage:
    """Return the lineage of a version.  Raises UserError (exit 5) if its dvc.lock is missing or damaged."""
    promotions = [tag for tag in registry.tags if tag.stage == CHAMPION and tag.commit == version.commit]
    found = promotions, registry.refusal(version.commit), line(version, registry.versions)[1:]
    return Lineage(version, read_lock(registry.root, version), *found)
