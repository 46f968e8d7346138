"""Follow a version to its origin, in git: tag -> commit -> dvc.lock there -> data, parameters, code, outputs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flows.core import layout
from flows.core.escaping import visible
from flows.registry.evidence import Evidence, evidence_of
from flows.registry.git import Tag, annotated_tags
from flows.registry.lock_file import Lock, read_lock
from flows.registry.versions import MODEL, Version, champion_history, refusal


class Lineage(NamedTuple):
    """A version with its dvc.lock and the evidence of its last refusal.

    `promotions` are the tags that made it the champion, and those that took this back.
    """

    version: Version
    lock: Lock
    promotions: list[Tag]
    refusal: Evidence | None

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
            "data": {"path": images, "md5": lock.outputs.get(images), "sha256": version.metrics.data_sha256},
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


def lineage(root: Path, version: Version) -> Lineage:
    """Return the lineage of a version.  Raises UserError (exit 5) if its dvc.lock is missing or damaged."""
    lock = read_lock(root, version)
    tags = [tag for tag in annotated_tags(root, f"{MODEL}#") if tag.commit == version.commit]
    return Lineage(version, lock, champion_history(tags), refusal(root, version.commit))


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
        lines.append(f"{'withdrawn' if '!' in tag.name else 'champion':12}{tag.name} {tag.created}: {reason}")
    if chain.refusal:
        lines.append(f"refused     {chain.refusal.reason}")
    return "\n".join(visible(line[:1000]) for line in lines)


def listed(values: Any) -> str:
    """Return the parameters of a section as one line."""
    pairs = values.items() if isinstance(values, Mapping) else [("", values)]
    texts = [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for key, value in pairs]
    return ", ".join(f"{key} {text}" for key, text in texts)


def digests(files: Mapping[str, str]) -> list[str]:
    """Return a line for each path, with its md5."""
    width = max(map(len, files), default=0)
    return [f"  {path:{width}}  {md5}" for path, md5 in sorted(files.items())]
