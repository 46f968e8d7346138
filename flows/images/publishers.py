"""Read published sets of images: from the publisher, or from a folder of the publisher's files."""

import gzip
import hashlib
import http.client
import re
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast
from urllib.error import URLError

import numpy as np
from PIL import Image

from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.core.files import file_sha256, scratch_folder
from flows.images.splitting import TEST, Batch, held_out, hold_out_validation

if TYPE_CHECKING:
    from flows.images.catalogue import DownsampledImageNet, PublishedSet

TIMEOUT = 60.0  # seconds without a byte
ROWS = 1000


def read_published(published: "PublishedSet", source: Path | None, downloads: Path) -> list[Batch]:
    """Return the training images and the test images of a set; these sets fit into memory.

    They come from the publisher's files in `source` or, if it is None, from the publisher.  Files are downloaded and
    unpacked in a folder below `downloads`, which is removed.  Raises UserError (exit 5) for a file that is missing,
    truncated or differs from the published one, and NetworkError if a download fails.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    with scratch_folder(downloads) as root:
        if source is None:
            with downloading(published.title):
                return [read_split(published, root, train=train, download=True) for train in (True, False)]
        take_files(published, source, root / published.folder)
        return [read_split(published, root, train=train, download=False) for train in (True, False)]


def read_split(published: "PublishedSet", root: Path, *, train: bool, download: bool) -> Batch:
    """Return the training or the test images.  torchvision checks the md5 of what it downloads."""
    split = published.reader(root, train, download=download)
    images = np.asarray(split.data)
    labels = np.asarray(split.labels if hasattr(split, "labels") else split.targets)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] != 3:
        images = images.transpose(0, 3, 1, 2)
    return Batch(np.ascontiguousarray(images), labels=labels)


@contextmanager
def downloading(title: str) -> Iterator[None]:
    """Give connections a timeout, which torchvision does not, and raise NetworkError for a failed download."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    except (URLError, ConnectionError, TimeoutError, http.client.HTTPException, RuntimeError) as error:
        advice = "try again, or set data.source in params.yaml to a folder that holds the publisher's files"
        raise NetworkError(f"{title} could not be downloaded: {brief(error)}; {advice}") from error
    finally:
        socket.setdefaulttimeout(before)


def take_files(published: "PublishedSet", source: Path, folder: Path) -> None:
    """Copy the files of a set from `source`, plain, as .gz or in the tar file, to `folder`, and check their sha256.

    Nothing parses a file before that.  Raises UserError (exit 5).
    """
    if not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder", Exit.MISSING)
    folder.mkdir(parents=True, exist_ok=True)
    archive = source / published.archive if published.archive else None
    packed = {}
    for name, expected in published.files.items():
        places = source / name, source / folder.name / name, source / f"{name}.gz"
        found = next((place for place in places if place.is_file()), None)
        if found:
            with refusing_damage(found), gzip.open(found) if found.suffix == ".gz" else found.open("rb") as file:
                copy_checked(cast(IO[bytes], file), folder / name, expected, found)
        elif archive and archive.is_file():
            packed[name] = expected
        else:
            wanted = " or ".join(filter(None, (name, f"{name}.gz", published.archive)))
            raise UserError(f"{source}: holds no {wanted}; correct data.source", Exit.MISSING)
    if archive and packed:
        unpack(archive, folder, packed)


def unpack(archive: Path, folder: Path, files: dict[str, str]) -> None:
    """Unpack the files of exactly these names from an archive into `folder`, and check their sha256.

    Other entries, such as links and names with `../`, are ignored.  Raises UserError (exit 5).
    """
    left = {f"{folder.name}/{name}": name for name in files}
    with refusing_damage(archive), tarfile.open(archive) as tar:
        for entry in tar:
            if entry.isfile() and (name := left.pop(entry.name, None)):
                copy_checked(cast(IO[bytes], tar.extractfile(entry)), folder / name, files[name], archive)
    if left:
        raise UserError(f"{archive}: holds no {min(left)}; fetch it again", Exit.MISSING)


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Raise UserError (exit 5) for a packed file that is damaged."""
    try:
        yield
    except (EOFError, OSError, ValueError, tarfile.TarError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: truncated or damaged: {brief(error)}; fetch it again", Exit.MISSING) from error


def copy_checked(source: IO[bytes], path: Path, expected: str, shown: Path) -> None:
    """Copy a file.  Raises UserError (exit 5), which names `shown`, unless the content has the expected sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        while block := source.read(2**20):
            digest.update(block)
            out.write(block)
    if (actual := digest.hexdigest()) != expected:
        reason = f"sha256 of the uncompressed {path.name} is {actual}, the published file has {expected}"
        raise UserError(f"{shown}: {reason}; fetch it again", Exit.MISSING)


