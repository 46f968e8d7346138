"""The apps that run on this machine: each holds a lock whose file says where it answers, and for which folder."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.core.errors import Exit, UserError
from flows.process.locks import Holder, folder_of_devices, list_held_locks, lock_file


@contextmanager
def announce(url: str, folder: Path) -> Iterator[None]:
    """Hold the lock of an app at the URL while the block runs.  Raises UserError (exit 6) if one has that URL."""
    place = folder_of_apps()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(url.encode()).hexdigest()[:32]
    holder = Holder(process=os.getpid(), folder=str(folder.resolve()), url=url)
    with lock_file(place / f"{name}.lock", holder) as other:
        if other is not None:
            raise UserError(f"{other} is the app at {url} already; stop it first", Exit.BUSY)
        yield


def apps_of(folder: Path) -> list[tuple[int, str]]:
    """Return the process and the URL of each app that runs for the folder."""
    holders, place = list_held_locks(folder_of_apps()).values(), str(folder.resolve())
    return sorted((one.process, one.url) for one in holders if one.process and one.url and one.folder == place)


def folder_of_apps() -> Path:
    """Return the folder with the locks of this user's apps."""
    return folder_of_devices() / "apps"
