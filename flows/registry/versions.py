"""The registry of models: GTO's tags on the commits of the pipeline's runs.

`vdm@v1.2.0` is a version.  `vdm#champion#7` says that a version became the champion, and `vdm#refused#8` that it was
compared with the champion and refused; the number orders these tags.  Published tags are never removed, so they are the
history.  The message of such a tag holds the evidence as JSON: a file with it would need a new commit, which is not the
one that was evaluated.
"""

import os
import re
from contextlib import closing, suppress
from datetime import UTC
from pathlib import Path
from typing import Any, NamedTuple

import gto.api
from gto.exceptions import GTOException
from scmrepo.exceptions import SCMError
from scmrepo.git import Git
from scmrepo.git.objects import GitTag

from flows.core import layout
from flows.core.documents import DocumentType, parse
from flows.core.errors import Exit, UserError, brief
from flows.evaluation.results import Metrics, SampleMetrics
from flows.registry.evidence import Evidence, evidence_of
from flows.registry.git import (
    REMOTE,
    content_of,
    contents,
    git,
    git_text,
    registry_lock,
    require_identity,
    require_top,
)

MODEL = "vdm"
CHAMPION, REFUSED = "champion", "refused"
"""The stages of GTO that the comparisons assign."""
FORMER = "former champion"
ANSWER_SECONDS = 3.0
"""How long the git remote may take to list its tags for whoever waits."""
NUMBERS = r"v(\d{1,9})\.(\d{1,9})\.(\d{1,9})"
REFERENCE = re.compile(rf"{CHAMPION}|{MODEL}#{CHAMPION}|({MODEL}@)?{NUMBERS}")


class Tag(NamedTuple):
    """A tag of GTO: its name, its commit, when it was made (ISO 8601), its message, and what it does.

    `event` is GTO's word: registration, deregistration, assignment or unassignment; the last two have a stage.
    """

    name: str
    commit: str
    created: str = ""
    message: str = ""
    event: str = "assignment"
    stage: str | None = CHAMPION

    @property
    def number(self) -> int:
        """The number that orders the tags of stages; 0 for a tag without one."""
        last = self.name.rpartition("#")[2]
        return int(last) if last.isdigit() else 0


class Version(NamedTuple):
    """A version: `vdm@v1.2.0`, its commit, when and with which message it was tagged, its stages, its metrics.

    The metrics, in bits/dim, are those in reports/evaluation/metrics.json at the commit.  If that is unreadable, they
    are empty and `problem` says why.  `samples` is the quality of its samples, None if the commit has no readable
    reports/samples/metrics.json.  `state` is champion, former champion, refused, or "" before the first comparison.
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


def model_tags(root: Path) -> list[Tag]:
    """Return the tags of versions and stages, oldest first; those of a stage are in the order of their numbers.

    The times of tags have only whole seconds.  Raises UserError: exit 5 outside a git repository, 2 below its top.
    """
    require_top(root)
    found = [
        Tag(
            name=each["ref"],
            commit=each["commit"],
            created=each["timestamp"].astimezone(UTC).isoformat(),
            message=each["message"],
            event=each["event"],
            stage=each["stage"],
        )
        for each in asked(root, gto.api.history, MODEL, ascending=True)
    ]
    ours = [tag for tag in found if tag.stage or numbers_of(tag.name)]
    return sorted(ours, key=lambda tag: tag.number if tag.stage else 0)


class Repository(Git):
    """A repository in which GTO can read every tag: scmrepo fails for a message or a name that is not UTF-8."""

    def get_tag(self, name: str) -> str | GitTag | None:
        """Return a tag, a commit if the tag is lightweight, or None; what is not UTF-8 becomes U+FFFD."""
        try:
            return super().get_tag(name)  # type: ignore[no-any-return]
        except UnicodeDecodeError:
            tag = self.dulwich.repo[os.fsencode(f"refs/tags/{name}")]
            tagger, _, email = tag.tagger.decode(errors="replace").rstrip(">").rpartition(" <")
            return GitTag(
                name=name,
                hexsha=tag.id.decode(),
                target=tag.object[1].decode(),
                tagger_name=tagger,
                tagger_email=email,
                tag_time=tag.tag_time,
                tag_time_offset=tag.tag_timezone,
                message=tag.message.decode(errors="replace"),
            )


def asked(root: Path, action: Any, *arguments: Any, **options: Any) -> Any:
    """Return what a function of GTO returns.  Raises UserError (exit 5) with GTO's reason if it fails."""
    try:
        with closing(Repository(str(root))) as repository:
            return action(repository, *arguments, **options)
    except (GTOException, SCMError) as error:
        raise UserError(f"gto: {brief(error)}", Exit.MISSING) from error


