"""Fetch the model and the images of a version.

The digests come from dvc.lock at the version's commit.  Cache and remote are those configured now, since the ones
configured in an old commit may be gone.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.core import layout
from flows.core.documents import Document, Sha256, read_document
from flows.core.errors import Exit, UserError
from flows.core.files import file_sha256, scratch_folder
from flows.images.image_set import ImageSet, open_images
from flows.registry.versions import Version
from flows.repository.cache import repair_advice
from flows.repository.files import DamagedVersionError, get
from flows.repository.repository import Repository

if TYPE_CHECKING:
    from flows.core.model import TrainedModel


class Described(Document):
    """What config.json of a model says about its weights; `flows.core.model`, which reads more, loads torch."""

    weights_sha256: Sha256


def fetch(repository: Repository, version: Version) -> Path:
    """Fetch the version's model into `.vdm/models/<md5>`; return that folder.

    Raises UserError (exit 5), without leaving a partial folder, when files cannot be had; DamagedVersionError if a
    digest differs.
    """
    folder = fetch_folder(repository, version, str(layout.REGISTERED))
    try:
        require_model(folder, version)
    except DamagedVersionError as error:
        advice = f"delete {folder} to fetch it again, or {repair_advice(version)}"
        raise DamagedVersionError(f"{error}; {advice}") from error
    return folder


def fetch_model(repository: Repository, version: Version) -> "TrainedModel":
    """Fetch the version's model, and open it.  Raises what `fetch` and `flows.core.model.open_model` raise."""
    from flows.core.model import open_model  # torch takes a second

    return open_model(fetch(repository, version), name=version.name)


def fetch_images(repository: Repository, version: Version) -> ImageSet:
    """Return the version's images, opened: the working tree's if these are they, else they are fetched.

    Raises UserError (exit 5); see `fetch`.
    """
    expected = require_digest(version, "data_sha256")
    with suppress(UserError):
        if (images := open_images(repository.folder / layout.IMAGES)).data_sha256 == expected:
            return images
    folder = fetch_folder(repository, version, str(layout.IMAGES))
    with suppress(UserError):
        if (images := open_images(folder)).data_sha256 == expected:
            return images
    raise DamagedVersionError(f"{folder} is damaged; delete it to fetch it again")


def fetch_folder(repository: Repository, version: Version, path: str) -> Path:
    """Fetch a folder among the version's outputs into `.vdm/models/<md5>`; return that folder.  Raises UserError."""
    digest = repository.at(version).lock.outputs.get(path, "")
    if not digest.endswith(".dir"):
        raise UserError(f"{version.name}: its dvc.lock has no folder {path}", Exit.MISSING)
    folder = repository.folder / layout.FETCHED / digest.removesuffix(".dir")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with repository.at(version).files() as files, scratch_folder(folder.parent) as scratch:
        get(files, path, digest, scratch)
        try:
            (scratch / path).rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have fetched it meanwhile
                raise
    return folder


def fetch_files(repository: Repository, version: Version, paths: list[str], folder: Path) -> None:
    """Fetch files and folders among the version's outputs into a folder, by their paths.  Raises UserError (exit 5)."""
    outputs = repository.at(version).lock.outputs
    if missing := [path for path in paths if path not in outputs]:
        raise UserError(f"{version.name}: its {layout.DVC_LOCK} does not list {missing[0]}", Exit.MISSING)
    with repository.at(version).files() as files:
        for path in paths:
            get(files, path, outputs[path], folder)


def require_model(folder: Path, version: Version) -> None:
    """Raise DamagedVersionError unless the folder has the version's model with its weights.

    The metrics state the sha256 of config.json, which states that of the weights.
    """
    config, weights = folder / "config.json", folder / "weights.safetensors"
    expected = require_digest(version, "model_sha256")
    if not config.is_file() or file_sha256(config) != expected:
        raise DamagedVersionError(f"{folder} is not the model of {version.name}")
    try:
        described = read_document(Described, config)
    except UserError as error:
        raise DamagedVersionError(str(error)) from error
    if not weights.is_file() or file_sha256(weights) != described.weights_sha256:
        raise DamagedVersionError(f"{folder}: its weights are damaged or missing")


def require_digest(version: Version, key: str) -> str:
    """Return a digest that the version's metrics state.  Raises UserError (exit 5) if they do not, or are damaged."""
    digest: str | None = getattr(version.metrics, key)
    if digest is None:
        reason = version.problem or f"{layout.METRICS} at its commit does not state {key}"
        raise UserError(f"{version.name}: {reason}", Exit.MISSING)
    return digest
