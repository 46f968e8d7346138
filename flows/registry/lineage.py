"""Follow a version to its origin: tag -> commit -> dvc.lock at that commit -> data, parameters, code, outputs.

All of this is read from git.  `flows.registry.storage` reads the files that the digests describe.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from flows.core import bounded_yaml, layout
from flows.core.documents import Document, FolderOrFileMd5, Model, RelativePath, as_json, checked, require_apart
from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.registry.evidence import Evidence, evidence_of
from flows.registry.git import Tag, annotated_tags, contents
from flows.registry.versions import CHAMPION_TAG, MODEL, Version, refusal


class Entry(Document):
    """A dependency or an output of a stage in dvc.lock."""

    path: RelativePath
    md5: FolderOrFileMd5


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


class Graph(Document):
    """The artifacts in dvc.yaml; the other keys are ignored."""

    artifacts: dict[str, Artifact]


class Lock(NamedTuple):
    """The digests and parameters in a dvc.lock.

    `outputs` and `dependencies` map paths to md5 digests, which end in `.dir` for a folder.  `parameters` maps sections
    to their values.  `repeated` names the sections whose values differ between stages.
    """

    outputs: dict[str, str]
    dependencies: dict[str, set[str]]
    parameters: dict[str, Any]
    repeated: set[str]

    @property
    def code(self) -> dict[str, str]:
        """Return the dependencies that are not outputs of a stage, with their md5."""
        return {path: min(digests) for path, digests in self.dependencies.items() if path not in self.outputs}

    @property
    def contradictions(self) -> list[str]:
        """Return the paths whose digests differ between stages, and the sections whose values do."""
        seen = {path: digests | {self.outputs.get(path, min(digests))} for path, digests in self.dependencies.items()}
        return sorted({path for path, digests in seen.items() if len(digests) > 1} | self.repeated)


class Lineage(NamedTuple):
    """A version with its dvc.lock, the tags that made it the champion, and the evidence of its last refusal."""

    version: Version
    lock: Lock
    promotions: list[Tag]
    refusal: Evidence | None

    def as_json(self) -> dict[str, Any]:
        """Return the lineage as a JSON object."""
        version, lock = self.version, self.lock
        images, validation = str(layout.IMAGES), str(layout.VALIDATION)
        promotions = [(tag, evidence_of(tag.message)) for tag in self.promotions]
        return {
            "version": version.name,
            "created": version.created,
            "message": version.message,
            "stages": list(version.stages),
            "commit": version.commit,
            "parameters": lock.parameters,
            "data": {"path": images, "md5": lock.outputs.get(images), "sha256": version.metrics.data_sha256},
            "validation": {"path": validation, "md5": lock.outputs.get(validation)},
            "code": lock.code,
            "outputs": lock.outputs,
            "metrics": version.metrics.model_dump(exclude_unset=True),
            "promotions": [
                {"tag": tag.name, "created": tag.created, "evidence": fields(evidence) or {}}
                for tag, evidence in promotions
            ],
            "refusal": fields(self.refusal),
        }


def fields(evidence: Evidence | None) -> dict[str, Any] | None:
    """Return the fields of the evidence that were set, as a JSON object."""
    return evidence.model_dump(exclude_unset=True) if evidence else None


def read_lock(root: Path, version: Version | Tag) -> Lock:
    """Return the dvc.lock of a version's or tag's commit.  Raises UserError (exit 5)."""
    stages = read_yaml(LockFile, root, version, str(layout.DVC_LOCK)).stages.values()
    outs = [out for stage in stages for out in stage.outs]
    require_apart([out.path for out in outs], f"{version.name}: {layout.DVC_LOCK} at {version.commit[:12]}")
    lock = Lock({out.path: out.md5 for out in outs}, {}, {}, set())
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


def read_yaml(model: type[Model], root: Path, version: Version | Tag, path: str) -> Model:
    """Return a YAML file at the commit of a version or tag, parsed.  Raises UserError (exit 5)."""
    name = f"{version.commit}:{path}"
    place = f"{version.name}: {path} at {version.commit[:12]}"
    content = contents(root, [name])[name]
    if content is None:
        raise UserError(f"{version.name}: commit {version.commit[:12]} has no {path}", Exit.MISSING)
    try:
        return checked(model, as_json(bounded_yaml.parse(content)), place)
    except ValueError as error:
        raise UserError(f"{place}: damaged: {error}", Exit.MISSING) from error


def lineage(root: Path, version: Version) -> Lineage:
    """Return the lineage of a version.  Raises UserError (exit 5) if its dvc.lock is missing or damaged."""
    lock = read_lock(root, version)
    tags = [tag for tag in annotated_tags(root, f"{MODEL}#") if tag.commit == version.commit]
    promotions = [tag for tag in tags if CHAMPION_TAG.fullmatch(tag.name)]
    return Lineage(version, lock, promotions, refusal(root, version.commit))


def describe(chain: Lineage) -> str:
    """Return the lineage as text for the terminal."""
    version, outputs = chain.version, chain.lock.outputs
    lines = [
        f"tag         {version.name} {version.created} {' '.join(version.stages)}".rstrip(),
        f"commit      {version.commit}",
        "parameters",
        *(f"  {section}: {listed(values)}" for section, values in chain.lock.parameters.items()),
        f"data        {layout.IMAGES} md5 {outputs.get(str(layout.IMAGES))}",
        f"            sha256 {version.metrics.data_sha256}",
        f"validation  {layout.VALIDATION} md5 {outputs.get(str(layout.VALIDATION))}",
        "code",
        *digests(chain.lock.code),
        "outputs",
        *digests(outputs),
    ]
    for tag in chain.promotions:
        evidence = evidence_of(tag.message)
        reason = evidence.reason if evidence else "made by hand"
        lines.append(f"champion    {tag.name} {tag.created}: {reason}")
    if chain.refusal:
        lines.append(f"refused     {chain.refusal.reason}")
    return "\n".join(visible(line[:1000]) for line in lines)


def listed(values: Any) -> str:
    """Return the parameters of a section as one line."""
    pairs = values.items() if isinstance(values, Mapping) else [("", values)]
    return ", ".join(f"{key} {'null' if value is None else value}" for key, value in pairs)


def digests(files: Mapping[str, str]) -> list[str]:
    """Return a line for each path, with its md5."""
    width = max(map(len, files), default=0)
    return [f"  {path:{width}}  {md5}" for path, md5 in sorted(files.items())]
