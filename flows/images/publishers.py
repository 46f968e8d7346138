"""Read publishers' files.  Their sha256 is checked before anything parses them."""

import gzip
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import numpy as np

from flows.core.errors import Exit, UserError, brief
from flows.core.files import naming, open_regular
from flows.images.fetching import fetch_file
from flows.images.reading import limited
from flows.images.splitting import held_out

if TYPE_CHECKING:
    from flows.images.catalogue import PublishedSet

# The largest file of these sets has 182 MB.
MOST_BYTES = 2**28


class Chunk(NamedTuple):
    """Images (n,C,H,W), their labels (n,) if the set has any, and their n file names if the set is made of files."""

    images: np.ndarray
    labels: np.ndarray | None
    files: list[str] | None = None


Splits = dict[str, Iterable[Chunk]]
"""The images in chunks, to be read once and in the order train, validation (if the set has this split), test."""


def read_published(
    published: "PublishedSet", source: Path | None, downloads: Path, scratch: Path, *, validation: np.ndarray
) -> Splits:
    """Return the splits, from the publisher's files in `source`, or downloaded from the publisher if it is None.

    `validation` are the numbers of the published training images that make the validation split.  Downloads are kept
    in `downloads`; `scratch` is an empty folder for unpacked files.  Raises UserError (exit 5) for a file that is
    missing, truncated or differs from the published one, and if no address has the published file.
    """
    folder = scratch / published.folder
    folder.mkdir(parents=True, exist_ok=True)
    if source:
        take_files(published, published.files, source, folder)
    else:
        for name, addresses in published.addresses.items():
            contents = [file for file in published.files if name in (file, f"{file}.gz", published.archive)]
            take = partial(take_files, published, contents, downloads, folder)
            fetch_file(addresses, downloads / name, MOST_BYTES, take)
    train, test = ([read_chunk(published, scratch, train)] for train in (True, False))
    return divided(lambda: train, validation) | {"test": test}


def read_chunk(published: "PublishedSet", scratch: Path, train: bool) -> Chunk:
    """Return a whole split; these sets fit into memory."""
    split = published.reader(scratch, train)
    images = np.asarray(split.data)
    labels = np.asarray(split.labels if hasattr(split, "labels") else split.targets)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] != 3:
        images = images.transpose(0, 3, 1, 2)
    return Chunk(np.ascontiguousarray(images), labels)


def take_files(published: "PublishedSet", names: Iterable[str], source: Path, folder: Path) -> None:
    """Unpack files of `source` (plain, .gz or archived) into `folder`, and check them.  Raises UserError (exit 5)."""
    if not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder", Exit.MISSING)
    archive = source / published.archive if published.archive else None
    packed = []
    for name in names:
        places = source / name, source / folder.name / name, source / f"{name}.gz"
        found = next((place for place in places if place.is_file()), None)
        if found:
            with refusing_damage(source, name, found), uncompressed(found) as file:
                copy_checked(file, folder / name, published.files[name], source / name)
        elif archive and archive.is_file():
            packed.append(name)
        else:
            wanted = " or ".join(path.name for path in (places[0], places[2], archive) if path)
            raise UserError(f"{source}: holds no {wanted}; correct data.source", Exit.MISSING)
    if packed and archive:
        unpack(archive, folder, {name: published.files[name] for name in packed})


