"""The files of pictures in a source: a folder, a file, or a container, which is unpacked meanwhile."""

import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

from flows.core.errors import Exit, UserError
from flows.core.escaping import list_names, visible
from flows.core.files import contains, scratch_folder
from flows.images.unpacking import Container, list_containers, unpack

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")
CONVERTED_BY = {
    ".avif": "avifdec IN.avif OUT.png",
    ".dcm": "dcmj2pnm IN.dcm --write-16-bit-png OUT.png",
    ".fit": 'python -c \'import numpy, astropy.io.fits as f; numpy.save("OUT.npy", f.getdata("IN.fit"))\'',
    ".fits": 'python -c \'import numpy, astropy.io.fits as f; numpy.save("OUT.npy", f.getdata("IN.fits"))\'',
    ".heic": "heif-convert IN.heic OUT.png",
    ".heif": "heif-convert IN.heif OUT.png",
    ".jxl": "djxl IN.jxl OUT.png",
    ".svg": "rsvg-convert --width 64 IN.svg --output OUT.png",
    ".arrow": 'python -c \'import datasets as d; d.Dataset.from_file("IN.arrow").to_parquet("OUT.parquet")\'',
    "metadata.parquet": 'python -c \'import pandas as p; p.read_parquet("IN.parquet").to_csv("OUT.csv", index=False)\'',
    ".tar": "tar --extract --file IN.tar",
    ".tgz": "tar --extract --file IN.tgz",
    ".tar.gz": "tar --extract --file IN.tar.gz",
}
"""The command that makes files which are read of others, by their ending."""
LABEL_TABLES = ("labels.csv", "metadata.csv")
"""Files with the labels of the images in a folder; `flows.images.labels` reads them."""
HIDDEN = (".", "__MACOSX")
"""How the names begin that are left out; macOS writes `._*` and `__MACOSX` beside the files that it packs."""

log = logging.getLogger(__name__)


class PictureFiles(NamedTuple):
    """The files of a source that hold pictures, sorted."""

    source: Path
    """What the user named, which messages name."""
    folder: Path
    """Where the files are: in the source, beside it, or where it is unpacked."""
    names: list[str]
    is_single: bool = False
    """Whether the source is a file, and not a folder."""
    container: type[Container] | None = None
    """What kind of container these are, if they are to be unpacked."""

    @property
    def paths(self) -> list[Path]:
        """The path of each file."""
        return [self.folder / name for name in self.names]

    def shown(self, name: str) -> Path:
        """Return what messages call a file: its path, or its place in the source from which it was unpacked."""
        return self.source if self.is_single else self.source / name

    def only(self, name: str) -> "PictureFiles":
        """Return one of the files, as if it was the source."""
        return PictureFiles(self.shown(name), self.folder, [name], is_single=True)


def find_images(root: Path, source: Path | None = None) -> PictureFiles:
    """Return the images below a folder, or the containers if it has some; for a single file, it alone.

    Hidden files and folders are left out, and links to folders are not followed.  Messages name the `source` that was
    unpacked into the folder, if it was.  Raises UserError: exit 5 for a folder that is missing or without images, 4 for
    a link out of the folder, for images beside containers, and for an .npz file.  Raises OSError for a folder that
    cannot be read.
    """
    source, known = source or root, list_containers()

    def kind_of(name: str) -> type[Container] | None:
        return next((kind for kind in known if kind.takes(name)), None)

    if source.suffix == ".npz":
        raise UserError(f"{source}: .npz files are not read; save the array of images as .npy", Exit.INVALID_DATA)
    if root.is_file():
        container = kind_of(root.name)
        if not container and (told := others_in_words([root.name])):
            raise UserError(f"{source}: {told}", Exit.INVALID_DATA)
        return PictureFiles(source, root.parent, [root.name], is_single=True, container=container)
    if not root.is_dir():
        raise UserError(f"{source} does not exist, or is not a folder of images", Exit.MISSING)
    found: dict[type[Container] | None, list[str]] = {None: []}
    others: list[str] = []
    for name in list_files(root, source):
        kind = kind_of(name)
        if name.lower().endswith(ENDINGS):
            found[None].append(name)
        elif kind and kind.in_folders:
            found.setdefault(kind, []).append(name)
        else:
            others.append(name)
    told = others_in_words(others)
    kinds = [kind for kind, names in found.items() if names]
    if not kinds:
        found_instead = f": {told}" if told else ""
        raise UserError(f"{source}: holds no {', '.join(ENDINGS)} files{found_instead}", Exit.MISSING)
    if len(kinds) > 1:
        what = [f"{len(found[kind]):,} {f'{kind.called} files' if kind else 'images'}" for kind in kinds]
        reason = f"holds {' and '.join(what)}, such as {list_names(found[kinds[-1]][:1])}"
        advice = "name the folder of the ones as the source, or move the others away"
        raise UserError(f"{source}: {reason}; {advice}", Exit.INVALID_DATA)
    if told:
        log.warning("%s: %s", visible(source), told)
    unknown = [name for name in others if not name.lower().endswith((*CONVERTED_BY,))]
    if unknown:
        named = list_names(sorted(unknown)[:3])
        log.warning("%s: %d files are not images, such as %s", visible(source), len(unknown), named)
    return PictureFiles(source, root, sorted(found[kinds[0]]), container=kinds[0])


def list_files(root: Path, source: Path) -> Iterator[str]:
    """Yield the names of the files below a folder but hidden ones and tables of labels.

    Raises UserError (exit 4), which names the source, for a link out of the folder.
    """
    for folder, folders, files in os.walk(root, onerror=give_up):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        files = [name for name in files if not name.startswith(HIDDEN)]
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not contains(root, path):
                copy = f"`cp -rL {shlex.quote(str(source))} COPY` makes a folder without links"
                raise UserError(f"{path}: a link that leads out of {source}; {copy}", Exit.INVALID_DATA)
        place = os.path.relpath(folder, root)
        for name in files:
            if name not in LABEL_TABLES:
                yield name if place == "." else f"{place}/{name}"


def others_in_words(names: list[str]) -> str:
    """Return which of the files hold pictures that are not read, and the commands that convert them; "" for none."""
    counts = Counter(end for name in names for end in CONVERTED_BY if name.lower().endswith(end))
    return "; ".join(
        f"{count:,} file{' is' if count == 1 else 's are'} {end}, not read; convert by `{CONVERTED_BY[end]}`"
        for end, count in counts.most_common()
    )


def give_up(error: OSError) -> NoReturn:
    """Raise the error, which `os.walk` would ignore."""
    raise error


@contextmanager
def open_source(source: Path) -> Iterator[PictureFiles]:
    """Yield the files of pictures in a source.  What containers hold is unpacked while the block runs.

    Raises what `find_images` and `flows.images.unpacking.unpack` raise.
    """
    found = find_images(source)
    if not found.container:
        yield found
        return
    with scratch_folder() as unpacked:
        inside = find_images(unpack(found.container, found.paths, source, unpacked), source)
        if inside.container:
            reason = f"holds {inside.container.called} files, such as {list_names(inside.names[:1])}"
            raise UserError(f"{source}: {reason}, which are read of a folder; unpack it", Exit.INVALID_DATA)
        yield inside