def numbers_of(name: str) -> tuple[int, int, int] | None:
    """Return (1, 2, 0) for `vdm@v1.2.0`; None for a tag that is not a version."""
    match = re.match(rf"{MODEL}@{NUMBERS}(!|$)", name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def registered(tags: list[Tag]) -> list[Tag]:
    """Return the tags of the versions that are not deregistered, sorted by number."""
    gone = {tag.name.partition("!")[0] for tag in tags if tag.event == "deregistration"}
    known = [tag for tag in tags if tag.event == "registration" and tag.name not in gone]
    return sorted(known, key=lambda tag: numbers_of(tag.name) or ())


def deregistered(tags: list[Tag]) -> set[str]:
    """Return the commits that are no version any more, since GTO deregistered all their versions."""
    gone = {tag.commit for tag in tags if tag.event == "deregistration"}
    return gone - {tag.commit for tag in registered(tags)}


def given(tags: list[Tag], stage: str) -> set[str]:
    """Return the commits to which a stage was ever assigned."""
    return {tag.commit for tag in tags if tag.stage == stage and tag.event == "assignment"}


def reign(tags: list[Tag]) -> list[Tag]:
    """Return the stack of champions' tags, the present champion last: a promotion pushes, a roll-back pops.

    A tag of a version that is in the stack makes it the champion again and removes those above it: so a second
    roll-back goes one champion further back, and not to the one that the first removed.  Versions that GTO deregistered
    do not count.
    """
    stack: dict[str, Tag] = {}
    for tag in sorted((tag for tag in tags if tag.stage == CHAMPION), key=lambda tag: tag.number):
        if tag.event == "unassignment":
            stack.pop(tag.commit, None)
            continue
        while tag.commit in stack:
            stack.popitem()  # the uppermost
        stack[tag.commit] = tag
    gone = deregistered(tags)
    return [tag for tag in stack.values() if tag.commit not in gone]


def versions(root: Path) -> list[Version]:
    """Return every version, sorted by number.  Raises UserError: exit 5 outside a git repository, 2 below its top."""
    tags = model_tags(root)
    known = registered(tags)
    reigning = [tag.commit for tag in reign(tags)][-1:]
    crowned, refused = given(tags, CHAMPION), given(tags, REFUSED)
    paths = [f"{tag.commit}:{path}" for tag in known for path in (layout.METRICS, layout.SAMPLE_METRICS)]
    files = contents(root, paths) if paths else {}
    found = []
    for tag in known:
        metrics, problem = found_in(Metrics, files[f"{tag.commit}:{layout.METRICS}"], layout.METRICS)
        samples, _ = found_in(SampleMetrics, files[f"{tag.commit}:{layout.SAMPLE_METRICS}"], layout.SAMPLE_METRICS)
        state = FORMER if tag.commit in crowned else REFUSED if tag.commit in refused else ""
        stages = (CHAMPION,) if tag.commit in reigning else ()
        details = tag.name, tag.commit, tag.created, tag.message
        found.append(Version(*details, stages, metrics or Metrics(), problem, samples, CHAMPION if stages else state))
    return found


def found_in(model: type[DocumentType], content: bytes | None, path: Path) -> tuple[DocumentType | None, str]:
    """Return the document in a commit's file, or None and why it is missing or unreadable."""
    if content is None:
        return None, f"the commit has no {path}"
    try:
        return parse(model, content, str(path)), ""
    except UserError as error:
        return None, str(error)


def resolve(root: Path, reference: str) -> Version:
    """Return the version named `champion`, `vdm@v1.2.0` or `v1.2.0`.

    Raises UserError: exit 2 for text that is not the name of a version, 5 if there is no such version.
    """
    if not REFERENCE.fullmatch(reference):
        raise UserError(f"{reference}: not a version such as {MODEL}@v1.2.0, nor `{CHAMPION}`", Exit.USAGE)
    if reference.endswith(CHAMPION):
        if found := champion(root):
            return found
        no_champion = "no version is the champion; `vdmctl promote` makes the first"
        raise UserError(no_champion if versions(root) else no_version(root), Exit.MISSING)
    name = reference if "@" in reference else f"{MODEL}@{reference}"
    for version in versions(root):
        if version.name == name:
            return version
    raise UserError(f"there is no version {name}; `vdmctl models` lists them", Exit.MISSING)


def newest(root: Path) -> Version:
    """Return the version with the highest number.  Raises UserError (exit 5) in a project without versions."""
    known = versions(root)
    if not known:
        raise UserError(no_version(root), Exit.MISSING)
    return known[-1]


def no_version(root: Path) -> str:
    """Return what to do in a project without versions, which may be a clone without the tags of the git remote."""
    with suppress(UserError):  # there is no remote, or it does not answer
        if git(root, "ls-remote", "--tags", REMOTE, f"{MODEL}@v*", seconds=ANSWER_SECONDS):
            return f"the versions of {MODEL} at {REMOTE} are not here; `git fetch --tags` brings them"
    return f"there is no version of {MODEL} yet; commit a run, then `gto register {MODEL} --version v1.0.0`"


def champion(root: Path) -> Version | None:
    """Return the champion, or None.  Raises UserError (exit 5) when its version's tag is gone."""
    tag = champion_tag(root)
    return version_of(root, tag) if tag else None


def champion_tag(root: Path) -> Tag | None:
    """Return the tag of the present champion, or None."""
    reigning = reign(model_tags(root))
    return reigning[-1] if reigning else None


def previous_champion(root: Path) -> Version:
    """Return the version that a roll-back makes the champion.  Raises UserError (exit 5) if no earlier one is left."""
    reigning = reign(model_tags(root))
    if len(reigning) > 1:
        return version_of(root, reigning[-2])
    present = resolve(root, CHAMPION).name.replace("@", " ")
    advice = f"`gto deprecate {present} {CHAMPION}` leaves the project without a champion"
    raise UserError(f"there is no earlier champion to go back to; {advice}", Exit.MISSING)


def version_of(root: Path, tag: Tag) -> Version:
    """Return the version that a champion's tag names.  Raises UserError (exit 5) if its own tag is gone."""
    for version in versions(root):
        if version.commit == tag.commit:
            return version
    other = f"choose another with `gto assign {MODEL} --version vX.Y.Z --stage {CHAMPION} --force`"
    raise UserError(f"{tag.name}: its version's tag is gone; run `git fetch --tags`, or {other}", Exit.MISSING)


def is_decided(root: Path, commit: str) -> bool:
    """Whether the commit has a version that was promoted, refused, or that GTO deregistered."""
    tags = model_tags(root)
    return commit in given(tags, CHAMPION) | given(tags, REFUSED) | deregistered(tags)


def refusal(root: Path, commit: str) -> Evidence | None:
    """Return the evidence of the last refusal of a commit's version; None if it was never refused."""
    tags = [tag for tag in model_tags(root) if tag.stage == REFUSED and tag.commit == commit]
    return evidence_of(tags[-1].message) if tags else None


def judged_by(root: Path, validation_sha256: str) -> set[str]:
    """Return the names of the challengers that were evaluated on the validation images with this digest."""
    messages = [tag.message for tag in model_tags(root) if tag.stage in (CHAMPION, REFUSED)]
    judged = [one for message in messages if (one := evidence_of(message)) and one.is_measured]
    return {str(one.challenger) for one in judged if one.challenger and one.validation_sha256 == validation_sha256}


def add_version(root: Path, commit: str, message: str) -> Version:
    """Tag a commit of a pipeline run as the next minor version; the first is v1.0.0.

    Raises UserError: exit 5 for a commit that is unknown or without an evaluation, 2 if the commit is a version
    already, or without a git identity.
    """
    commit = git_text(root, "rev-parse", "--verify", f"{commit}^{{commit}}")
    metrics, problem = found_in(Metrics, content_of(root, f"{commit}:{layout.METRICS}"), layout.METRICS)
    if metrics is None:
        raise UserError(f"commit {commit[:12]}: {problem}; run the pipeline and commit its results", Exit.MISSING)
    require_identity(root)
    with registry_lock(root):
        tags = model_tags(root)
        for tag in registered(tags):
            if tag.commit == commit:
                raise UserError(f"commit {commit[:12]} is {tag.name} already", Exit.USAGE)
        major, minor, _ = max((numbers for tag in tags if (numbers := numbers_of(tag.name))), default=(1, -1, 0))
        number = f"v{major}.{minor + 1}.0"
        asked(root, gto.api.register, MODEL, commit, version=number, message=message)
    return resolve(root, number)


def assign(root: Path, stage: str, version: Version, message: str) -> str:
    """Assign a stage to a version by the next tag, with the evidence as its message; return the tag's name.

    The caller holds the registry's lock.  Raises UserError (exit 2) without a git identity.
    """
    require_identity(root)
    number = version.name.partition("@")[2]
    done = asked(root, gto.api.assign, MODEL, stage, version=number, message=message.strip(), force=True)
    return str(done.tag)
