"""Read a folder of images, with or without train and test parts, with or without a folder per class."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.images.picture_files import BadImageError, Head, Kind, levels, read_images
from flows.images.scanning import find_images, listed
from flows.images.splitting import Batch, Source, divide, division, parts_of
from flows.images.store import chunks

if TYPE_CHECKING:
    from flows.core.params import Data

ROWS = 1000
MOST_NAMED = 10

log = logging.getLogger(__name__)


class ImageFiles:
    """The files of images in a folder, or one file, and what a pass over them finds.

    `grayscale` and `resized` say which differences between the images their transforms remove.  `remedy` says what to
    do about images that differ.
    """

    def __init__(
        self,
        source: Path,
        *,
        grayscale: bool = False,
        resized: bool = False,
        remedy: str = "set data.resize for one size, data.grayscale for one channel, or convert the files",
    ) -> None:
        """Find the files.  Raises what `find_images` raises."""
        self.source = source
        self.folder, self.names = find_images(source)
        self.grayscale, self.resized, self.remedy = grayscale, resized, remedy
        self.example: tuple[str, Kind] | None = None
        """The name and the kind of the first usable file."""
        self.formats: Counter[str] = Counter()
        self.num_turned = 0

    @property
    def num_levels(self) -> int:
        """K of the files: their levels are 0..K-1."""
        return 2 ** self.example[1].num_bits if self.example else 256

    def counts(self) -> list[int]:
        """Return the number of images in each file, without reading pixels.  Raises what `read` raises."""
        try:
            return [len(read_images(self.folder / name)[1]) if name.endswith(".npy") else 1 for name in self.names]
        except BadImageError:
            for _ in self.read():  # it names this file with all others
                pass
            raise

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the images of every file, (n,C,H,W) uint8 or uint16 and at most ROWS at a time, with its name.

        Raises UserError after the last file, which names the files that could not be used: exit 5 if one is damaged,
        else 4.
        """
        bad: dict[str, BadImageError] = {}
        for name in tqdm(self.names, "reading images", disable=None, leave=False):
            try:
                head, images = read_images(self.folder / name, lambda head, name=name: self.check(name, head))
                for _, rows in chunks(images, ROWS):
                    yield name, levels(rows, head.kind.num_bits)
            except BadImageError as error:
                bad[name] = error
                continue
            self.formats[head.format] += 1
            self.num_turned += head.turned
        if bad:
            named = "; ".join(f"{listed([name])}: {bad[name]}" for name in list(bad)[:MOST_NAMED])
            more = f"; and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
            damaged = any(error.code is Exit.MISSING for error in bad.values())
            raise UserError(
                f"{self.source}: {len(bad)} of {len(self.names)} files cannot be used: {named}{more}",
                Exit.MISSING if damaged else Exit.INVALID_DATA,
            )

    def check(self, name: str, head: Head) -> None:
        """Raise BadImageError if the transforms do not make the images of a file like those of the first one."""
        if self.example is None:
            self.example = name, head.kind
        first, kind = self.example
        if self.transformed(head.kind) != self.transformed(kind):
            raise BadImageError(f"{head.kind}, but {listed([first])} is {kind}; {self.remedy}")

    def transformed(self, kind: Kind) -> Kind:
        """Return the kind after the transforms, with the size (0, 0) if they make all sizes equal."""
        channels, *size = kind.shape
        height, width = (0, 0) if self.resized else size
        return Kind((1 if self.grayscale and channels == 3 else channels, height, width), kind.num_bits)


def read_folder(source: Path, data: "Data") -> Source:
    """Return the images in `source`, a folder or one .npy file, in the order of their names.

    Raises what `find_images` and `divide` raise, and what `ImageFiles.read` raises, also when the batches are read.
    """
    files = ImageFiles(source, grayscale=data.grayscale, resized=data.resize is not None)
    splits = divide(source, files.names, files.counts(), data)
    labels = class_labels(source, files.names)

    def batches() -> Iterator[Batch]:
        for name, images in files.read():
            yield Batch(images, files.num_levels, np.full(len(images), labels[name]) if labels else None, name)

    return Source(batches(), splits, lambda: origin_of(files, data))


def class_labels(source: Path, names: list[str]) -> dict[str, int] | None:
    """Return the class of each file, the number of its folder below the split; None unless every file lies in one."""
    first = 1 if parts_of(names) else 0
    folders = {name: "/".join(name.split("/")[first:-1]) for name in names}
    classes = sorted(set(folders.values()))
    if "" not in classes:
        numbers = {folder: number for number, folder in enumerate(classes)}
        return {name: numbers[folder] for name, folder in folders.items()}
    if len(classes) > 1:
        stray = [name for name, folder in folders.items() if not folder]
        text = "%s: images have no labels, since %d files are in no class folder, such as %s"
        log.warning(text, visible(source), len(stray), listed(stray[:3]))
    return None


def origin_of(files: ImageFiles, data: "Data") -> dict[str, Any]:
    """Return what `dataset.json` says of files that were read.  Warn of lossy ones and of pictures that were turned."""
    shown, formats = visible(files.source), sorted(files.formats.items())
    for name, count in formats:
        if name.startswith(("JPEG", "lossy")):
            log.warning("%s: %d %s files: their bits/dim are those of decoded %s", shown, count, name, name)
    if files.num_turned:
        log.warning("%s: %d images turned as their EXIF tags say", shown, files.num_turned)
    parts = parts_of(files.names)
    given = f"by its folders: {', '.join(f'{part} for {split}' for part, split in parts.items())}" if parts else None
    return {
        "title": visible(files.source.resolve().name) or "images",
        "homepage": "a folder",
        "licence": "not stated",
        "formats": ", ".join(f"{count} {name}" for name, count in formats),
        "split": given if "validation" in parts.values() else division(data, given),
        "num_levels": files.num_levels,
    }
