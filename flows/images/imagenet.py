"""ImageNet at a low resolution, streamed from the publisher's archives without unpacking them."""

import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.core.files import file_sha256
from flows.images.array_files import ROWS, read_layout, read_rows
from flows.images.fetching import fetch_file
from flows.images.publishers import Chunk, Splits, divided, entries, file_of

if TYPE_CHECKING:
    from flows.images.catalogue import DownsampledImageNet


def read_imagenet(
    published: "DownsampledImageNet", source: Path | None, downloads: Path, *, validation: np.ndarray
) -> Splits:
    """Return the splits, from the archives in `source`, or downloaded from the publisher if it is None.

    `validation` are the numbers of the published training images that make the validation split.  Raises UserError
    (exit 5) for an archive that is missing or differs from the published one.
    """
    if source is not None and not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder", Exit.MISSING)
    folder = source or downloads
    for name, expected in (published.train | published.test).items():
        check = partial(check_archive, folder / name, expected)
        if source is None:
            fetch_file([published.base_address + name], downloads / name, take=check)
        else:
            check()
    train = [folder / name for name in published.train]
    test = [folder / name for name in published.test]
    return divided(lambda: read_archives(published, train), validation) | {"test": read_archives(published, test)}


def check_archive(path: Path, expected: str) -> None:
    """Raise UserError (exit 5) unless the file has this sha256."""
    if not path.is_file():
        raise UserError(f"{path.parent}: holds no {path.name}; correct data.source", Exit.MISSING)
    if (actual := file_sha256(path)) != expected:
        reason = f"sha256 is {actual}, the published archive has {expected}; fetch the file again"
        raise UserError(f"{path}: {reason}", Exit.MISSING)


def read_archives(published: "DownsampledImageNet", paths: list[Path]) -> Iterator[Chunk]:
    """Yield the images of archives, one after the other.  Their digests are checked, so their content is known."""
    read = zipped_batches if published.layout == "npz" else tarred_images
    for path in paths:
        yield from read(path, published.size)


def zipped_batches(path: Path, size: int) -> Iterator[Chunk]:
    """Yield (n,3,H,W) uint8 images and labels from 0, from the npz files in a zip file: batch 10 after batch 9."""
    with zipfile.ZipFile(path) as outer:
        batches = [name for name in outer.namelist() if name.endswith(".npz")]
        batches.sort(key=lambda name: [int(digits) for digits in re.findall(r"\d+", Path(name).name)])
        for batch in batches:
            with outer.open(batch) as packed, zipfile.ZipFile(packed) as inner:
                with inner.open("labels.npy") as entry:
                    labels = np.lib.format.read_array(entry) - 1
                with inner.open("data.npy") as entry:
                    first = 0
                    for rows in read_rows(entry, read_layout(entry)):
                        yield Chunk(rows.reshape(-1, 3, size, size), labels[first : first + len(rows)])
                        first += len(rows)


def tarred_images(path: Path, size: int) -> Iterator[Chunk]:
    """Yield the PNG files in a tar file as (n,3,H,W) uint8 images, in the archive's order, without labels."""
    waiting: list[np.ndarray] = []
    with tarfile.open(path, mode="r:") as tar:
        for entry in entries(tar, path.stat().st_size):
            if not entry.isfile() or not entry.name.endswith(".png"):
                continue
            with Image.open(file_of(tar, entry), formats=["PNG"]) as image:
                waiting.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
            if len(waiting) == ROWS:
                yield Chunk(np.stack(waiting), None)
                waiting = []
    if waiting:
        yield Chunk(np.stack(waiting), None)
