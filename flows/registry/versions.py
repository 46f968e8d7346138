"""The registry of models: GTO's tags on the commits of the pipeline's runs.

`vdm@v1.2.0` is a version.  `vdm#champion#7` says that a version became the champion; the number orders these tags.
Published tags of champions are never removed, so they are the champion's history.  Both kinds are annotated.
The message of a champion's tag holds the evidence as JSON: a file with it would need a new commit, which is not the
one that was evaluated.  The evidence against a refused version is in a git note on its commit.
"""

import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from flows.core import layout
from flows.core.documents import DocumentType, parse
from flows.core.errors import Exit, UserError
from flows.evaluation.results import Metrics, SampleMetrics
from flows.registry.evidence import ROLL_BACK, Evidence, evidence_of
from flows.registry.git import (
    Tag,
    annotated_tags,
    commit_of,
    content_of,
    contents,
    git,
    git_lines,
    registry_lock,
    require_identity,
)

MODEL = "vdm"
CHAMPION = "champion"
NO_VERSION = f"there is no version of {MODEL} yet; commit a run, then `gto register {MODEL} --version v1.0.0`"
REFUSALS = f"{MODEL}-refusals"
MOST_BYTES = 2**16
"""The largest metrics.json that is read, so that a listing of hundreds fits into memory."""
NUMBER = "[0-9]{1,9}"
NUMBERS = rf"v({NUMBER})\.({NUMBER})\.({NUMBER})"
VERSION_TAG = re.compile(rf"{MODEL}@{NUMBERS}")
CHAMPION_TAG = re.compile(rf"{MODEL}#{CHAMPION}(!?)#({NUMBER})")
REFERENCE = re.compile(rf"{CHAMPION}|{MODEL}#{CHAMPION}|({MODEL}@)?{NUMBERS}")


class Version(NamedTuple):
    """A version: `vdm@v1.2.0`, its commit, when and with which message it was tagged, its stages, its metrics.

    The metrics, in bits/dim, are those in reports/evaluation/metrics.json at the commit.  If that is unreadable, they
    are empty and `problem` says why.  `samples` is the quality of its samples, None if the commit has no readable
    reports/samples/metrics.json.
    """

    name: str
    commit: str
    created: str
    message: str
    stages: tuple[str, ...]
    metrics: Metrics
    problem: str = ""
    samples: SampleMetrics | None = None


def versions(root: Path) -> list[Version]:
    """Return every version, sorted by number.  Raises UserError (exit 5) outside a git repository."""
    tags = model_tags(root)
    reigning = reign(tags)
    known = registered(tags)
    paths = [f"{tag.commit}:{path}" for tag in known for path in (layout.METRICS, layout.SAMPLE_METRICS)]
    files = contents(root, paths, MOST_BYTES) if paths else {}
    found = []
    for tag in known:
        stages = (CHAMPION,) if reigning and reigning[-1].commit == tag.commit else ()
        metrics, problem = found_in(Metrics, files[f"{tag.commit}:{layout.METRICS}"], layout.METRICS)
        samples, _ = found_in(SampleMetrics, files[f"{tag.commit}:{layout.SAMPLE_METRICS}"], layout.SAMPLE_METRICS)
        found.append(Version(*tag, stages, metrics or Metrics(), problem, samples))
    return found


def model_tags(root: Path) -> list[Tag]:
    """Return the tags of versions and stages, without others that begin alike: `vdm-paper`, `vdm@paper`."""
    found = annotated_tags(root, MODEL)
    # GTO deregisters a version with a tag `vdm@v1.2.0!`.
    return [tag for tag in found if tag.name.startswith(f"{MODEL}#") or numbers_of(tag.name.partition("!")[0])]


def registered(tags: list[Tag]) -> list[Tag]:
    """Return the tags of the versions that are not deregistered, sorted by number."""
    gone = {name for name, mark, _ in (tag.name.partition("!") for tag in tags) if mark}
    known = [(numbers, tag) for tag in tags if (numbers := numbers_of(tag.name)) and tag.name not in gone]
    return [tag for _, tag in sorted(known)]


def deregistered(tags: list[Tag]) -> set[str]:
    """Return the commits that are no version any more, since GTO deregistered all their versions."""
    gone = {tag.commit for tag in tags if not of_stage(tag) and "!" in tag.name}
    return gone - {tag.commit for tag in registered(tags)}


