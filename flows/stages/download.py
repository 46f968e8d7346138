"""download: an image set, checked against its published checksums, as arrays on disk."""

import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.errors import Exit, UserError
from flows.image_folder import read_folder
from flows.image_sets import (
    CIFAR10,
    FASHION_MNIST,
    IMAGENET32,
    IMAGENET32_2016,
    IMAGENET64,
    IMAGENET64_2016,
    MNIST,
    SVHN,
    DownsampledImageNet,
    PublishedSet,
)
from flows.imagenet import read_imagenet
from flows.publishers import Chunk, Splits, read_digits, read_published
from flows.transforms import describe, levels_left, transform
from vdm.images import SPLITS, files_of, save_images

if TYPE_CHECKING:
    from flows.params import Data

log = logging.getLogger(__name__)

DIGITS = {
    "title": "Optical recognition of handwritten digits (scikit-learn's copy of the test part)",
    "homepage": "https://archive.ics.uci.edu/dataset/80",
    "licence": "CC BY 4.0",
    "num_levels": 17,
}


def download(data: "Data", *, out: Path, downloads: Path) -> None:
    """Write the images of `write_images`, and tell of them.  Raises what that raises."""
    origin = write_images(data, out=out, downloads=downloads)
    log.info("%s: %s, transforms: %s -> %s", data.name, origin["title"], origin["transforms"], out)


def write_images(data: "Data", *, out: Path, downloads: Path) -> dict[str, Any]:
    """Write `train.npy`, `test.npy`, their labels and `dataset.json` into `out`, whole or not at all.

    Returns what `dataset.json` says of their origin.  What the publisher's address sends is kept in `downloads` until
    all is well, so that a later run goes on from it.  Raises UserError: exit 5 for a missing, damaged or unexpected
    file and a full disk, 4 for images that are no levels of one shape.
    """
    with tempfile.TemporaryDirectory() as scratch, replacing(out) as folder:
        splits, origin = read(data, downloads, Path(scratch))
        labels: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        images = {split: kept(getattr(splits, split), labels[split], files_of(folder, split)) for split in SPLITS}
        save_images(folder, images, origin | {"name": data.name})
        for split in SPLITS:
            if labels[split]:
                np.save(folder / f"{split}_labels.npy", np.concatenate(labels[split]).astype(np.int64))
    shutil.rmtree(downloads, ignore_errors=True)
    return origin


def read(data: "Data", downloads: Path, scratch: Path) -> tuple[Splits, dict[str, Any]]:
    """Transformed images, and what `dataset.json` says of them."""
    source = Path(data.source).expanduser() if data.source else None
    match data.name:
        case "digits":
            return transformed(data, read_digits(data.test_fraction, data.split_seed), DIGITS | {"split": split(data)})
        case "mnist":
            return published(data, MNIST, source, downloads, scratch)
        case "fashion_mnist":
            return published(data, FASHION_MNIST, source, downloads, scratch)
        case "cifar10":
            return published(data, CIFAR10, source, downloads, scratch)
        case "svhn":
            return published(data, SVHN, source, downloads, scratch)
        case "imagenet32":
            return published(data, IMAGENET32, source, downloads, scratch)
        case "imagenet64":
            return published(data, IMAGENET64, source, downloads, scratch)
        case "imagenet32_2016":
            return published(data, IMAGENET32_2016, source, downloads, scratch)
        case "imagenet64_2016":
            return published(data, IMAGENET64_2016, source, downloads, scratch)
        case "image_folder":
            assert source  # checked with the parameters
            return folder_of_images(data, source)


def published(
    data: "Data", entry: PublishedSet | DownsampledImageNet, source: Path | None, downloads: Path, scratch: Path
) -> tuple[Splits, dict[str, Any]]:
    """The splits of a published set, and what its entry says."""
    if isinstance(entry, PublishedSet):
        splits = read_published(entry, source, downloads, scratch)
    else:
        splits = read_imagenet(entry, source, downloads)
    origin = {key: getattr(entry, key) for key in ("title", "homepage", "licence", "num_levels")}
    counts = {"published_train": entry.num_train, "published_test": entry.num_test}
    return transformed(data, splits, origin | counts | {"split": "as published"})


def folder_of_images(data: "Data", source: Path) -> tuple[Splits, dict[str, Any]]:
    """The splits of a folder, and what can be said of it."""
    found = read_folder(
        source,
        test_fraction=data.test_fraction,
        split_seed=data.split_seed,
        grayscale=data.grayscale,
        resized=data.resize is not None,
        transform=lambda images, num_levels: transform(images, num_levels, **steps(data)),
    )
    origin = {
        "title": source.name,
        "homepage": "a folder",
        "licence": "not stated",
        "formats": found.formats,
        "split": found.split or split(data),
        "num_levels": levels_left(found.num_levels, data.num_bits),
        "transforms": describe(found.num_levels, **steps(data)),
    }
    return found.splits, origin


def transformed(data: "Data", splits: Splits, origin: dict[str, Any]) -> tuple[Splits, dict[str, Any]]:
    """Splits and origin with the transforms of `data`."""
    num_levels = origin["num_levels"]

    def stream(chunks: Any) -> Iterator[Chunk]:
        for chunk in chunks:
            yield chunk._replace(images=transform(chunk.images, num_levels, **steps(data)))

    done = {"num_levels": levels_left(num_levels, data.num_bits), "transforms": describe(num_levels, **steps(data))}
    return Splits(*map(stream, splits)), origin | done


def steps(data: "Data") -> dict[str, Any]:
    """The transforms that the parameters declare."""
    return {"grayscale": data.grayscale, "resize": data.resize, "pad": data.pad, "num_bits": data.num_bits}


def split(data: "Data") -> str:
    """A seeded split in words."""
    return f"{data.test_fraction:g} held out with seed {data.split_seed}"


def kept(chunks: Iterable[Chunk], labels: list[np.ndarray], files: Path) -> Iterator[np.ndarray]:
    """The images; their labels go to `labels`, the names of their files to the lines of `files`, in quotes.

    Raises UserError (exit 4) when there are not as many labels as images.
    """
    for chunk in chunks:
        if chunk.labels is not None:
            if len(chunk.labels) != len(chunk.images):
                raise UserError(f"{len(chunk.labels)} labels for {len(chunk.images)} images", Exit.INVALID_DATA)
            labels.append(chunk.labels)
        if chunk.files is not None:
            with files.open("a", encoding="ascii") as lines:
                lines.writelines(f"{json.dumps(name)}\n" for name in chunk.files)
        yield chunk.images


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `out` when all went well, and vanishes when not.

    Raises UserError (exit 5) when the disk is full.
    """
    partial, previous = (out.with_name(f".{out.name}.{state}") for state in ("partial", "previous"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            shutil.rmtree(previous, ignore_errors=True)
            out.rename(previous)
        partial.rename(out)
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"{out}: {error.strerror}; make room and run again", Exit.MISSING) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
