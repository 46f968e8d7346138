"""ImageNet at a low resolution, streamed out of the publisher's archives: neither unpacked nor held in memory."""

import io
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from flows.errors import Exit, UserError
from flows.fetching import fetch_file
from flows.image_sets import (
    IMAGENET32,
    IMAGENET32_2016,
    IMAGENET64,
    IMAGENET64_2016,
    DownsampledImageNet,
)
from flows.publishers import Chunk, Splits, file_sha256

ROWS = 1000


def read_imagenet(published: DownsampledImageNet, source: Path | None, downloads: Path) -> Splits:
    """Both splits, from the archives in `source`, or from the publisher's address when it is None.

    Raises UserError (exit 5) for an archive that is missing or not the published one; the splits, as they are read,
    for one that holds something else than images of the size.
    """
    if source is not None and not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder", Exit.MISSING)
    archives = published.train | published.test
    if source is None:
        for name in archives:
            fetch_file([published.base_address + name], downloads / name)
    for name, sha256 in archives.items():
        try:
            check_version((source or downloads) / name, sha256)
        except UserError:
            if source is None:
                shutil.rmtree(downloads)
            raise
    return Splits(
        *(
            read_archives(published, [(source or downloads) / name for name in part], count)
            for part, count in ((published.train, published.num_train), (published.test, published.num_test))
        )
    )


def check_version(path: Path, sha256: str) -> None:
    """UserError (exit 5) unless it is this archive of this version; names the version that it is, if that is known."""
    if not path.is_file():
        others = [other for other in all_archives() if (path.parent / other).is_file()]
        hint = f"; it holds {', '.join(others)}, the archives of another version" if others else ""
        raise UserError(f"{path.parent}: holds no {path.name}{hint}", Exit.MISSING)
    actual = file_sha256(path)
    if actual != sha256:
        what = next((f"that is {name}" for name, known in all_archives().items() if known == actual), "unknown")
        raise UserError(f"{path}: sha256 is {actual} ({what}), the published archive has {sha256}", Exit.MISSING)


def all_archives() -> dict[str, str]:
    """sha256 by name of every archive of both versions."""
    versions = (IMAGENET32, IMAGENET64, IMAGENET32_2016, IMAGENET64_2016)
    return {name: sha256 for version in versions for name, sha256 in (version.train | version.test).items()}


def read_archives(published: DownsampledImageNet, paths: list[Path], count: int) -> Iterator[Chunk]:
    """The images of some archives, in the order of their names.  Raises UserError (exit 5)."""
    found = 0
    for path in paths:
        try:
            for chunk in zipped_batches(path) if published.layout == "npz" else tarred_images(path):
                shape = (3, published.size, published.size)
                if chunk.images.dtype != np.uint8 or chunk.images[0].size != np.prod(shape):
                    raise ValueError(f"images of {chunk.images.shape[1:]} {chunk.images.dtype}")
                found += len(chunk.images)
                yield Chunk(chunk.images.reshape(-1, *shape), chunk.labels)
        except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise UserError(f"{path}: damaged: {error}", Exit.MISSING) from error
    if found != count:
        raise UserError(f"{paths[0]}: {found} images, {count} were published", Exit.MISSING)


def zipped_batches(path: Path) -> Iterator[Chunk]:
    """(n, 3 x H x W) uint8 and labels from 0, of npz files in a zip file."""
    with zipfile.ZipFile(path) as outer:
        batches = [name for name in outer.namelist() if name.endswith(".npz")]
        for batch in sorted(batches, key=lambda name: [int(part) for part in re.findall(r"\d+", Path(name).name)]):
            with outer.open(batch) as packed, zipfile.ZipFile(packed) as inner:
                with inner.open("labels.npy") as file:
                    labels = np.load(io.BytesIO(file.read()), allow_pickle=False) - 1
                with inner.open("data.npy") as file:
                    for first, rows in array_rows(file):
                        yield Chunk(rows, labels[first : first + len(rows)])


def array_rows(file: IO[bytes]) -> Iterator[tuple[int, np.ndarray]]:
    """Some rows of a .npy stream at a time, with the number of the first.  Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if fortran or dtype.hasobject or len(shape) != 2:
        raise ValueError(f"an array of {dtype} {shape}, not rows of pixels")
    for first in range(0, shape[0], ROWS):
        count = min(ROWS, shape[0] - first)
        content = file.read(count * shape[1] * dtype.itemsize)
        yield first, np.frombuffer(content, dtype).reshape(count, shape[1])


def tarred_images(path: Path) -> Iterator[Chunk]:
    """(n,3,H,W) uint8 of the PNG files in a tar file, in the archive's order; this version has no labels."""
    rows: list[np.ndarray] = []
    with tarfile.open(path) as tar:
        for entry in tar:
            tar.members = []  # type: ignore[attr-defined]  # or a million of them stay in memory
            file = tar.extractfile(entry) if entry.isfile() and entry.name.endswith(".png") else None
            if file:
                with Image.open(file, formats=["PNG"]) as image:
                    rows.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
            if len(rows) == ROWS:
                yield Chunk(np.stack(rows), None)
                rows = []
    if rows:
        yield Chunk(np.stack(rows), None)