def unpack(archive: Path, folder: Path, files: dict[str, str]) -> None:
    """Unpack the files of exactly these names from an archive into `folder` and check their sha256.

    Other entries, such as links and names with `../`, are ignored.  Raises UserError (exit 5).
    """
    left = {f"{folder.name}/{name}": name for name in files}
    source = archive.parent
    with (
        refusing_damage(source, archive.name, archive),
        uncompressed(archive) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        for entry in entries(tar, MOST_BYTES):
            parent, _, name = entry.name.partition("/")
            if parent != folder.name or name not in files:
                continue
            with refusing_damage(source, name, archive):
                if left.pop(entry.name, None) is None:
                    raise ValueError("the archive holds it twice")
                copy_checked(file_of(tar, entry), folder / name, files[name], source / name)
        if left:
            raise ValueError(f"it holds no {min(left)}")


def entries(tar: tarfile.TarFile, most: int) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of an archive of at most `most` bytes.  Raises ValueError, and what tarfile raises."""
    previous = -1
    for entry in tar:
        tar.members = []  # type: ignore[attr-defined]  # a million of them would stay in memory
        # A negative size would make an endless loop over the same entries.
        if entry.offset <= previous or entry.size < 0:
            raise ValueError("its entries overlap")
        if entry.offset_data + entry.size > most:
            raise ValueError(f"unpacks to more than {most} bytes")
        previous = entry.offset
        yield entry


def file_of(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    """Open the content of an entry.  Raises ValueError for a link, a folder or a device."""
    file = tar.extractfile(entry) if entry.isfile() else None
    if file is None:
        raise ValueError(f"{entry.name} is not a file")
    return file


@contextmanager
def uncompressed(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, or the content of a gzip file.  Raises OSError, and ValueError if it is too large."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
            raise ValueError(f"{size} bytes, more than {MOST_BYTES}")
        # Some browsers decompress a .tar.gz file and keep its name.
        packed = file.peek(2)[:2] == b"\x1f\x8b" or not path.name.endswith(".tar.gz")
        if path.suffix == ".gz" and packed:
            with gzip.open(file) as content:
                yield cast(IO[bytes], content)
        else:
            yield file


@contextmanager
def refusing_damage(source: Path, name: str, path: Path) -> Iterator[None]:
    """Raise UserError (exit 5) for a file that is damaged or takes too much memory."""
    try:
        with limited():
            yield
    except UserError:
        raise
    except Exception as error:  # damaged bytes make these parsers raise almost anything, IndexError even
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = f"{brief(error)}{looks_like_a_page(path)}"
        raise UserError(f"{source}: {name} is truncated or damaged: {reason}", Exit.MISSING) from error


def copy_checked(source: IO[bytes], path: Path, expected: str, shown: Path) -> None:
    """Copy a file.

    Raises UserError (exit 5) that names `shown` unless the content has the expected sha256, ValueError beyond
    MOST_BYTES, as of an archive bomb, and OSError that names `path`.
    """
    left, digest = MOST_BYTES, hashlib.sha256()
    with naming(path, path), path.open("wb") as out:
        while block := source.read(2**20):
            left -= len(block)
            if left < 0:
                raise ValueError(f"unpacks to more than {MOST_BYTES} bytes")
            digest.update(block)
            out.write(block)
    if (actual := digest.hexdigest()) != expected:
        reason = f"sha256 of the uncompressed bytes is {actual}, the published file has {expected}"
        raise UserError(f"{shown}: {reason}; fetch the file again", Exit.MISSING)


def looks_like_a_page(path: Path) -> str:
    """Return a remark if the file is an HTML page, which some servers send in place of a file."""
    with open_regular(path) as file:
        page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    return f"; {path.name} is a web page, probably an error message of the server" if page else ""


def read_digits(test_fraction: float, validation_fraction: float, split_seed: int) -> Splits:
    """Return scikit-learn's digits, 8x8 of 17 levels, in seeded splits.  Raises UserError (exit 4) if one is empty."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = loaded.images.astype(np.uint8)[:, None]
    test = held_out("digits", len(images), test_fraction, split_seed, "data.test_fraction")
    train = np.random.default_rng(split_seed).permutation(len(images))[len(test) :]
    chunks = [Chunk(images[train], loaded.target[train])]
    validation = held_out("digits", len(train), validation_fraction, split_seed, "data.validation_fraction")
    return divided(lambda: chunks, validation) | {"test": [Chunk(images[test], loaded.target[test])]}


def divided(read: Callable[[], Iterable[Chunk]], validation: np.ndarray) -> Splits:
    """Return the training and the validation images of a source; `validation` are the numbers of the validation images.

    `read` is called once for each split, so that images which it streams are not kept in memory.
    """
    if not len(validation):
        return {"train": read()}
    return {split: taken(read, validation, invert=split == "train") for split in ("train", "validation")}


def taken(read: Callable[[], Iterable[Chunk]], numbers: np.ndarray, *, invert: bool) -> Iterator[Chunk]:
    """Yield the images of a source with these numbers, or all others."""
    first = 0
    for images, labels, _ in read():
        kept = np.isin(np.arange(first, first + len(images)), numbers, invert=invert)
        first += len(images)
        if kept.any():
            yield Chunk(images[kept], labels[kept] if labels is not None else None)
