"""Find the images below a folder, which may also hold links, loops, hidden files and pipes."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.folders import contains

ENDINGS = (".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """The files of images in a folder, or one file of images."""

    source: Path
    """The folder or the file."""
    root: Path
    names: list[str]
    """Sorted, relative to the root."""
    empty: list[str]
    """Empty folders."""


class Scan(NamedTuple):
    """The names of all entries below a folder, by what is done with them."""

    images: list[str]
    others: list[str]
    """Files of other suffixes, and links to folders, which are not followed."""
    outside: list[str]
    """Links that lead out of the folder."""
    hidden: list[str]
    """Folders and images whose names begin with a dot, except those that macOS writes beside every file."""
    empty: list[str]


def find_images(source: Path) -> Found:
    """Return the files of images in a folder, or `source` itself if it is a file.

    Hidden files and folders are left out.  Raises UserError: exit 5 for a folder without images and for unreadable
    folders, 4 for links out of the folder and for an .npz file.
    """
    try:
        if source.suffix == ".npz":
            raise UserError(f"{source}: .npz files are not read; save the array of images as .npy", Exit.INVALID_DATA)
        if source.is_file():
            return Found(source, source.parent, [source.name], [])
        if not source.is_dir():
            raise UserError(f"{source} {why_unusable(source)}", Exit.MISSING)
        found = scan(source)
    except OSError as error:
        hint = "; make it readable" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise UserError(f"{error.filename}: {error.strerror}{hint}", Exit.MISSING) from error
    shown = visible(str(source))
    if found.outside:
        more = ", ..." if len(found.outside) > 10 else ""
        some = listed(sorted(found.outside)[:10])
        raise UserError(f"{source}: links lead out of the folder: {some}{more}; copy the files", Exit.INVALID_DATA)
    if found.hidden:
        log.warning("%s: hidden, therefore left out: %s", shown, listed(sorted(found.hidden)[:3]))
    if not found.images:
        raise UserError(f"{source}: holds no {', '.join(ENDINGS)} files", Exit.MISSING)
    if found.others:
        some = listed(sorted(found.others)[:3])
        log.warning("%s: %d files are not images, such as %s", shown, len(found.others), some)
    return Found(source, source, sorted(found.images), found.empty)


def why_unusable(source: Path) -> str:
    """Return why a path names no images.  Raises OSError, which `is_dir` hides since Python 3.14."""
    try:
        source.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a path that no system takes
        return "does not exist"
    return "is not a folder of images"


def scan(root: Path) -> Scan:
    """Return what lies below a folder.  Raises OSError for a folder that cannot be read."""
    found = Scan([], [], [], [], [])
    pending = [""]
    while pending:
        folder = pending.pop()
        nothing = True
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = folder + entry.name
                if entry.name.startswith(("._", "__MACOSX")):
                    continue
                if entry.name.startswith("."):
                    if is_image(name) or entry.is_dir(follow_symlinks=False):
                        found.hidden.append(name)
                    continue
                nothing = False
                if entry.is_symlink() and not contains(root, root / name):
                    found.outside.append(name)
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                else:
                    (found.images if is_image(name) else found.others).append(name)
        if nothing:
            found.empty.append(folder.removesuffix("/"))
    return found


def is_image(name: str) -> bool:
    """Whether a name has the suffix of an image."""
    return name.lower().endswith(ENDINGS)


def listed(names: list[str]) -> str:
    """Return names in quotes, with control characters escaped."""
    return visible(", ".join(json.dumps(name, ensure_ascii=False) for name in names))
