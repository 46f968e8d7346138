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
OF_MACOS = ("__MACOSX", "._")
"""How the names of what macOS writes beside every file begin."""

log = logging.getLogger(__name__)


def find_images(source: Path) -> tuple[Path, list[str]]:
    """Return a folder and the names of the files of images below it, sorted; for a single file, where it lies.

    Hidden files and folders are left out, and links to folders are not followed.  Raises UserError: exit 5 for a folder
    that is missing, unreadable or without images, 4 for links out of the folder and for an .npz file.
    """
    if source.suffix == ".npz":
        raise UserError(f"{source}: .npz files are not read; save the array of images as .npy", Exit.INVALID_DATA)
    try:
        if source.is_file():
            return source.parent, [source.name]
        if not source.is_dir():
            reason = "is not a folder of images" if os.path.lexists(source) else "does not exist"
            raise UserError(f"{source} {reason}", Exit.MISSING)
        return source, scan(source)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable", Exit.MISSING) from error


def scan(root: Path) -> list[str]:
    """Return the names of the images below a folder.  Raises OSError for a folder that cannot be read."""
    images: list[str] = []
    others: list[str] = []
    outside: list[str] = []
    hidden: list[str] = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        place = os.path.relpath(folder, root)
        for entry, is_folder in [*((entry, True) for entry in folders), *((entry, False) for entry in files)]:
            name = entry if place == "." else f"{place}/{entry}"
            is_image = not is_folder and entry.lower().endswith(ENDINGS)
            if entry.startswith(OF_MACOS):
                continue
            if entry.startswith("."):
                hidden += [name] if is_folder or is_image else []
            elif os.path.islink(os.path.join(folder, entry)) and not contains(root, Path(folder, entry)):
                outside.append(name)
            elif not is_folder:
                (images if is_image else others).append(name)
        folders[:] = [entry for entry in folders if not entry.startswith((".", *OF_MACOS))]
    if outside:
        raise UserError(f"{root}: links lead out of the folder: {some(outside)}; copy the files", Exit.INVALID_DATA)
    if not images:
        raise UserError(f"{root}: holds no {', '.join(ENDINGS)} files", Exit.MISSING)
    if hidden:
        log.warning("%s: hidden, therefore left out: %s", visible(root), some(hidden))
    if others:
        log.warning("%s: %d files are not images, such as %s", visible(root), len(others), some(others))
    return sorted(images)


def refuse(error: OSError) -> NoReturn:
    """Raise the error, which `os.walk` would ignore."""
    raise error


def some(names: list[str]) -> str:
    """Return the first three names, in alphabetical order."""
    return listed(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def listed(names: list[str]) -> str:
    """Return names in quotes, with control characters escaped."""
    return visible(", ".join(json.dumps(name, ensure_ascii=False) for name in names))
