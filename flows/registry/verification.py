"""Recompute every digest of a version and compare it with what its commit says, and the outputs here with a commit's.

dvc.lock lists the digests.  Code, parameters and metrics are read from git; outputs are read from DVC's cache, or from
its remote if they are not in the cache.  The sha256 of model and images that the pipeline wrote into its reports are
checked, too.

By whom the tags of a version are signed is git's to say.  A signature decides nothing here: not every clone has the
keys.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flows.contract.findings import Verdict
from flows.core import bounded_yaml, layout
from flows.core.documents import read_document
from flows.core.errors import UserError
from flows.core.files import scratch_folder
from flows.images.image_set import open_images
from flows.registry.fetching import Described, fetch_code, read_described, require_digest, require_model
from flows.registry.versions import Registry, Version
from flows.repository.commit import Commit
from flows.repository.files import DamagedVersionError, get
from flows.repository.lock_file import lock_here
from flows.repository.repository import TAGS, Repository
from flows.repository.tags import Tag


class Verified(NamedTuple):
    """One check: its subject, and what is wrong or ''."""

    subject: str
    problem: str


class Signature(NamedTuple):
    """A tag of a version: by whom it is signed, in git's words, or None; and what is wrong with the signature or ''."""

    tag: str
    signer: str | None
    problem: str


def signatures(registry: Registry, version: Version) -> list[Signature]:
    """Return by whom the tags of the version are signed: its own, and those of its promotions and refusals."""
    return [signature(registry.repository, tag) for tag in registry.tags if tag.commit == version.commit]


def signature(repository: Repository, tag: Tag) -> Signature:
    """Return by whom a tag is signed."""
    if not tag.is_signed:
        return Signature(tag.name, None, "")
    if tag.written_as != tag.name:
        return Signature(tag.name, None, f"it is the tag {tag.written_as} under another name")
    try:
        said = repository.git("verify-tag", f"{TAGS}{tag.name}", errors=True).decode(errors="replace")
    except UserError as error:
        return Signature(tag.name, None, str(error))
    found = re.search(r"Good .*signature (?:for|from) (.+)", said)
    return Signature(tag.name, found[1] if found else said, "")


def verify(repository: Repository, version: Version) -> list[Verified]:
    """Return every check of the version, passed or not.

    Raises UserError (exit 5) unless everything can be read: a file that is neither in the cache nor in the remote says
    nothing about its digest.  Raises NetworkError (exit 5) when the DVC remote does not answer.
    """
    lock = repository.at(version).lock
    checks = [Verified(path, "differs between stages") for path in lock.contradictions]
    written = bounded_yaml.sections(repository.content_of(f"{version.commit}:{layout.PARAMS}"))
    for section, values in lock.parameters.items():
        problem = "" if written.get(section) == values else "differs from the values in dvc.lock"
        checks.append(Verified(f"{layout.PARAMS} {section}", problem))
    with scratch_folder() as scratch:
        with repository.at(version).files(link=True) as files:
            for path, digest in sorted({**lock.code, **lock.outputs}.items()):
                checks.append(check(path, partial(get, files, path, digest, scratch)))
        model, images, report = (scratch / path for path in (layout.REGISTERED, layout.IMAGES, layout.FINDINGS))
        stated_digests: dict[Path, Callable[[], object]] = {
            layout.REGISTERED: lambda: require_model(model, version),
            layout.IMAGES: lambda: require_images(version, lambda: open_images(images).data_sha256),
            layout.FINDINGS: lambda: require_images(version, lambda: read_document(Verdict, report).data_sha256),
        }
        for output, action in stated_digests.items():
            if str(output) in lock.outputs:
                checks.append(check(f"{output} sha256", action))
            else:
                checks.append(Verified(str(output), "dvc.lock does not list it"))
        with suppress(UserError):  # a check above says that config.json is missing or damaged
            described = read_described(model)
            if described.network and described.network_sha256:
                checks.append(check(described.network, partial(require_code, repository, version, described)))
    return checks


