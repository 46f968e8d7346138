"""Recompute every digest of a version and compare it with what its commit says.

dvc.lock lists the digests.  Code, parameters and metrics are read from git; outputs are read from DVC's cache, or from
its remote if they are not in the cache.  The sha256 of model and images that the pipeline wrote into its reports are
checked, too.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flows.core import bounded_yaml, layout
from flows.core.documents import read
from flows.core.errors import UserError
from flows.core.files import scratch_folder
from flows.images.store import data_sha256
from flows.registry.git import content_of
from flows.registry.lock_file import read_lock
from flows.registry.storage import DamagedVersionError, files_of, get, require_model, stated
from flows.registry.versions import Version
from flows.validation.report import Validation


class Check(NamedTuple):
    """One check: its subject, and what is wrong or ''."""

    subject: str
    problem: str


def verify(root: Path, version: Version) -> list[Check]:
    """Return every check of the version, passed or not.

    Raises UserError (exit 5) unless everything can be read: a file that is neither in the cache nor in the remote says
    nothing about its digest.  Raises NetworkError (exit 5) when the DVC remote does not answer.
    """
    lock = read_lock(root, version)
    checks = [Check(path, "differs between stages") for path in lock.contradictions]
    written = bounded_yaml.sections(content_of(root, f"{version.commit}:{layout.PARAMS}"))
    for section, values in lock.parameters.items():
        problem = "" if written.get(section) == values else "differs from the values in dvc.lock"
        checks.append(Check(f"{layout.PARAMS} {section}", problem))
    with scratch_folder() as scratch:
        with files_of(root, version, link=True) as files:
            for path, digest in sorted({**lock.code, **lock.outputs}.items()):
                checks.append(check(path, partial(get, files, path, digest, scratch)))
        model, images, report = (scratch / path for path in (layout.REGISTERED, layout.IMAGES, layout.VALIDATION))
        stated_digests: dict[Path, Callable[[], object]] = {
            layout.REGISTERED: lambda: require_model(model, version),
            layout.IMAGES: lambda: require_images(version, lambda: data_sha256(images)),
            layout.VALIDATION: lambda: require_images(version, lambda: read(Validation, report).data_sha256),
        }
        for output, action in stated_digests.items():
            if str(output) in lock.outputs:
                checks.append(check(f"{output} sha256", action))
            else:
                checks.append(Check(str(output), "dvc.lock does not list it"))
    return checks


def require_sound(root: Path, version: Version) -> None:
    """Raise DamagedVersionError (exit 5) with the first check that fails; other errors as `verify` does."""
    for subject, problem in verify(root, version):
        if problem:
            raise DamagedVersionError(f"{version.name} does not verify: {subject}: {problem}")


def check(subject: str, action: Callable[[], object]) -> Check:
    """Return a check that fails if the action raises DamagedVersionError."""
    try:
        action()
    except DamagedVersionError as error:
        return Check(subject, str(error))
    return Check(subject, "")


def require_images(version: Version, digest: Callable[[], str]) -> None:
    """Raise DamagedVersionError unless the digest can be read and is that of the images in the version's metrics."""
    expected = stated(version, "data_sha256")
    try:
        if digest() == expected:
            return
    except (OSError, UserError) as error:
        raise DamagedVersionError(str(error)) from error
    raise DamagedVersionError(f"differs from data_sha256 in {layout.METRICS}")
