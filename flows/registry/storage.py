"""Get the files of a version from git, from DVC's cache, or from DVC's remote.

The digests come from dvc.lock at the version's commit.  Cache and remote are those configured now, since the ones
configured in an old commit may be gone.
"""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.logger import set_loggers_level
from dvc.repo import Repo
from dvc_objects.errors import ObjectFormatError

from flows.core import layout
from flows.core.documents import Document, Sha256, read
from flows.core.errors import Exit, UserError, brief, of_remote
from flows.core.files import file_sha256, inside, scratch_folder
from flows.images.image_set import (
    DESCRIPTION,
    Description,
    ImageSet,
    labels_of,
    load_array,
    open_images,
    write_array,
)
from flows.registry.lock_file import read_lock
from flows.registry.versions import Tag, Version
from vdm.choices import Split


class Described(Document):
    """What config.json of a model says about its weights; `flows.core.model`, which reads more, loads torch."""

    weights_sha256: Sha256


if TYPE_CHECKING:
    from flows.core.model import TrainedModel


class DamagedVersionError(UserError):
    """A digest of a version's files differs from the one that was recorded (exit 5)."""

    def __init__(self, message: str, code: Exit = Exit.MISSING) -> None:
        super().__init__(message, code)


def fetch(root: Path, version: Version) -> Path:
    """Fetch the version's model into `.vdm/models/<md5>`; return that folder.

    Raises UserError (exit 5), without leaving a partial folder, when files cannot be had; DamagedVersionError if a
    digest differs.
    """
    folder = fetch_folder(root, version, str(layout.REGISTERED))
    try:
        require_model(folder, version)
    except DamagedVersionError as error:
        advice = f"delete {folder} to fetch it again, or {given_up(version)}"
        raise DamagedVersionError(f"{error}; {advice}") from error
    return folder


def fetch_model(root: Path, version: Version) -> "TrainedModel":
    """Fetch the version's model, and open it.  Raises what `fetch` and `flows.core.model.open_model` raise."""
    from flows.core.model import open_model  # torch takes a second

    return open_model(fetch(root, version), name=version.name)


def fetch_images(root: Path, version: Version) -> ImageSet:
    """Return the version's images, opened: the working tree's if these are they, else they are fetched.

    Raises UserError (exit 5); see `fetch`.
    """
    expected = stated(version, "data_sha256")
    with suppress(UserError):
        if (images := open_images(root / layout.IMAGES)).data_sha256 == expected:
            return images
    folder = fetch_folder(root, version, str(layout.IMAGES))
    with suppress(UserError):
        if (images := open_images(folder)).data_sha256 == expected:
            return images
    raise DamagedVersionError(f"{folder} is damaged; delete it to fetch it again")


@contextmanager
def images_of_split(root: Path, version: Version, split: Split) -> Iterator[ImageSet]:
    """Yield a version's images of one split, as a set that exists while the block runs; the other splits are empty.

    Raises UserError (exit 5); see `fetch`.
    """
    with scratch_folder() as scratch:
        with files_of(root, version) as files:
            for path in (layout.IMAGES / DESCRIPTION, layout.IMAGES / f"{split}.npy", labels_of(layout.IMAGES, split)):
                with readable(str(path)):
                    is_there = files.exists(str(path)) or path != labels_of(layout.IMAGES, split)
                if is_there:
                    get(files, str(path), None, scratch)
        folder = scratch / layout.IMAGES
        pixels = load_array(folder / f"{split}.npy")
        for other in read(Description, folder / DESCRIPTION).splits:
            if other != split:
                write_array(folder / f"{other}.npy", [pixels[:0]])
        images = open_images(folder)
        images.data_sha256 = stated(version, "data_sha256")  # that of the whole set
        yield images


def fetch_folder(root: Path, version: Version, path: str) -> Path:
    """Fetch a folder among the version's outputs into `.vdm/models/<md5>`; return that folder.  Raises UserError."""
    digest = read_lock(root, version).outputs.get(path, "")
    if not digest.endswith(".dir"):
        raise UserError(f"{version.name}: its dvc.lock has no folder {path}", Exit.MISSING)
    folder = root / layout.FETCHED / digest.removesuffix(".dir")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files_of(root, version) as files, scratch_folder(folder.parent) as scratch:
        get(files, path, digest, scratch)
        try:
            (scratch / path).rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have fetched it meanwhile
                raise
    return folder


