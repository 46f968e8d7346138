"""Recompute every digest of a version and compare it with what its commit says.

dvc.lock lists the digests.  Code, parameters and metrics are read from git; outputs are read from DVC's cache, or from
its remote if they are not in the cache.  The sha256 of model and images that the pipeline wrote into its reports are
checked, too.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flows.core import bounded_yaml, layout
from flows.core.documents import read
from flows.core.errors import UserError
from flows.core.files import scratch_folder
from flows.images.store import data_sha256
from flows.registry.git import content_of
from flows.registry.lock_file import Lock, read_lock
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
    checks = [*of_parameters(root, version, lock)]
    checks += [Check(path, "differs between stages") for path in lock.contradictions]
    with scratch_folder() as scratch:
        with files_of(root, version, link=True) as files:
            for path, digest in sorted({**lock.code, **lock.outputs}.items()):
                checks.append(check(path, partial(get, files, path, digest, scratch)))
        checks += of_reports(version, lock, scratch)
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


def of_parameters(root: Path, version: Version, lock: Lock) -> Iterator[Check]:
    """Yield a check for each section of params.yaml at the commit against the values in dvc.lock."""
    written = bounded_yaml.sections(content_of(root, f"{version.commit}:{layout.PARAMS}"))
    for section, values in lock.parameters.items():
        same = written.get(section) == values
        yield Check(f"{layout.PARAMS} {section}", "" if same else "differs from the values in dvc.lock")


def of_reports(version: Version, lock: Lock, folder: Path) -> Iterator[Check]:
    """Yield a check of the model, the images and the validation report in the folder against the metrics."""

    def require_images(digest: Callable[[], str]) -> None:
        try:
            same = digest() == stated(version, "data_sha256")
        except (OSError, UserError) as error:
            raise DamagedVersionError(str(error)) from error
        if not same:
            raise DamagedVersionError(f"differs from data_sha256 in {layout.METRICS}")

    actions: dict[Path, Callable[[], object]] = {
        layout.REGISTERED: lambda: require_model(folder / layout.REGISTERED, version),
        layout.IMAGES: lambda: require_images(lambda: data_sha256(folder / layout.IMAGES)),
        layout.VALIDATION: lambda: require_images(lambda: read(Validation, folder / layout.VALIDATION).data_sha256),
    }
    for path, action in actions.items():
        if str(path) in lock.outputs:
            yield check(f"{path} sha256", action)
        else:
            yield Check(str(path), "dvc.lock does not list it")
