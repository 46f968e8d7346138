"""Which files below a folder are images, whatever else lies there: links, loops, hidden files, pipes."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.images.picture_files import SUFFIXES

ENDINGS = tuple(sorted(SUFFIXES))

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """The images of a folder, or one file of images."""

    root: Path
    names: list[str]
    """Files of images, relative to the root, sorted."""
    empty: list[str]
    """Folders that hold nothing."""


class Scan(NamedTuple):
    """The names of all that lies below a folder, by what is done with it."""

    images: list[str]
    others: list[str]
    """What has another suffix, and links to folders, which are not entered."""
    outside: list[str]
    """Links that lead out of the folder."""
    hidden: list[str]
    """Folders and images whose names begin with a dot; not what a Mac writes beside every file."""
    empty: list[str]


def find_images(source: Path) -> Found:
    """Return the files of images in a folder, or the file that `source` is.

    Hidden files and folders are left out.  Raises UserError: exit 5 for a folder without images and for what cannot be
    read, 4 for links out of the folder.
    """
    try:
        if source.is_file():
            return Found(source.parent, [source.name], [])
        if not source.is_dir():
            raise UserError(f"{source} is not a folder of images", Exit.MISSING)
        found = scan(source)
    except OSError as error:
        hint = "; make it readable" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise UserError(f"{error.filename}: {error.strerror}{hint}", Exit.MISSING) from error
    shown = visible(str(source))
    if found.outside:
        some = listed(sorted(found.outside)[:10]) + ", ..." * (len(found.outside) > 10)
        raise UserError(f"{source}: links lead out of the folder: {some}; copy the files", Exit.INVALID_DATA)
    if found.hidden:
        log.warning("%s: left out, since hidden: %s", shown, listed(sorted(found.hidden)[:3]))
    if not found.images:
        raise UserError(f"{source}: holds no {', '.join(ENDINGS)} files", Exit.MISSING)
    if found.others:
        some = listed(sorted(found.others)[:3])
        log.warning("%s: %d files are no images, such as %s", shown, len(found.others), some)
    return Found(source, sorted(found.images), found.empty)


def scan(root: Path) -> Scan:
    """Sort what lies below the folder.  Raises OSError for a folder that cannot be read."""
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
                if entry.is_symlink() and leads_out(root / name, root):
                    found.outside.append(name)
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                else:
                    (found.images if is_image(name) else found.others).append(name)
        if nothing:
            found.empty.append(folder.removesuffix("/"))
    return found


def is_image(name: str) -> bool:
    """Return whether a name is that of an image."""
    return name.lower().endswith(ENDINGS)


def leads_out(link: Path, root: Path) -> bool:
    """Return whether a link leads out of a folder; one that goes round in a circle leads nowhere."""
    try:
        return not link.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def listed(names: list[str]) -> str:
    """Return names in quotes; what a terminal would act on is escaped."""
    return visible(", ".join(json.dumps(name, ensure_ascii=False) for name in names))