def fetch_files(root: Path, version: Version, paths: list[str], folder: Path) -> None:
    """Fetch files and folders among the version's outputs into a folder, by their paths.  Raises UserError (exit 5)."""
    outputs = read_lock(root, version).outputs
    with files_of(root, version) as files:
        for path in paths:
            get(files, path, outputs[path], folder)


def get(files: DVCFileSystem, path: str, digest: str | None, folder: Path) -> None:
    """Put a file or a folder of a commit at the same path in `folder`, and compare it with its md5 in dvc.lock.

    It is None for a file in a folder that dvc.lock lists.  The md5 of a folder is that of DVC's listing: the md5 and
    the path of every file.  Raises DamagedVersionError if one differs or the commit lacks the path, UserError (exit 5)
    for a name in a listing that leads out of the folder, or for a lost file.
    """
    with readable(path):
        index, key = files.repo.index.data["repo"], PurePosixPath(path).parts
        found = index.iteritems(prefix=key) if index.has_node(key) else []  # git's files are not in DVC's index
        recorded = {"/".join(parts): entry.hash_info.value for parts, entry in found if not entry.meta.isdir}
        if not recorded and not files.exists(path):
            raise DamagedVersionError(f"the commit lacks {path}, which dvc.lock lists")
        listed = []
        for name in sorted(recorded or files.find(path)):
            place = inside(folder, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(name, str(place), cache=True)
            with place.open("rb") as file:
                md5 = hashlib.file_digest(file, "md5").hexdigest()
            if md5 != recorded.get(name, md5):
                cached = files.repo.cache.local.oid_to_path(recorded[name])
                raise DamagedVersionError(f"{name} is damaged in the cache; delete {cached} to fetch it again")
            listed.append({"md5": md5, "relpath": name[len(path) + 1 :]})
    if digest and digest.endswith(".dir"):
        md5 = hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"
    if digest and md5 != digest:
        raise DamagedVersionError(f"{path} differs from its md5 in dvc.lock")


def content_in(files: DVCFileSystem, path: Path) -> bytes | None:
    """Return the content of a file of a commit; None if the commit has none.  Raises what `readable` raises."""
    with readable(str(path)):
        return bytes(files.cat_file(str(path))) if files.exists(str(path)) else None


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn errors of reading a version's file or folder into UserError (exit 5).

    NetworkError means that the remote may answer later, DamagedVersionError that a listing is damaged.
    """
    try:
        yield
    except (UserError, sqlite3.Error):
        raise
    except Exception as error:  # each kind of remote raises its own errors
        cause = error.__cause__ or error  # DVC wraps errors about a folder
        if isinstance(cause, ObjectFormatError):
            raise DamagedVersionError(f"the listing of {path} is damaged in the cache: {brief(cause)}") from error
        if isinstance(cause, FileNotFoundError):
            advice = "`dvc push` where it is, or `dvc remote add --default NAME URL` for the remote that has it"
            reason = f"{path} is neither in DVC's cache nor in its default remote; {advice}"
            raise UserError(reason, Exit.MISSING) from error
        raise of_remote(f"{path} cannot be read now", error) from error


@contextmanager
def files_of(root: Path, version: Version | Tag, *, link: bool = False, remote: bool = True) -> Iterator[DVCFileSystem]:
    """Open the files at a version's commit; with `link`, `get` links those in the cache and copies no bytes.

    Without `remote`, files that the cache lacks are missing.
    Errors inside the block name the version.
    """
    with dvc_repository(root) as repo:
        config = repo.config | {"cache": repo.config["cache"] | {"type": ["symlink" if link else "reflink", "copy"]}}
        if not remote:
            config |= {"core": {key: value for key, value in config["core"].items() if key != "remote"}}
        try:
            yield DVCFileSystem(str(root), rev=version.commit, config=config)
        except UserError as error:
            raise type(error)(f"{version.name}: {error}", error.code) from error


def require_model(folder: Path, version: Version) -> None:
    """Raise DamagedVersionError unless the folder has the version's model with its weights.

    The metrics state the sha256 of config.json, which states that of the weights.
    """
    config, weights = folder / "config.json", folder / "weights.safetensors"
    expected = stated(version, "model_sha256")
    if not config.is_file() or file_sha256(config) != expected:
        raise DamagedVersionError(f"{folder} is not the model of {version.name}")
    try:
        described = read(Described, config)
    except UserError as error:
        raise DamagedVersionError(str(error)) from error
    if not weights.is_file() or file_sha256(weights) != described.weights_sha256:
        raise DamagedVersionError(f"{folder}: its weights are damaged or missing")


def stated(version: Version, key: str) -> str:
    """Return a digest that the version's metrics state.  Raises UserError (exit 5) if they do not, or are damaged."""
    digest: str | None = getattr(version.metrics, key)
    if digest is None:
        reason = version.problem or f"{layout.METRICS} at its commit does not state {key}"
        raise UserError(f"{version.name}: {reason}", Exit.MISSING)
    return digest


def require_remote(root: Path) -> None:
    """Raise UserError (exit 2) unless DVC has a default remote to which `dvc push` can write."""
    with dvc_repository(root) as repo:
        try:
            repo.cloud.get_remote_odb(command="push")  # refuses also a remote that keeps versions of files itself
        except Exception as error:  # each kind of remote raises its own errors
            reason = f"DVC's default remote cannot be used: {brief(error)}"
            raise UserError(f"{root.absolute()}: {reason}", Exit.USAGE) from error


def used_at(repo: Any, version: Version | Tag) -> set[str]:
    """Return the digests of all files and listings of a version; listings that the cache lacks are pulled.

    Raises UserError (exit 5) if a listing is lost: without it nobody knows which files belong to a folder.  Raises
    NetworkError (exit 5) when the remote does not answer.
    """
    cache = repo.cache.local
    try:
        with repo.switch(version.commit):  # DVC takes 0.1 s to read the graph of a commit
            folders = [out for out in repo.index.outs if out.use_cache and out.is_dir_checksum]
            missing = [out for out in folders if not cache.exists(out.hash_info.value)]
            if not missing:
                return digests(repo.index.used_objs(force=True))
    except DvcException as error:
        raise lost(version, brief(error)) from error
    if missing and repo.config["core"].get("remote"):
        try:
            repo.cloud.pull([out.hash_info for out in missing])
        except Exception as error:  # each kind of remote raises its own errors
            raise of_remote("the DVC remote does not answer", error) from error
    for out in missing:
        if not cache.exists(out.hash_info.value):
            raise lost(version, f"the listing of {out.def_path} is lost, so nobody knows which files belong to it")
    with repo.switch(version.commit):
        return digests(repo.index.used_objs(force=True))


def lost(version: Version | Tag, reason: str) -> UserError:
    """Return the error (exit 5) about a version of which a file is lost."""
    return UserError(f"{version.name}: {reason}; {given_up(version)}", Exit.MISSING)


def given_up(version: Version | Tag) -> str:
    """Return the advice for a version that cannot be repaired."""
    return f"`gto deprecate {version.name.replace('@', ' ')}` gives the version up"


def digests(used: dict[Any, set[Any]]) -> set[str]:
    """Return the digests of what DVC says is in use."""
    return {each.value for objects in used.values() for each in objects}


def lacking(repo: Any, digests: set[str]) -> set[str]:
    """Return the objects that DVC's default remote lacks.  Raises NetworkError (exit 5) when it does not answer."""
    try:
        return digests - set(repo.cloud.get_remote_odb(command="push").oids_exist(sorted(digests)))
    except Exception as error:  # each kind of remote raises its own errors
        raise of_remote("the DVC remote does not answer", error) from error


@contextmanager
def dvc_repository(root: Path) -> Iterator[Any]:
    """Open DVC's repository at `root`, without the lines that DVC logs.  Raises UserError (exit 5)."""
    try:
        with set_loggers_level(logging.CRITICAL + 1):
            try:
                repo = Repo(str(root))
            except DvcException as error:
                raise UserError(f"{root}: {error}", Exit.MISSING) from error
            with repo:
                yield repo
    except sqlite3.Error as error:
        reason = f"DVC's databases (in core.site_cache_dir, or /var/tmp/dvc): {brief(error)}; is that disk full?"
        raise UserError(f"{root}: {reason}", Exit.MISSING) from error
