"""The registry of models: GTO's tags on the commits of the pipeline's runs.

`vdm@v1.2.0` is a version.  `vdm#champion#7` says that a version became the champion, and `vdm#refused#8` that it was
compared with the champion and refused; the number orders these tags.  Published tags are never removed, so they are the
history.  The message of such a tag holds the evidence as JSON: a file with it would need a new commit, which is not the
one that was evaluated.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from flows.core import layout
from flows.core.documents import DocumentType, parse
from flows.core.errors import Exit, UserError
from flows.evaluation.results import Metrics, SampleMetrics
from flows.registry.costs import Costs
from flows.registry.evidence import Evidence, evidence_of
from flows.repository.repository import MODEL, REMOTE, Repository
from flows.repository.tags import (
    CHAMPION,
    NUMBERS,
    REFUSED,
    WAITING,
    Tag,
    assigned_commits,
    deregistered_commits,
    numbers_of,
    read_tags,
    registered_tags,
    reign,
)

FORMER = "former champion"
ANSWER_SECONDS = 3.0
"""How long the git remote may take to list its tags for whoever waits."""
VERSION_NAME = re.compile(rf"{CHAMPION}|{MODEL}#{CHAMPION}|({MODEL}@)?{NUMBERS}")


class Version(NamedTuple):
    """A version: `vdm@v1.2.0`, its commit, when and with which message it was tagged, its stages, its metrics.

    The metrics, in bits/dim, are those in reports/evaluation/metrics.json at the commit.  If that is unreadable, they
    are empty and `problem` says why.  `samples` is the quality of its samples, None if the commit has no readable
    reports/samples/metrics.json.  `state` is champion, former champion, waiting,
    refused, or "" before the first comparison.
    """

    name: str
    commit: str
    created: str
    message: str
    stages: tuple[str, ...]
    metrics: Metrics
    problem: str = ""
    samples: SampleMetrics | None = None
    state: str = ""


@dataclass(frozen=True)
class Registry:
    """The versions and stages of a repository at one moment: its tags were read once, by `open_registry`.

    `tags` are those of versions and stages, oldest first; those of a stage are in the order of their numbers.  `last`
    is the highest number of GTO's tags of the model.
    """

    repository: Repository
    tags: list[Tag]
    last: int

    @cached_property
    def versions(self) -> list[Version]:
        """Every version, sorted by number.  Raises UserError (exit 5)."""
        known = registered_tags(self.tags)
        reigning = [tag.commit for tag in reign(self.tags)][-1:]
        crowned, refused = assigned_commits(self.tags, CHAMPION), assigned_commits(self.tags, REFUSED)
        paths = [f"{tag.commit}:{path}" for tag in known for path in (layout.METRICS, layout.SAMPLE_METRICS)]
        files = self.repository.contents(paths) if paths else {}
        found = []
        for tag in known:
            metrics, problem = read_document_at(Metrics, files[f"{tag.commit}:{layout.METRICS}"], layout.METRICS)
            samples, _ = read_document_at(
                SampleMetrics, files[f"{tag.commit}:{layout.SAMPLE_METRICS}"], layout.SAMPLE_METRICS
            )
            state = FORMER if tag.commit in crowned else REFUSED if tag.commit in refused else ""
            state = WAITING if self.waiting_tag and tag.commit == self.waiting_tag.commit else state
            stages = (CHAMPION,) if tag.commit in reigning else ()
            details = tag.name, tag.commit, tag.created, tag.message
            found.append(
                Version(*details, stages, metrics or Metrics(), problem, samples, CHAMPION if stages else state)
            )
        return found

    def resolve(self, reference: str) -> Version:
        """Return the version named `champion`, `vdm@v1.2.0` or `v1.2.0`.

        Raises UserError: exit 2 for text that is not the name of a version, 5 if there is no such version.
        """
        if not VERSION_NAME.fullmatch(reference):
            raise UserError(f"{reference}: not a version such as {MODEL}@v1.2.0, nor `{CHAMPION}`", Exit.USAGE)
        if is_champion(reference):
            if found := self.champion:
                return found
            no_champion = "no version is the champion; `vdmctl promote` makes the first"
            raise UserError(no_champion if self.versions else no_version(self.repository), Exit.MISSING)
        name = reference if "@" in reference else f"{MODEL}@{reference}"
        for version in self.versions:
            if version.name == name:
                return version
        raise UserError(f"there is no version {name}; `vdmctl models` lists them", Exit.MISSING)

    def newest(self) -> Version:
        """Return the version with the highest number.  Raises UserError (exit 5) in a project without versions."""
        if not self.versions:
            raise UserError(no_version(self.repository), Exit.MISSING)
        return self.versions[-1]

    @property
    def champion(self) -> Version | None:
        """The champion, or None.  Raises UserError (exit 5) when its version's tag is gone."""
        return self.version_of(self.champion_tag) if self.champion_tag else None

    @property
    def champion_tag(self) -> Tag | None:
        """The tag of the present champion, or None."""
        reigning = reign(self.tags)
        return reigning[-1] if reigning else None

    def previous_champion(self) -> Version:
        """Return the version that a roll-back makes the champion.  Raises UserError (exit 5) without an earlier one."""
        reigning = reign(self.tags)
        if len(reigning) > 1:
            return self.version_of(reigning[-2])
        present = self.resolve(CHAMPION).name.replace("@", " ")
        advice = f"`gto deprecate {present} {CHAMPION}` leaves the project without a champion"
        raise UserError(f"there is no earlier champion to go back to; {advice}", Exit.MISSING)

    def version_of(self, tag: Tag) -> Version:
        """Return the version that a champion's tag names.  Raises UserError (exit 5) if its own tag is gone."""
        for version in self.versions:
            if version.commit == tag.commit:
                return version
        other = f"choose another with `gto assign {MODEL} --version vX.Y.Z --stage {CHAMPION} --force`"
        raise UserError(f"{tag.name}: its version's tag is gone; run `git fetch --tags`, or {other}", Exit.MISSING)

    @property
    def hold(self) -> str | None:
        """Why no winner is promoted without a person; None if nobody holds the champion."""
        evidence = evidence_of(self.champion_tag.message) if self.champion_tag else None
        return evidence.hold if evidence else None

    @cached_property
    def waiting_tag(self) -> Tag | None:
        """The tag of the newest winner, if it still waits for a person to approve it.

        It waits no longer if the champion is another one now, or if it was judged again or withdrawn.
        """
        last = next((tag for tag in reversed(self.tags) if tag.stage == WAITING), None)
        evidence = evidence_of(last.message) if last and last.event == "assignment" else None
        reigning = self.champion_tag.commit if self.champion_tag else None
        if last is None or evidence is None or evidence.champion_commit != reigning or last.commit == reigning:
            return None
        later = {tag.commit for tag in self.tags if tag.stage == REFUSED and tag.number > last.number}
        return None if last.commit in later | deregistered_commits(self.tags) else last

    @cached_property
    def costs(self) -> dict[str, Costs]:
        """What versions cost, by their commits, as far as the evidence of a decision says it."""
        decided = [tag for tag in self.tags if tag.stage in (CHAMPION, REFUSED, WAITING)]
        found = {tag.commit: evidence_of(tag.message) for tag in decided if '"costs"' in tag.message}
        return {commit: evidence.costs for commit, evidence in found.items() if evidence and evidence.costs}

    def is_decided(self, commit: str) -> bool:
        """Whether the commit has a version that was promoted or refused, that won, or that GTO deregistered."""
        stages = set[str]().union(*(assigned_commits(self.tags, stage) for stage in (CHAMPION, REFUSED, WAITING)))
        return commit in stages | deregistered_commits(self.tags)

    def refusal(self, commit: str) -> Evidence | None:
        """Return the evidence of the last refusal of a commit's version; None if it was never refused."""
        tags = [tag for tag in self.tags if tag.stage == REFUSED and tag.commit == commit]
        return evidence_of(tags[-1].message) if tags else None

    @property
    def judged(self) -> dict[str, set[str]]:
        """The names of the challengers that validation images have judged, by the digest of these images."""
        messages = [tag.message for tag in self.tags if tag.stage in (CHAMPION, REFUSED, WAITING)]
        found: dict[str, set[str]] = {}
        for one in map(evidence_of, messages):
            if one and one.is_measured and one.challenger and one.validation_sha256:
                found.setdefault(one.validation_sha256, set()).add(one.challenger)
        return found


