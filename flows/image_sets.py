"""The published image sets: where they come from, what their bytes must be, and how to read them.

Files are checked against the sha256 of their uncompressed bytes before anything parses them, wherever they came from.
"""

import gzip
import hashlib
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import torchvision
from torchvision.datasets.utils import download_and_extract_archive

from flows.errors import Exit, UserError


class Splits(NamedTuple):
    """Training and test images, (N,C,H,W) uint8."""

    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class PublishedSet:
    """A set that its publisher splits and hands out as files, read through torchvision."""

    title: str
    homepage: str
    licence: str
    num_levels: int
    num_train: int
    num_test: int
    reader: Any
    """torchvision's class for the set."""
    folder: str
    """Where the reader expects the files, below its root."""
    files: dict[str, str]
    """sha256 of the uncompressed bytes by file name."""
    archive: str | None
    """A tar file that the publisher wraps the folder in."""


def idx_set(title: str, homepage: str, licence: str, reader: type, *sha256: str) -> PublishedSet:
    """A set of 60,000 and 10,000 images of 28x28 in MNIST's file format."""
    names = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    files = dict(zip(names, sha256, strict=True))
    return PublishedSet(title, homepage, licence, 256, 60_000, 10_000, reader, f"{reader.__name__}/raw", files, None)


MNIST = idx_set(
    "MNIST",
    "http://yann.lecun.com/exdb/mnist/",
    "CC BY-SA 3.0",
    torchvision.datasets.MNIST,
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
FASHION_MNIST = idx_set(
    "Fashion-MNIST",
    "https://github.com/zalandoresearch/fashion-mnist",
    "MIT",
    torchvision.datasets.FashionMNIST,
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
CIFAR10 = PublishedSet(
    title="CIFAR-10",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="not stated by the publisher",
    num_levels=256,
    num_train=50_000,
    num_test=10_000,
    reader=torchvision.datasets.CIFAR10,
    folder="cifar-10-batches-py",
    files={
        "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    },
    archive="cifar-10-python.tar.gz",
)


def read_published(published: PublishedSet, source: Path | None, scratch: Path) -> Splits:
    """Both splits, from the publisher's files in `source`, or from the publisher's address when it is None.

    `scratch` is an empty folder for the files.  Raises UserError (exit 5) for a file that is missing, truncated or
    not the published one, and where the address cannot be reached.
    """
    folder = scratch / published.folder
    if source is None:
        fetch(published, scratch)
    else:
        folder.mkdir(parents=True)
        take_files(published, source, folder)
    for name, sha256 in published.files.items():
        check_sha256(folder / name, sha256, source / name if source else folder / name)
    train, test = (published.reader(scratch, train=train).data for train in (True, False))
    return Splits(channels_first(np.asarray(train)), channels_first(np.asarray(test)))


def fetch(published: PublishedSet, scratch: Path) -> None:
    """Download through torchvision, which knows the publisher's addresses, and unpack; nothing is unpickled yet."""
    try:
        if published.archive:
            address, md5 = published.reader.url, published.reader.tgz_md5
            download_and_extract_archive(address, str(scratch), filename=published.archive, md5=md5)
        else:
            published.reader(scratch, train=True, download=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"{published.title} could not be downloaded: {error}; try again, or set data.source in params.yaml to a "
            f"folder that holds the publisher's files",
            Exit.MISSING,
        ) from error


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
                with gzip.open(packed) as compressed, (folder / name).open("wb") as out:
                    shutil.copyfileobj(compressed, out)
            elif archive and archive.is_file():
                with tarfile.open(archive) as tar:
                    tar.extract(f"{folder.name}/{name}", folder.parent, filter="data")
            else:
                wanted = " or ".join(path.name for path in (plain, packed, archive) if path)
                raise UserError(f"{source}: holds no {wanted}; data.source names the wrong folder?", Exit.MISSING)
        except (EOFError, OSError, KeyError, zlib.error, tarfile.TarError) as error:
            raise UserError(f"{source}: {name} is truncated or damaged: {error}", Exit.MISSING) from error


def check_sha256(path: Path, expected: str, shown: Path) -> None:
    """UserError (exit 5) naming `shown` unless the bytes of `path` have that digest."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise UserError(
            f"{shown}: sha256 of the uncompressed bytes is {actual}, the published file has {expected}; "
            f"fetch the file again",
            Exit.MISSING,
        )


def read_digits(test_fraction: float, split_seed: int) -> Splits:
    """scikit-learn's 1,797 digits of 8x8 with levels 0..16, a seeded share of them held out."""
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.uint8)[:, None]
    order = np.random.default_rng(split_seed).permutation(len(images))
    num_test = round(test_fraction * len(images))
    return Splits(images[order[num_test:]], images[order[:num_test]])


def channels_first(images: np.ndarray) -> np.ndarray:
    """(N,H,W) or (N,H,W,C) to contiguous (N,C,H,W)."""
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
