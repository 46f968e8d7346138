"""Write folders that appear whole or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.core.errors import Exit, UserError
from flows.core.files import beside, naming


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder that replaces `path` if the block raises nothing; else the old folder stays.

    Raises UserError (exit 2) for a path such as ".", which cannot be replaced, and OSError that names `path`.
    """
    if path.name in ("", ".."):
        raise UserError(f"{path} cannot be replaced; name another folder", Exit.USAGE)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = beside(path), beside(path)
    with naming(path, partial):
        try:
            partial.mkdir()
            yield partial
            with suppress(FileNotFoundError):
                path.rename(previous)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    remove(previous)


def contains(folder: Path, path: Path) -> bool:
    """Whether `path` is `folder` or lies in it, with links resolved: replacing `folder` would remove `path`."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def require_replaceable(path: Path, *inputs: Path, force: bool, names: str | None = None) -> None:
    """Raise UserError (exit 2) if an output exists, unless `force` replaces it.

    `names` is the pattern of the names of files in a folder; without it, the output is a file.  Even with `force`, a
    folder is replaced only if it holds nothing else, and nothing that is, holds or lies in one of the inputs.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise UserError(f"{path} exists; name another output, or replace it with --force", Exit.USAGE)
    if names is None and path.is_dir():
        raise UserError(f"{path} is a folder; name a file", Exit.USAGE)
    if names is not None and not (path.is_dir() and has_only(path, names)):
        raise UserError(f"{path} is no folder of files that this command writes; name another", Exit.USAGE)
    for each in inputs:
        if contains(path, each) or contains(each, path):
            raise UserError(f"{path} would replace the input {each}; name another output", Exit.USAGE)


def has_only(folder: Path, names: str) -> bool:
    """Whether everything in the folder is a file with a name that matches the pattern `names`."""
    return all(re.fullmatch(names, path.name) and path.is_file() for path in folder.iterdir())


def remove(folder: Path) -> None:
    """Remove a folder with its content, or a link to one, if it exists.  Raises OSError."""
    if folder.is_symlink():
        folder.unlink()
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