def require_code(repository: Repository, version: Version, described: Described) -> None:
    """Raise DamagedVersionError unless the commit has the code with which the version's network was trained."""
    assert described.network is not None
    try:
        found = fetch_code(repository, version).of(described.network).sha256
    except UserError as error:
        raise DamagedVersionError(str(error)) from error
    if found != described.network_sha256:
        raise DamagedVersionError(f"the model was trained with other code than {layout.NETWORKS}/ has at its commit")


def require_sound(repository: Repository, version: Version) -> None:
    """Raise DamagedVersionError (exit 5) with the first check that fails; other errors as `verify` does."""
    for subject, problem in verify(repository, version):
        if problem:
            raise DamagedVersionError(f"{version.name} does not verify: {subject}: {problem}")


def check(subject: str, action: Callable[[], object]) -> Verified:
    """Return a check that fails if the action raises DamagedVersionError."""
    try:
        action()
    except DamagedVersionError as error:
        return Verified(subject, str(error))
    return Verified(subject, "")


def require_images(version: Version, digest: Callable[[], str]) -> None:
    """Raise DamagedVersionError unless the digest can be read and is that of the images in the version's metrics."""
    expected = require_digest(version, "data_sha256")
    try:
        if digest() == expected:
            return
    except (OSError, UserError) as error:
        raise DamagedVersionError(str(error)) from error
    raise DamagedVersionError(f"differs from data_sha256 in {layout.METRICS}")


class Reproduction(NamedTuple):
    """Whether the outputs in the working tree are identical to those of the commit, and one line about it."""

    is_equal: bool
    line: str
    outdated_stages: list[str]
    """The stages whose inputs changed since they ran."""


def reproduction(repository: Repository) -> Reproduction:
    """Compare the outputs in the working tree with the commit's.

    Raises UserError or OSError if that fails, as outside a repository or without a commit.
    """
    commit = repository.git_text("rev-parse", "--verify", "HEAD")
    ours, theirs = lock_here(repository), Commit(repository, commit, "HEAD").lock
    problems, stages = changes(repository)
    if problems:
        advice = "`dvc pull` restores what a remote has, and `dvc repro` makes the rest"
        return Reproduction(False, "; ".join([*problems, advice]), stages)
    differing = sorted(path for path, md5 in ours.outputs.items() if theirs.outputs.get(path) != md5)
    if not differing:
        return Reproduction(True, f"every output is identical to that of commit {commit[:12]}", [])
    inputs = [path for path, md5 in ours.code.items() if theirs.code.get(path) != md5]
    sections = [name for name, values in ours.parameters.items() if theirs.parameters.get(name) != values]
    inputs += [f"{layout.PARAMS} {name}" for name in sections]
    if ours.source and theirs.source and ours.source != theirs.source:
        inputs.append(ours.source[0])
    reason = "with the same inputs, so the images' source, libraries or the processor differ"
    if inputs:
        reason = f"because the inputs differ: {', '.join(sorted(inputs))}"
    return Reproduction(False, f"{', '.join(differing)}: different from commit {commit[:12]}, {reason}", [])


def changes(repository: Repository) -> tuple[list[str], list[str]]:
    """Return what differs from dvc.lock in the working tree, in words, and the stages whose inputs changed.

    Raises UserError.
    """
    with repository.dvc() as repo:
        # Not the outputs in `status`: it also names one that the cache lacks, whether it changed or not.
        outputs = {path: how for out in repo.index.outs for path, how in out.workspace_status().items()}
        inputs: dict[str, set[str]] = {}
        for stage, causes in repo.status().items():
            for cause in causes:
                changed = cause.get("changed deps", {}) if isinstance(cause, dict) else {}
                if names := changed.keys() - outputs.keys():
                    inputs.setdefault(stage, set()).update(names)
    problems = [f"{path}: {how}" for path, how in sorted(outputs.items())]
    if inputs:
        names = ", ".join(sorted(set().union(*inputs.values())))
        problems.append(f"inputs of {', '.join(inputs)} changed since they ran: {names}")
    return problems, list(inputs)