def open_registry(repository: Repository) -> Registry:
    """Read the tags of versions and stages.  Raises UserError: exit 5 outside a git repository, 2 below its top."""
    return Registry(repository, *read_tags(repository))


def is_champion(reference: str) -> bool:
    """Whether the name of a version is that of whichever is the champion."""
    return reference in (CHAMPION, f"{MODEL}#{CHAMPION}")


def ancestry(version: Version, known: Iterable[Version]) -> list[Version | None]:
    """Return a version and those from which its training began, back to the first; None for one that is not known."""
    by_digest = {each.metrics.model_sha256: each for each in known}
    ancestors = version.metrics.ancestors or []
    return [version, *(by_digest.get(ancestor.model_sha256) for ancestor in ancestors)]


def read_document_at(model: type[DocumentType], content: bytes | None, path: Path) -> tuple[DocumentType | None, str]:
    """Return the document in a commit's file, or None and why it is missing or unreadable."""
    if content is None:
        return None, f"the commit has no {path}"
    try:
        return parse(model, content, str(path)), ""
    except UserError as error:
        return None, str(error)


def no_version(repository: Repository) -> str:
    """Return what to do in a project without versions, which may be a clone without the tags of the git remote."""
    with suppress(UserError):  # there is no remote, or it does not answer
        if repository.git("ls-remote", "--tags", REMOTE, f"{MODEL}@v*", seconds=ANSWER_SECONDS):
            return f"the versions of {MODEL} at {REMOTE} are not here; `git fetch --tags` brings them"
    return f"there is no version of {MODEL} yet; commit a run, then `gto register {MODEL} --version v1.0.0`"


