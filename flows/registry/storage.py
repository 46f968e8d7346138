"""Get the files of a version from DVC's cache, or from its remote if they are not in the cache.

DVC stores a folder as a listing, which is an object whose digest ends in `.dir`, and the objects that it lists.  The
digests come from dvc.lock at the version's commit.  Cache and remote are those configured now, since the ones
configured in an old commit may be gone.
"""

import errno
import hashlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from dvc.config import NoRemoteError
from dvc.exceptions import DvcException
from dvc.logger import set_loggers_level
from dvc.repo import Repo
from pydantic import ConfigDict, FailFast, RootModel

from flows.core import layout
from flows.core.documents import Document, Md5, RelativePath, read
from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.core.files import file_sha256, naming, open_regular, parse_json, read_bounded, scratch_folder
from flows.images.store import data_sha256
from flows.registry.lock_file import model_path, read_lock
from flows.registry.versions import Version

OF_THE_CACHE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""The errors of pulling a file that come from the file system of the cache, since a remote is only read."""


class DatabaseError(UserError):
    """DVC cannot write its databases (exit 5), so nothing is known about the files."""


class Listed(Document):
    """An entry of a folder's listing."""

    relpath: RelativePath
    md5: Md5


class Listing(RootModel[list[Listed]]):
    """The entries of a folder's listing."""

    model_config = ConfigDict(frozen=True, strict=True)
    root: Annotated[list[Listed], FailFast()]


class Stored(NamedTuple):
    """A file in DVC's cache: its place in the output ('' for an output that is a file), the cache's file, its md5."""

    place: str
    cached: Path
    md5: str


def fetch(root: Path, version: Version) -> Path:
    """Fetch the version's model; return its folder.  Raises UserError (exit 5); see `fetch_folder`."""
    expected = stated(version, "model_sha256")
    folder = fetch_folder(root, version, model_path(root, version))
    config = folder / "config.json"
    if not config.is_file() or file_sha256(config) != expected:
        raise UserError(f"{folder} is not the model of {version.name}; delete it to fetch it again", Exit.MISSING)
    if not has_its_weights(folder):
        raise UserError(f"{folder}: its weights are damaged or missing; delete it to fetch it again", Exit.MISSING)
    return folder


def fetch_folder(root: Path, version: Version, path: str) -> Path:
    """Fetch a folder among the version's outputs into `.vdm/models/<md5>`; return that folder.

    Raises UserError (exit 5), without leaving a partial folder, when files are damaged or neither in the cache nor in
    the remote.
    """
    digest = read_lock(root, version).outputs.get(path)
    if digest is None or not digest.endswith(".dir"):
        raise UserError(f"{version.name}: its dvc.lock has no folder {path}", Exit.MISSING)
    folder = root / layout.FETCHED / digest.removesuffix(".dir")
    if not folder.is_dir():
        copy(root, version, path, digest, folder)
    return folder


def fetch_images(root: Path, version: Version) -> Path:
    """Return the folder with the version's images: the working tree's if it has them, else they are fetched.

    Raises UserError (exit 5).
    """
    expected = stated(version, "data_sha256")
    with suppress(UserError):
        if data_sha256(root / layout.IMAGES) == expected:
            return root / layout.IMAGES
    folder = fetch_folder(root, version, str(layout.IMAGES))
    with suppress(UserError):
        if data_sha256(folder) == expected:
            return folder
    raise UserError(f"{folder} is damaged; delete it to fetch it again", Exit.MISSING)


def stated(version: Version, key: str) -> str:
    """Return a digest that the version's metrics state.  Raises UserError (exit 5) if they do not, or are damaged."""
    digest: str | None = getattr(version.metrics, key)
    if digest is None:
        reason = version.problem or f"{layout.METRICS} at its commit does not state {key}"
        raise UserError(f"{version.name}: {reason}", Exit.MISSING)
    return digest


def copy(root: Path, version: Version, path: str, digest: str, folder: Path) -> None:
    """Copy an output's files from the cache to `folder`, all or nothing.  Raises UserError (exit 5)."""
    with dvc_repository(root) as repo:
        stored = obtain(repo, {path: digest}, f"{version.name}: ")[path]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent) as scratch, naming(folder, scratch / "whole"):
        whole = scratch / "whole"
        whole.mkdir()
        for file in stored:
            target = whole / file.place
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_regular(file.cached) as source, target.open("wb") as copied:
                shutil.copyfileobj(source, copied)
            check(target, file, f"{version.name}: {path}: ")
        try:
            whole.rename(folder)
        except OSError:
            # Another process may have fetched it meanwhile.
            if not folder.is_dir():
                raise


def has_its_weights(folder: Path) -> bool:
    """Whether a model's weights have the digest that its config.json states, without importing torch."""
    try:
        expected = parse_json(read_bounded(folder / "config.json"))["weights_sha256"]
        return file_sha256(folder / "weights.safetensors") == str(expected)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def require_cached(repo: Any, names: dict[str, str], subject: str) -> None:
    """Pull the files and listings (name -> digest) that the cache lacks.  Raises UserError (exit 5) for a lost one."""
    place = cached_at(repo)
    pull(repo, {digest for digest in names.values() if not place(digest).is_file()}, subject)
    for name, digest in names.items():
        if not place(digest).is_file():
            # Some kinds of remote report a missing file when they do not answer at all.
            remote = repo.config["core"].get("remote")
            reason = f"is not in the cache, and the remote `{remote}` does not provide it"
            raise UserError(f"{subject}{name} {reason}", Exit.MISSING)


