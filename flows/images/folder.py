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
from flows.images.picture_files import BadImageError, Images, levels, read_images
from flows.images.scanning import find_images, listed
from flows.images.splitting import Batch, Source, divide, division, parts_of
from flows.images.store import chunks

if TYPE_CHECKING:
    from flows.core.params import Data

ROWS = 1000
MOST_NAMED = 10
REMEDY = "set data.resize for one size, data.grayscale for one channel, or convert the files"

log = logging.getLogger(__name__)


class ImageFiles:
    """The files of images in a folder, or one file, and what a pass over them finds."""

    def __init__(self, source: Path, *, grayscale: bool = False, resized: bool = False, remedy: str = REMEDY) -> None:
        """Find the files.  Raises what `find_images` raises.

        `grayscale` and `resized` say which differences between the images their transforms remove; `remedy` says what
        to do about others.
        """
        self.source = source
        self.folder, self.names = find_images(source)
        self.grayscale, self.resized, self.remedy = grayscale, resized, remedy
        self.num_levels = 0
        """K of the files that were read: their levels are 0..K-1."""
        self.example: tuple[str, tuple[int, ...]] | None = None
        self.formats: Counter[str] = Counter()
        self.num_turned = 0

    def counts(self) -> list[int]:
        """Return the number of images in each file, without reading pixels.  Raises what `read` raises."""
        arrays = {name for name in self.names if name.lower().endswith(".npy")}
        try:
            return [len(read_images(self.folder / name).pixels) if name in arrays else 1 for name in self.names]
        except BadImageError:
            for _ in self.read():  # it names this file with all others
                pass
            raise

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the images of every file, (n,C,H,W) uint8 or uint16 and at most ROWS at a time, with its name.

        Raises UserError after the last file, which names the files that could not be used: exit 5 if one is damaged,
        else 4.  Raises UserError (exit 4) at once for images that are not like those of the first file.
        """
        bad: dict[str, BadImageError] = {}
        for name in tqdm(self.names, "reading images", disable=None, leave=False):
            try:
                images = read_images(self.folder / name)
                self.require_alike(name, images)
                for _, pixels in chunks(images.pixels, ROWS):
                    yield name, levels(pixels, images.num_bits)
            except BadImageError as error:
                bad[name] = error
                continue
            self.formats[images.format] += 1
            self.num_turned += images.turned
        if bad:
            named = "; ".join(f"{listed([name])}: {bad[name]}" for name in list(bad)[:MOST_NAMED])
            more = f"; and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
            reason = f"{len(bad)} of {len(self.names)} files cannot be used: {named}{more}"
            damaged = any(error.code is Exit.MISSING for error in bad.values())
            raise UserError(f"{self.source}: {reason}", Exit.MISSING if damaged else Exit.INVALID_DATA)

    def require_alike(self, name: str, images: Images) -> None:
        """Raise UserError (exit 4) unless the transforms make the images of a file like those of the first one."""
        _, channels, height, width = images.pixels.shape
        left = 1 if self.grayscale and channels == 3 else channels, *((0, 0) if self.resized else (height, width))
        shown = f"{listed([name])} is {channels}x{height}x{width} of {images.num_bits} bits"
        self.num_levels = self.num_levels or 2**images.num_bits
        self.example = self.example or (shown, left)
        first, expected = self.example
        if (left, 2**images.num_bits) != (expected, self.num_levels):
            raise UserError(f"{self.source}: images of 2 kinds: {first}, {shown}; {self.remedy}", Exit.INVALID_DATA)


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
