"""Publishers' files, checked against their sha256 before anything parses them, wherever they came from."""

import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from flows.errors import Exit, UserError
from flows.fetching import fetch_file
from flows.image_sets import PublishedSet

# The largest file of these sets has 182 MB: what unpacks to more is no such file.
MOST_BYTES = 2**29


class Chunk(NamedTuple):
    """Some images (n,C,H,W), their labels (n,) where the set has labels, and the n files of a set of files."""

    images: np.ndarray
    labels: np.ndarray | None
    files: list[str] | None = None


class Splits(NamedTuple):
    """Training and test images, in chunks; to be read in this order, once."""

    train: Iterable[Chunk]
    test: Iterable[Chunk]


def read_published(published: PublishedSet, source: Path | None, downloads: Path, scratch: Path) -> Splits:
    """Both splits, from the publisher's files in `source`, or from the publisher's address when it is None.

    Downloads are kept in `downloads`; `scratch` is an empty folder for unpacked files.  Raises UserError (exit 5) for
    a file that is missing, truncated or not the published one, and where the address cannot be reached.
    """
    if source is None:
        for name, addresses in published.addresses.items():
            fetch_file(addresses, downloads / name)
    folder = scratch / published.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        take_files(published, source or downloads, folder)
        for name, sha256 in published.files.items():
            check_sha256(folder / name, sha256, (source or downloads) / name)
    except UserError:
        if source is None:
            shutil.rmtree(downloads)  # what is wrong would be found, and wrong, again
        raise
    return Splits(*([read_chunk(published, scratch, train)] for train in (True, False)))


def read_chunk(published: PublishedSet, scratch: Path, train: bool) -> Chunk:
    """A whole split; these sets fit into memory."""
    split = published.reader(scratch, train)
    images, labels = np.asarray(split.data), np.asarray(split.labels if hasattr(split, "labels") else split.targets)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] != 3:
        images = images.transpose(0, 3, 1, 2)
    return Chunk(np.ascontiguousarray(images), labels)


def take_files(published: PublishedSet, source: Path, folder: Path) -> None:
    """Put the uncompressed files from `source` (plain, .gz, or in the publisher's archive) into `folder`."""
    if not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder", Exit.MISSING)
    archive = source / published.archive if published.archive else None
    for name in published.files:
        plain, nested, packed = source / name, source / folder.name / name, source / f"{name}.gz"
        try:
            if plain.is_file() or nested.is_file():
                shutil.copyfile(plain if plain.is_file() else nested, folder / name)
            elif packed.is_file():
                with gzip.open(packed) as compressed:
                    copy_bounded(compressed, folder / name)
            elif archive and archive.is_file():
                with tarfile.open(archive) as tar, member(tar, f"{folder.name}/{name}") as packed_file:
                    copy_bounded(packed_file, folder / name)
            else:
                wanted = " or ".join(path.name for path in (plain, packed, archive) if path)
                raise UserError(f"{source}: holds no {wanted}; data.source names the wrong folder?", Exit.MISSING)
        except (EOFError, KeyError, ValueError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
            reason = f"{error}{looks_like_a_page(packed, archive)}"
            raise UserError(f"{source}: {name} is truncated or damaged: {reason}", Exit.MISSING) from error


def member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    """A file in the archive, by its exact name: whatever else it holds, `../` and links too, is never unpacked."""
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file")
    return file


def copy_bounded(source: IO[bytes] | gzip.GzipFile, path: Path) -> None:
    """Copy at most MOST_BYTES, so that a few bytes that unpack to terabytes do not fill the disk.  ValueError."""
    left = MOST_BYTES
    with path.open("wb") as out:
        while block := source.read(2**20):
            left -= len(block)
            if left < 0:
                raise ValueError(f"unpacks to more than {MOST_BYTES} bytes")
            out.write(block)


def looks_like_a_page(*paths: Path | None) -> str:
    """Says so when one of the files is an HTML page, which servers like to send in place of a file."""
    for path in paths:
        if path and path.is_file():
            with path.open("rb") as file:
                if file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html")):
                    return f"; {path.name} is a web page, perhaps an error message of the server"
    return ""


def check_sha256(path: Path, expected: str, shown: Path) -> None:
    """UserError (exit 5) naming `shown` unless the bytes of `path` have that digest."""
    actual = file_sha256(path)
    if actual != expected:
        raise UserError(
            f"{shown}: sha256 of the uncompressed bytes is {actual}, the published file has {expected}; "
            f"fetch the file again",
            Exit.MISSING,
        )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_digits(test_fraction: float, split_seed: int) -> Splits:
    """scikit-learn's 1,797 digits of 8x8 with levels 0..16, a seeded share of them held out."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = loaded.images.astype(np.uint8)[:, None]
    test = held_out(len(images), test_fraction, split_seed)
    train = np.random.default_rng(split_seed).permutation(len(images))[len(test) :]
    return Splits([Chunk(images[train], loaded.target[train])], [Chunk(images[test], loaded.target[test])])


def held_out(count: int, test_fraction: float, split_seed: int) -> np.ndarray:
    """Which of `count` images are for the test, in the order of the draw."""
    return np.random.default_rng(split_seed).permutation(count)[: round(test_fraction * count)]
