"""Outputs of a commit: from git, from DVC's cache, or from DVC's remote, each compared with its md5 in dvc.lock."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from dvc.api import DVCFileSystem
from dvc_objects.errors import ObjectFormatError

from flows.core.errors import Exit, UserError, brief, remote_error
from flows.core.files import inside


class DamagedVersionError(UserError):
    """A digest of a version's files differs from the one that was recorded (exit 5)."""

    def __init__(self, message: str, code: Exit = Exit.MISSING) -> None:
        super().__init__(message, code)


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


def read_content(files: DVCFileSystem, path: Path) -> bytes | None:
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
        raise remote_error(f"{path} cannot be read now", error) from error