def champion_history(tags: list[Tag]) -> list[Tag]:
    """Return the tags that make a version the champion, or take this back (`vdm#champion!#7`), in the order of numbers.

    Their times have only whole seconds.
    """
    found = [(int(match[2]), match[1], tag) for tag in tags if (match := CHAMPION_TAG.fullmatch(tag.name))]
    return [tag for _, _, tag in sorted(found)]


def of_stage(tag: Tag) -> bool:
    """Whether a tag gives a stage such as `champion`, or takes it back; others register and deregister versions."""
    return tag.name.startswith(f"{MODEL}#")


def found_in(model: type[DocumentType], content: bytes | None, path: Path) -> tuple[DocumentType | None, str]:
    """Return the document in a commit's file, or None and why it is missing or unreadable."""
    if content is None:
        return None, f"the commit has no {path}"
    if len(content) > MOST_BYTES:
        return None, f"{path}: larger than {MOST_BYTES:,} bytes"
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
    known = versions(root)
    name = reference if "@" in reference else f"{MODEL}@{reference}"
    wanted = CHAMPION if reference.endswith(CHAMPION) else name
    for version in known:
        if wanted in (version.name, *version.stages):
            return version
    if wanted == name:
        raise UserError(f"there is no version {name}; `vdmctl models` lists them", Exit.MISSING)
    if tag := champion_tag(root):
        other = f"choose another with `gto assign {MODEL} --version vX.Y.Z --stage {CHAMPION} --force`"
        raise UserError(f"{tag.name}: its version's tag is gone; run `git fetch --tags`, or {other}", Exit.MISSING)
    no_champion = "no version is the champion; `vdmctl promote` makes the first"
    raise UserError(no_champion if known else NO_VERSION, Exit.MISSING)


def newest(root: Path) -> Version:
    """Return the version with the highest number.  Raises UserError (exit 5) in a project without versions."""
    known = versions(root)
    if not known:
        raise UserError(NO_VERSION, Exit.MISSING)
    return known[-1]


def add_version(root: Path, commit: str, message: str) -> Version:
    """Tag a commit of a pipeline run as the next minor version; the first is v1.0.0.

    Raises UserError: exit 5 for a commit that is unknown or without an evaluation, 2 if the commit is a version
    already, or without a git identity.
    """
    commit = commit_of(root, commit)
    content = content_of(root, f"{commit}:{layout.METRICS}", MOST_BYTES)
    metrics, problem = found_in(Metrics, content, layout.METRICS)
    if metrics is None or not metrics.model_dump(exclude_unset=True):
        reason = problem or f"{layout.METRICS} is empty"
        raise UserError(f"commit {commit[:12]}: {reason}; run the pipeline and commit its results", Exit.MISSING)
    with registry_lock(root):
        for version in versions(root):
            if version.commit == commit:
                raise UserError(f"commit {commit[:12]} is {version.name} already", Exit.USAGE)
        # All tags, since a lightweight one is no version, but takes the name.
        names = git_lines(root, "for-each-ref", "--format=%(refname:strip=2)", f"refs/tags/{MODEL}@*")
        taken = [numbers for name in names if (numbers := numbers_of(name))]
        major, minor, _ = max(taken, default=(1, -1, 0))
        number = f"v{major}.{minor + 1}.0"
        create_tag(root, f"{MODEL}@{number}", commit, message)
    return resolve(root, number)


def make_champion(root: Path, version: Version, message: str) -> str:
    """Make the version the champion by the next tag; return its name.  The caller holds the registry's lock.

    Raises UserError (exit 2) without a git identity.
    """
    # As in GTO, all stages share one count.
    listed = git_lines(root, "for-each-ref", "--format=%(refname)", f"refs/tags/{MODEL}#*")
    taken = [int(count) for name in listed if re.fullmatch(NUMBER, count := name.rpartition("#")[2])]
    name = f"{MODEL}#{CHAMPION}#{max(taken, default=0) + 1}"
    create_tag(root, name, version.commit, message)
    return name


def create_tag(root: Path, name: str, commit: str, message: str) -> None:
    """Tag a commit as GTO does.

    Raises UserError: exit 2 without a git identity or for a name with a number that is too large, 5 if git fails.
    """
    require_identity(root)
    if not numbers_of(name) and not CHAMPION_TAG.fullmatch(name):
        before = "the tag before it has the highest number; delete that tag here and on the remotes"
        raise UserError(f"{name}: more than 9 digits would be ignored; {before}", Exit.USAGE)
    git(root, "tag", "--annotate", "--cleanup=verbatim", "--file=-", name, commit, stdin=[message.strip()])