def add_version(repository: Repository, commit: str, message: str) -> Version:
    """Tag a commit of a pipeline run as the next minor version; the first is v1.0.0.

    Raises UserError: exit 5 for a commit that is unknown or without an evaluation, 2 if the commit is a version
    already, or without a git identity.
    """
    commit = repository.git_text("rev-parse", "--verify", f"{commit}^{{commit}}")
    metrics, problem = read_document_at(Metrics, repository.content_of(f"{commit}:{layout.METRICS}"), layout.METRICS)
    if metrics is None:
        raise UserError(f"commit {commit[:12]}: {problem}; run the pipeline and commit its results", Exit.MISSING)
    repository.require_identity()
    with repository.registry_lock():
        tags = open_registry(repository).tags
        for tag in registered_tags(tags):
            if tag.commit == commit:
                raise UserError(f"commit {commit[:12]} is {tag.name} already", Exit.USAGE)
        major, minor, _ = max((numbers for tag in tags if (numbers := numbers_of(tag.name))), default=(1, -1, 0))
        name = f"{MODEL}@v{major}.{minor + 1}.0"
        write_tag(repository, name, commit, message)
    return open_registry(repository).resolve(name)


def assign(registry: Registry, stage: str, version: Version, message: str) -> str:
    """Assign a stage to a version by the next tag, with the evidence as its message; return the tag's name.

    The caller holds the registry's lock, under which it opened the registry.  Raises UserError: exit 2 without a git
    identity, 5 if git fails.
    """
    registry.repository.require_identity()
    name = f"{MODEL}#{stage}#{registry.last + 1}"
    write_tag(registry.repository, name, version.commit, message)
    return name


def write_tag(repository: Repository, name: str, commit: str, message: str) -> None:
    """Write an annotated tag, as GTO does, signed if git's `tag.gpgSign` is true.

    Raises UserError (exit 5) if it exists, or if it cannot be signed.
    """
    # The evidence stays as it is, also a line that git takes for a comment.
    options = ("--annotate", "--cleanup=verbatim", "--file=-")
    repository.git("tag", *options, name, commit, stdin=[message.strip()])