def read_imagenet(published: "DownsampledImageNet", source: Path | None) -> Iterator[Batch]:
    """Yield the training images, then the test images, from the archives in `source`, whose sha256 is checked first.

    Raises UserError: exit 2 without a source, 5 for an archive that is missing or differs from the published one.
    """
    if source is None:
        reason = f"{published.title} is not downloaded: its publisher asks for an account"
        advice = (
            f"set data.source in params.yaml to a folder with {', '.join(published.archives)} ({published.homepage})"
        )
        raise UserError(f"{reason}; {advice}", Exit.USAGE)
    for name, expected in published.archives.items():
        path = source / name
        if not path.is_file():
            raise UserError(f"{source}: holds no {name}; correct data.source", Exit.MISSING)
        if (actual := file_sha256(path)) != expected:
            reason = f"sha256 is {actual}, the published archive has {expected}"
            raise UserError(f"{path}: {reason}; fetch it again", Exit.MISSING)
    for name in published.archives:
        read = zipped_batches if name.endswith(".zip") else tarred_pictures
        yield from read(source / name, published.size)


def zipped_batches(path: Path, size: int) -> Iterator[Batch]:
    """Yield (n,3,H,W) uint8 images and labels from 0, from the npz files in a zip file: batch 10 after batch 9."""
    with zipfile.ZipFile(path) as outer:
        names = [name for name in outer.namelist() if name.endswith(".npz")]
        names.sort(key=lambda name: [int(digits) for digits in re.findall(r"\d+", Path(name).name)])
        for name in names:
            with outer.open(name) as packed, zipfile.ZipFile(packed) as inner:
                with inner.open("labels.npy") as entry:
                    labels = np.lib.format.read_array(entry) - 1
                with inner.open("data.npy") as entry:  # up to 1.6 GB, so not as one array
                    np.lib.format.read_magic(entry)
                    np.lib.format.read_array_header_1_0(entry)
                    for first in range(0, len(labels), ROWS):
                        content = entry.read(3 * size**2 * min(ROWS, len(labels) - first))
                        images = np.frombuffer(content, np.uint8).reshape(-1, 3, size, size)
                        yield Batch(images, labels=labels[first : first + ROWS])


def tarred_pictures(path: Path, size: int) -> Iterator[Batch]:
    """Yield the PNG files in a tar file as (1,3,H,W) uint8 images, in the archive's order, without labels."""
    with tarfile.open(path, "r|") as tar:
        for entry in tar:
            tar.members = []  # type: ignore[attr-defined]  # a million of them would stay in memory
            if entry.isfile() and entry.name.endswith(".png"):
                with Image.open(cast(IO[bytes], tar.extractfile(entry)), formats=["PNG"]) as image:
                    yield Batch(np.asarray(image.convert("RGB")).transpose(2, 0, 1)[None])


def read_digits(
    test_fraction: float, validation_fraction: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, (N,1,8,8) uint8 of 17 levels, their labels (N,) and the numbers of their splits.

    The training images come first, in a seeded order.  Raises UserError (exit 4) if a split is empty.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = loaded.images.astype(np.uint8)[:, None]
    test = held_out("digits", len(images), test_fraction, split_seed, "data.test_fraction")
    train = np.random.default_rng(split_seed).permutation(len(images))[len(test) :]
    order, splits = np.concatenate([train, test]), np.zeros(len(images), np.int8)
    splits[len(train) :] = TEST
    hold_out_validation("digits", splits, validation_fraction, split_seed)
    return images[order], loaded.target[order], splits
