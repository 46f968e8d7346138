"""The lineage of a version: tag -> commit -> dvc.lock there -> data, parameters, code, outputs."""

from typing import Any

from flows.core import layout
from flows.core.documents import Document, FolderOrFileMd5, Sha256
from flows.evaluation.results import Metrics
from flows.registry.evidence import Evidence, evidence_of
from flows.registry.versions import Registry, Version, ancestry
from flows.repository.tags import CHAMPION


class Digest(Document):
    """A file or a folder, and its digest."""

    path: str
    md5: FolderOrFileMd5 | None
    """That of a folder ends in `.dir`."""


class TrainedOn(Digest):
    """The images that a version was trained on."""

    sha256: Sha256 | None
    """Their `data_sha256`."""
    licence: str | None


class KnownAncestor(Document):
    """A model from which a training began, and what the project knows of it."""

    name: str
    version: str | None
    """Null for one that is no version here."""
    model_sha256: Sha256
    data_sha256: Sha256 | None
    licence: str | None


class Promotion(Document):
    """A tag that made the version the champion, took this back, or held or released the champion."""

    tag: str
    created: str
    evidence: Evidence
    """What its `decision` was, and why; empty if the tag was made by hand."""


class Lineage(Document):
    """A version with what its dvc.lock and its tags say of its origin.  Only fields that were set are printed."""

    version: str
    created: str
    message: str
    stages: list[str]
    commit: str
    parameters: dict[str, Any]
    """Those of its commit, by section."""
    source: Digest | None
    """Null for images that came from elsewhere."""
    data: TrainedOn
    ancestors: list[KnownAncestor]
    """The models from which its training and theirs began, the nearest first."""
    findings: Digest
    code: dict[str, str]
    """Md5 by path."""
    outputs: dict[str, str]
    """Md5 by path."""
    metrics: Metrics
    """Those of its evaluation."""
    promotions: list[Promotion]
    refusal: Evidence | None
    """The last one."""


def trace_lineage(registry: Registry, version: Version) -> Lineage:
    """Return the lineage of a version.  Raises UserError (exit 5) if its dvc.lock is missing or damaged."""
    lock, metrics = registry.repository.at(version).lock, version.metrics
    images, findings = str(layout.IMAGES), str(layout.FINDINGS)
    known = ancestry(version, registry.versions)[1:]
    return Lineage(
        version=version.name,
        created=version.created,
        message=version.message,
        stages=list(version.stages),
        commit=version.commit,
        parameters=lock.parameters,
        source=Digest(path=lock.source[0], md5=lock.source[1]) if lock.source else None,
        data=TrainedOn(path=images, md5=lock.outputs.get(images), sha256=metrics.data_sha256, licence=metrics.licence),
        ancestors=[
            KnownAncestor(
                name=ancestor.name,
                version=found.name if found else None,
                model_sha256=ancestor.model_sha256,
                data_sha256=found.metrics.data_sha256 if found else None,
                licence=ancestor.licence or (found.metrics.licence if found else None),
            )
            for ancestor, found in zip(metrics.ancestors or [], known, strict=True)
        ],
        findings=Digest(path=findings, md5=lock.outputs.get(findings)),
        code=lock.code,
        outputs=lock.outputs,
        metrics=metrics,
        promotions=[
            Promotion(
                tag=tag.name,
                created=tag.created,
                evidence=evidence_of(tag.message) or Evidence.model_construct(),
            )
            for tag in registry.tags
            if tag.stage == CHAMPION and tag.commit == version.commit
        ],
        refusal=registry.refusal(version.commit),
    )
