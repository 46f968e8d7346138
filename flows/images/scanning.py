"""Find the images below a folder, which may also hold other files, hidden ones and links."""

import json
import logging
import os
from pathlib import Path
from typing import NoReturn

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.folders import contains

ENDINGS = (".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")
HIDDEN = (".", "__MACOSX")
"""How the names begin that are left out; macOS writes `._*` and `__MACOSX` beside the files that it packs."""

log = logging.getLogger(__name__)


def find_images(source: Path) -> tuple[Path, list[str]]:
    """Return a folder and the names of the images below it, sorted; for a single file, its folder and its name.

    Hidden files and folders are left out, and links to folders are not followed.  Raises UserError: exit 5 for a folder
    that is missing or without images, 4 for a link out of the folder and for an .npz file.  Raises OSError for a folder
    that cannot be read.
    """
    if source.suffix == ".npz":
        raise UserError(f"{source}: .npz files are not read; save the array of images as .npy", Exit.INVALID_DATA)
    if source.is_file():
        return source.parent, [source.name]
    if not source.is_dir():
        raise UserError(f"{source} does not exist, or is not a folder of images", Exit.MISSING)
    names = scan(source)
    images = [name for name in names if name.lower().endswith(ENDINGS)]
    if not images:
        raise UserError(f"{source}: holds no {', '.join(ENDINGS)} files", Exit.MISSING)
    if len(images) < len(names):
        others = sorted(set(names).difference(images))
        log.warning("%s: %d files are not images, such as %s", visible(source), len(others), listed(others[:3]))
    return source, sorted(images)


def scan(root: Path) -> list[str]:
    """Return the names of all files below a folder.  Raises OSError for a folder that cannot be read."""
    names = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        files = [name for name in files if not name.startswith(HIDDEN)]
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not contains(root, path):
                raise UserError(f"{path}: a link that leads out of {root}; copy the files", Exit.INVALID_DATA)
        place = os.path.relpath(folder, root)
        names += files if place == "." else [f"{place}/{name}" for name in files]
    return names


def refuse(error: OSError) -> NoReturn:
    """Raise the error, which `os.walk` would ignore."""
    raise error


def listed(names: list[str]) -> str:
    """Return names in quotes, with control characters escaped."""
    return visible(", ".join(json.dumps(name, ensure_ascii=False) for name in names))
