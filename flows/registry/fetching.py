"""Fetch the model and the images of a version.

The digests come from dvc.lock at the version's commit.  Cache and remote are those configured now, since the ones
configured in an old commit may be gone.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from flows.core import layout
from flows.core.documents import Document, Sha256, read_document
from flows.core.errors import Exit, UserError
from flows.core.files import file_sha256, inside, scratch_folder, write_whole
from flows.core.network_code import HERE, NetworkCode
from flows.images.image_set import ImageSet, open_images
from flows.registry.versions import Version
from flows.repository.cache import repair_advice
from flows.repository.files import DamagedVersionError, get
from flows.repository.repository import Repository

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flows.core.model import TrainedModel


log = logging.getLogger(__name__)


class Described(Document):
    """What config.json says about weights and code; `flows.core.model`, which reads more, loads torch."""

    weights_sha256: Sha256
    model: dict[str, Any] = Field(default_factory=dict)
    network_sha256: Sha256 | None = None

    @property
    def network(self) -> str | None:
        """The name of a network of the user's own."""
        return self.model.get("network")


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


def fetch_model(
    repository: Repository,
    version: Version,
    device: "torch.device | str" = "cpu",
    name: str | None = None,
    network: "nn.Module | None" = None,
) -> "TrainedModel":
    """Fetch the version's model, and open it; `name` is for messages.

    The code of a network of the user's own is that of the version's commit, unless `network` is given by hand.  Raises
    what `fetch` and `flows.core.model.open_model` raise.
    """
    from flows.core.model import open_model  # torch takes a second

    folder = fetch(repository, version)
    own = read_described(folder).network
    source = HERE if network is None else network
    if own and network is None:
        source = fetch_code(repository, version)
        with suppress(UserError):  # it may be no more
            if NetworkCode(repository.folder / layout.NETWORKS).of(own).sha256 != source.of(own).sha256:
                log.info("%s: %s has other code here now; that of its commit is used", version.name, own)
    return open_model(folder, device, name or version.name, source)


def fetch_code(repository: Repository, version: Version) -> NetworkCode:
    """Put networks/ of the version's commit into `.vdm/models/<digest>`, and return it.  Raises UserError (exit 5)."""
    (digest,) = repository.objects(version.commit, [str(layout.NETWORKS)])
    folder = repository.folder / layout.FETCHED / digest
    code = NetworkCode(folder, f"{layout.NETWORKS}/ of {version.name}")
    if folder.is_dir() or not digest.isalnum():  # without such a folder git says that it is missing
        return code
    listed = repository.git("ls-tree", "-r", "-z", "--name-only", f"{version.commit}:{layout.NETWORKS}").decode()
    names = [name for name in listed.split("\0") if name.endswith(".py") and name.isprintable()]
    contents = repository.contents([f"{digest}:{name}" for name in names])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent) as scratch:
        for name in names:
            write_whole(inside(scratch / digest, name), contents[f"{digest}:{name}"] or b"")
        move_whole(scratch / digest, folder)
    return code


def move_whole(made: Path, folder: Path) -> None:
    """Put a folder in its place, unless another process has done so meanwhile."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


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
        move_whole(scratch / path, folder)
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
        described = read_described(folder)
    except UserError as error:
        raise DamagedVersionError(str(error)) from error
    if not weights.is_file() or file_sha256(weights) != described.weights_sha256:
        raise DamagedVersionError(f"{folder}: its weights are damaged or missing")


def read_described(folder: Path) -> Described:
    """Return what config.json of a model says.  Raises UserError (exit 5) if it is missing or damaged."""
    return read_document(Described, folder / "config.json")


def require_digest(version: Version, key: str) -> str:
    """Return a digest that the version's metrics state.  Raises UserError (exit 5) if they do not, or are damaged."""
    digest: str | None = getattr(version.metrics, key)
    if digest is None:
        reason = version.problem or f"{layout.METRICS} at its commit does not state {key}"
        raise UserError(f"{version.name}: {reason}", Exit.MISSING)
    return digest