def obtain(repo: Any, outputs: dict[str, str], subject: str = "") -> dict[str, list[Stored]]:
    """Return the cached files of every output (path -> md5), after pulling the missing ones from the remote.

    Raises UserError (exit 5) naming a file that neither the cache nor the remote has.  The files are not read here;
    `check` compares them with their digests.
    """
    # Folders' listings are checked before the files that they name are pulled.
    require_cached(repo, outputs, subject)
    place = cached_at(repo)
    found = {path: list(files(digest, place)) for path, digest in outputs.items()}
    # If the listing is cached, DVC assumes that the whole folder is.  So the files are pulled by name.
    every = {f"{path}/{file.place}".rstrip("/"): file.md5 for path, stored in found.items() for file in stored}
    require_cached(repo, every, subject)
    return found


def files(digest: str, place: Callable[[str], Path]) -> Iterable[Stored]:
    """Yield the files of an output; the listing of a folder must be in the cache.  Raises UserError (exit 5)."""
    if not digest.endswith(".dir"):
        yield Stored("", place(digest), digest)
        return
    listing = place(digest)
    check(listing, Stored("the listing", listing, digest.removesuffix(".dir")), "")
    listed = read(Listing, listing).root
    for entry in listed:
        yield Stored(entry.relpath, place(entry.md5), entry.md5)


def check(path: Path, file: Stored, subject: str) -> None:
    """Raise UserError (exit 5) unless `path`, a cached file or a copy of it, has the md5 of `file`."""
    with open_regular(path) as content:
        if hashlib.file_digest(content, "md5").hexdigest() != file.md5:
            name = f"{subject}{file.place or 'the file'}"
            raise UserError(f"{name} is damaged in the cache; delete {file.cached} to fetch it again", Exit.MISSING)


def is_sound(file: Path, digest: str) -> bool:
    """Whether a cached file has its md5."""
    with suppress(UserError, OSError):
        check(file, Stored("", file, digest.removesuffix(".dir")), "")
        return True
    return False


def pull(repo: Any, digests: set[str], subject: str) -> None:
    """Pull into the cache what the default remote has of these files and listings.  A listing comes without its files.

    Raises UserError (exit 5) without a remote or when the cache cannot be written, NetworkError (exit 5) when the
    remote does not answer.
    """
    if not digests:
        return
    try:
        with quiet():
            remote = repo.cloud.get_remote_odb(command="pull")
            given = list(remote.oids_exist(sorted(digests)))
            repo.cache.local.add([remote.oid_to_path(name) for name in given], remote.fs, given)
    except FileNotFoundError:
        return  # `require_cached` then names the missing file
    except NoRemoteError as error:
        advice = "`dvc remote add --default NAME URL` names the one that has it"
        raise UserError(f"{subject}not in the cache, and DVC has no default remote; {advice}", Exit.MISSING) from error
    except Exception as error:  # each kind of remote raises its own errors
        reason = f"{subject}not in the cache, and cannot be pulled into it: {brief(error)}"
        if isinstance(error, OSError) and is_of_the_cache(error, Path(repo.cache.local_cache_dir)):
            raise UserError(reason, Exit.MISSING) from error  # another attempt would fail, too
        raise NetworkError(reason) from error


def is_of_the_cache(error: OSError, cache: Path) -> bool:
    """Whether an error of pulling a file comes from the folder of the cache, and not from the remote."""
    named = error.filename2 or error.filename
    forbidden = isinstance(error, PermissionError) and named and Path(os.fsdecode(named)).is_relative_to(cache)
    return error.errno in OF_THE_CACHE or bool(forbidden)


def quiet() -> Any:
    """Silence DVC's loggers in a `with` block: the caller reports in one line what DVC would warn about."""
    return set_loggers_level(logging.CRITICAL + 1)


def require_remote(root: Path) -> None:
    """Raise UserError (exit 2) unless DVC has a default remote to which `dvc push` can write."""
    with dvc_repository(root) as repo:
        try:
            repo.cloud.get_remote_odb(command="push")  # refuses also a remote that keeps versions of files itself
        except NoRemoteError as error:
            advice = "`dvc remote add --default NAME URL`"
            raise UserError(f"{root.absolute()}: no DVC remote; {advice}", Exit.USAGE) from error
        except Exception as error:  # each kind of remote raises its own errors
            reason = f"DVC's default remote cannot be used: {brief(error)}"
            raise UserError(f"{root.absolute()}: {reason}", Exit.USAGE) from error


@contextmanager
def dvc_repository(root: Path) -> Iterator[Any]:
    """Open DVC's repository at `root`.  Raises UserError (exit 5): DatabaseError if DVC cannot write its databases."""
    try:
        str(root.absolute()).encode()
    except UnicodeEncodeError as error:
        advice = "its path is not UTF-8, and DVC cannot work in such a folder; rename it"
        raise UserError(f"{root.absolute()}: {advice}", Exit.MISSING) from error
    try:
        try:
            repo = Repo(str(root))
        except DvcException as error:
            raise UserError(f"{root}: {error}", Exit.MISSING) from error
        with repo:
            yield repo
    except sqlite3.Error as error:
        place = "in /var/tmp/dvc, or where DVC's setting core.site_cache_dir says"
        reason = f"DVC's databases ({place}): {brief(error)}; is that disk full?"
        raise DatabaseError(f"{root}: {reason}", Exit.MISSING) from error


def cached_at(repo: Any) -> Callable[[str], Path]:
    """Return the function from a digest to the path of that object in the cache."""
    return lambda digest: Path(repo.cache.local.oid_to_path(digest))