def record_refusal(root: Path, version: Version, message: str) -> None:
    """Write a git note on the version's commit that says why it was not promoted.  Raises UserError."""
    with registry_lock(root):  # of two notes that git adds at once, one is lost
        git(root, "notes", f"--ref={REFUSALS}", "add", "--force", "--file=-", version.commit, stdin=[message])


def refusal(root: Path, commit: str) -> Evidence | None:
    """Return the evidence of the last refusal of a commit's version; None if it was never refused."""
    if commit not in refusals(root):
        return None
    return evidence_of(git(root, "notes", f"--ref={REFUSALS}", "show", commit).decode(errors="replace"))


def refusals(root: Path) -> dict[str, str]:
    """Return the digests of the notes of refusals, by the commits that they are about."""
    listed = [line.split() for line in git_lines(root, "notes", f"--ref={REFUSALS}", "list")]
    return {commit: note for note, commit in listed}


def judged_by(root: Path, validation_sha256: str) -> set[str]:
    """Return the names of the challengers that were evaluated on the validation images with this digest."""
    tags = annotated_tags(root, f"{MODEL}#{CHAMPION}")
    notes = contents(root, list(refusals(root).values()), MOST_BYTES).values()
    messages = [tag.message for tag in tags] + [note.decode(errors="replace") for note in notes if note is not None]
    judged = [one for message in messages if (one := evidence_of(message)) and one.num_images]
    return {str(one.challenger) for one in judged if one.challenger and one.validation_sha256 == validation_sha256}


def champion(root: Path) -> Version | None:
    """Return the champion, or None.  Raises UserError (exit 5) when its version's tag is gone."""
    return resolve(root, CHAMPION) if champion_tag(root) else None


def is_decided(root: Path, commit: str) -> bool:
    """Whether the commit has a version that was promoted, or that GTO deregistered, or one that was refused.

    `vdmctl prune` deletes the tag of a refused version and keeps the note.
    """
    if commit in refusals(root):
        return True
    tags = [tag for tag in model_tags(root) if tag.commit == commit]
    return any(numbers_of(tag.name) for tag in tags) and bool(champion_history(tags) or not registered(tags))


def champion_tag(root: Path) -> Tag | None:
    """Return the tag of the present champion, or None."""
    reigning = reign(model_tags(root))
    return reigning[-1] if reigning else None


def previous_champion(root: Path) -> Version:
    """Return the version that a roll-back makes the champion.  Raises UserError (exit 5) if no earlier one is left."""
    reigning = reign(model_tags(root))
    if len(reigning) < 2:
        present = resolve(root, CHAMPION).name.replace("@", " ")
        advice = f"`gto deprecate {present} {CHAMPION}` leaves the project without a champion"
        raise UserError(f"there is no earlier champion to go back to; {advice}", Exit.MISSING)
    for version in versions(root):
        if version.commit == reigning[-2].commit:
            return version
    raise UserError(f"{reigning[-2].name}: its version's tag is gone", Exit.MISSING)


def reign(tags: list[Tag]) -> list[Tag]:
    """Return the stack of champions' tags, the present champion last: a promotion pushes, a roll-back pops.

    So a second roll-back goes one champion further back, and not to the one that the first roll-back removed.  `tags`
    are those of versions and of champions: versions that GTO deregistered do not count.
    """
    reigning: list[Tag] = []
    for tag in champion_history(tags):
        if "!" in tag.name:
            reigning = [earlier for earlier in reigning if earlier.commit != tag.commit]
        elif reigning and reigning[-1].commit == tag.commit:  # promoted again, or the one rolled back has no tag here
            reigning[-1] = tag
        elif (evidence := evidence_of(tag.message)) and evidence.decision == ROLL_BACK:
            # Remove the champion, and versions before it that GTO deregistered; the earlier one reigns by its new tag.
            below = [place for place, earlier in enumerate(reigning[:-1]) if earlier.commit == tag.commit]
            del reigning[below[-1] if below else -2 :]
            reigning.append(tag)
        else:
            reigning.append(tag)
    gone = deregistered(tags)
    left = [tag for tag in reigning if tag.commit not in gone]
    # What lay between two tags of one version may be gone; then that version reigns once.
    return [list(same)[-1] for _, same in groupby(left, key=lambda tag: tag.commit)]


def numbers_of(name: str) -> tuple[int, int, int] | None:
    """Return (1, 2, 0) for `vdm@v1.2.0`; None for a tag that is not a version."""
    match = VERSION_TAG.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None
