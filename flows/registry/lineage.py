"""The lineage of a version: tag -> commit -> dvc.lock there -> data, parameters, code, outputs."""

from typing import Any, NamedTuple

from flows.core import layout
from flows.registry.evidence import Evidence, evidence_of
from flows.registry.versions import Registry, Version, line
from flows.repository.lock_file import Lock
from flows.repository.tags import CHAMPION, Tag


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
    return Lineage(version, registry.repository.at(version).lock, *found)
