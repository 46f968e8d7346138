"""Follow a version to its origin, in git: tag -> commit -> dvc.lock there -> data, parameters, code, outputs."""

from pathlib import Path
from typing import Any, NamedTuple

from flows.core import layout
from flows.registry.evidence import Evidence, evidence_of
from flows.registry.lock_file import Lock, read_lock
from flows.registry.versions import CHAMPION, Tag, Version, model_tags, refusal


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
    promotions = [tag for tag in model_tags(root) if tag.stage == CHAMPION and tag.commit == version.commit]
    return Lineage(version, read_lock(root, version), promotions, refusal(root, version.commit))
