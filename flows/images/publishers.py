"""Read published sets of images: from the publisher, or from a folder of the publisher's files."""

import gzip
import http.client
import math
import re
import shutil
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.error import URLError

import numpy as np
from PIL import Image

from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.core.files import file_sha256, scratch_folder
from flows.images.picture import Picture
from flows.images.source import Source
from flows.images.splitting import division
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Data
    from flows.images.catalogue import PublishedSet

TIMEOUT = 60.0  # seconds without a byte


def read_digits(data: "Data") -> Source:
    """Return scikit-learn's digits, 1x8x8 of 17 levels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    origin = {
        "title": "Optical recognition of handwritten digits (scikit-learn's copy of the test part)",
        "homepage": "https://archive.ics.uci.edu/dataset/80",
        "licence": "CC BY 4.0",
        "num_levels": 17,
        "split": division(data),
    }
    return Source("digits", [Picture(loaded.images.astype(np.uint8)[:, None], 17, labels=loaded.target)], origin)


def read_published(data: "Data", source: Path | None, downloads: Path) -> Source:
    """Return the published set that the parameters name, from its publisher or from the publisher's files in `source`.

    Files are downloaded and unpacked in a folder below `downloads`, which is removed.  Raises UserError: exit 5 for a
    file that is missing, truncated or differs from the published one, 2 for ImageNet without a source; and NetworkError
    if a download fails.
    """
    from flows.images.catalogue import PUBLISHED  # torchvision: 2 s, which other sources do not need

    entry = PUBLISHED[data.name]
    batches = read_imagenet(entry, source) if entry.reader is None else read_whole(entry, source, downloads)
    origin: dict[str, Any] = {
        "title": entry.title,
        "homepage": entry.homepage,
        "licence": entry.licence,
        "num_levels": 256,
        "published_train": entry.num_train,
        "published_test": entry.num_test,
        "split": division(data, "as published"),
    }
    if entry.class_names:
        origin["class_names"] = list(entry.class_names)
    counts: dict[Split, int] = {"train": entry.num_train, "test": entry.num_test}
    return Source(f"data.{data.name}", batches, origin, frozenset({"train", "test"}), counts)


def read_whole(entry: "PublishedSet", source: Path | None, downloads: Path) -> list[Picture]:
    """Return the training images and the test images of a set that torchvision reads; these sets fit into memory."""
    downloads.mkdir(parents=True, exist_ok=True)
    with scratch_folder(downloads) as root:
        if source:
            take_files(entry, source, root / entry.folder)
            return read_splits(entry, root, download=False)
        socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none
        try:
            return read_splits(entry, root, download=True)
        except (URLError, ConnectionError, TimeoutError, http.client.HTTPException, RuntimeError) as error:
            advice = "try again, or name a folder of the publisher's files by its absolute path in data.source"
            raise NetworkError(f"{entry.title} could not be downloaded: {brief(error)}; {advice}") from error
        finally:
            socket.setdefaulttimeout(None)


def read_splits(entry: "PublishedSet", root: Path, *, download: bool) -> list[Picture]:
    """Return the training images and the test images below `root`.  torchvision checks the md5 of what it downloads."""
    assert entry.reader
    batches = []
    for train in (True, False):
        split = entry.reader(root, train, download=download)
        images = np.asarray(split.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[1] != 3:
            images = images.transpose(0, 3, 1, 2)
        labels = split.labels if hasattr(split, "labels") else split.targets
        part: Split = "train" if train else "test"
        batches.append(Picture(np.ascontiguousarray(images), labels=np.asarray(labels), split=part))
    return batches


def take_files(entry: "PublishedSet", source: Path, folder: Path) -> None:
    """Copy the files of a set from `source`, where they lie plain, as .gz or in the tar file, and check their sha256.

    Nothing parses a file before that.  Other entries of the tar file are left there.  Raises UserError (exit 5).
    """
    if not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder", Exit.MISSING)
    folder.mkdir(parents=True, exist_ok=True)
    for name in entry.files:
        places = source / name, source / folder.name / name, source / f"{name}.gz"
        if found := next((place for place in places if place.is_file()), None):
            opened = gzip.open if found.suffix == ".gz" else open
            with refuse_damage(found), opened(found, "rb") as packed, (folder / name).open("wb") as plain:
                shutil.copyfileobj(packed, plain)
    left = {f"{folder.name}/{name}" for name in entry.files if not (folder / name).exists()}
    if left and entry.archive and (archive := source / entry.archive).is_file():
        with refuse_damage(archive), tarfile.open(archive) as tar:
            members = [member for member in tar if member.isfile() and member.name in left]
            tar.extractall(folder.parent, members, filter="data")
    for name, expected in entry.files.items():
        if not (folder / name).exists():
            wanted = " or ".join(filter(None, (name, f"{name}.gz", entry.archive)))
            raise UserError(f"{source}: holds no {wanted}; correct data.source", Exit.MISSING)
        require_sha256(folder / name, expected, f"{source}: the uncompressed {name}")


@contextmanager
def refuse_damage(path: Path) -> Iterator[None]:
    """Raise UserError (exit 5) for a packed file that is damaged."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path}: truncated or damaged: {brief(error)}; fetch it again", Exit.MISSING) from error


def require_sha256(path: Path, expected: str, shown: str) -> None:
    """Raise UserError (exit 5) that begins with `shown` unless the file has the published sha256."""
    if (actual := file_sha256(path)) != expected:
        raise UserError(f"{shown} has sha256 {actual}, not {expected} as published; fetch it again", Exit.MISSING)


def read_imagenet(entry: "PublishedSet", source: Path | None) -> Iterator[Picture]:
    """Yield the training images, then the test images, from the archives in `source`, whose sha256 is checked first."""
    if source is None:
        reason = f"{entry.title} is not downloaded: its publisher asks for an account"
        advice = f"set data.source in params.yaml to a folder with {', '.join(entry.files)} ({entry.homepage})"
        raise UserError(f"{reason}; {advice}", Exit.USAGE)
    for name, expected in entry.files.items():
        if not (source / name).is_file():
            raise UserError(f"{source}: holds no {name}; correct data.source", Exit.MISSING)
        require_sha256(source / name, expected, str(source / name))
    *_, last = entry.files
    for name in entry.files:
        read = read_zipped_batches if name.endswith(".zip") else read_tarred_pictures
        for batch in read(source / name):
            yield batch._replace(split="test" if name == last else "train")


def read_zipped_batches(path: Path) -> Iterator[Picture]:
    """Yield (n,3,H,W) uint8 images and labels from 0, from the npz files in a zip file: batch 10 after batch 9."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npz")]
        names.sort(key=lambda name: [int(digits) for digits in re.findall(r"\d+", Path(name).name)])
        for name in names:
            with archive.open(name) as packed, np.load(packed) as batch:
                pixels = batch["data"]
                size = math.isqrt(pixels.shape[1] // 3)
                yield Picture(pixels.reshape(-1, 3, size, size), labels=batch["labels"] - 1)


def read_tarred_pictures(path: Path) -> Iterator[Picture]:
    """Yield the PNG files in a tar file as (1,3,H,W) uint8 images, in the archive's order, without labels."""
    with tarfile.open(path, "r|") as tar:
        for entry in tar:
            tar.members = []  # type: ignore[attr-defined]  # a million of them would stay in memory
            if entry.isfile() and entry.name.endswith(".png"):
                with Image.open(cast(IO[bytes], tar.extractfile(entry)), formats=["PNG"]) as image:
                    yield Picture(np.asarray(image.convert("RGB")).transpose(2, 0, 1)[None])
