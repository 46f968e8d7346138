"""Prepare an image set: the source that `data:` names, with its transforms, as arrays on disk."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.images.catalogue import (
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
from flows.images.folder import read_folder
from flows.images.imagenet import read_imagenet
from flows.images.publishers import Chunk, Splits, read_digits, read_published
from flows.images.store import SPLITS, files_of, save_images, write_array
from flows.images.transforms import describe, levels_left, parts, shape_left, transform
from vdm.files import naming, scratch_folder, writing_folder

if TYPE_CHECKING:
    from flows.core.params import Data

DIGITS = {
    "title": "Optical recognition of handwritten digits (scikit-learn's copy of the test part)",
    "homepage": "https://archive.ics.uci.edu/dataset/80",
    "licence": "CC BY 4.0",
    "num_levels": 17,
}


def write_images(data: "Data", *, source: Path | None, out: Path, downloads: Path) -> dict[str, Any]:
    """Write `train.npy`, `test.npy`, their labels and `dataset.json` into `out`, whole or not at all.

    Returns what `dataset.json` says of their origin.  What the publisher's address sends is kept in `downloads` until
    all is well, so that a later run goes on from it.  Raises UserError: exit 5 for a missing, damaged or unexpected
    file and a full disk, 4 for images that are not levels of one shape.
    """
    try:
        with scratch_folder() as scratch, writing_folder(out) as folder:
            splits, origin = read(data, source, downloads, scratch)
            labels: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
            images = {split: kept(getattr(splits, split), labels[split], files_of(folder, split)) for split in SPLITS}
            save_images(folder, images, origin | {"name": data.name})
            for split in SPLITS:
                if labels[split]:
                    write_array(folder / f"{split}_labels.npy", [np.concatenate(labels[split]).astype(np.int64)])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"{error.filename}: {error.strerror}; make room and run again", Exit.MISSING) from error
    shutil.rmtree(downloads, ignore_errors=True)
    return origin


def read(data: "Data", source: Path | None, downloads: Path, scratch: Path) -> tuple[Splits, dict[str, Any]]:
    """Return the transformed images, and what `dataset.json` says of them."""
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
    """Return the splits of a folder, and what can be said of it."""
    found = read_folder(
        source,
        test_fraction=data.test_fraction,
        split_seed=data.split_seed,
        grayscale=data.grayscale,
        resized=data.resize is not None,
    )
    for kind in found.kinds:  # before the first pixel is read
        shape_left(kind.shape, grayscale=data.grayscale, resize=data.resize, pad=data.pad)
    origin = {
        "title": visible(source.name if source.name not in ("", "..") else source.resolve().name) or "images",
        "homepage": "a folder",
        "licence": "not stated",
        "formats": found.formats,
        "split": found.split or split(data),
        "num_levels": found.num_levels,
    }
    return transformed(data, found.splits, origin)


def transformed(data: "Data", splits: Splits, origin: dict[str, Any]) -> tuple[Splits, dict[str, Any]]:
    """Return splits and origin with the transforms of `data`.

    The splits raise UserError (exit 4) when there are not as many labels as images.
    """
    num_levels = origin["num_levels"]

    def stream(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for images, labels, files in chunks:
            if labels is not None and len(labels) != len(images):
                raise UserError(f"{len(labels)} labels for {len(images)} images", Exit.INVALID_DATA)
            for part in parts(images, **steps(data)):
                yield Chunk(
                    transform(images[part], num_levels, **steps(data)),
                    labels[part] if labels is not None else None,
                    files[part] if files is not None else None,
                )

    done = {"num_levels": levels_left(num_levels, data.num_bits), "transforms": describe(num_levels, **steps(data))}
    return Splits(*map(stream, splits)), origin | done


def steps(data: "Data") -> dict[str, Any]:
    """The transforms that the parameters declare."""
    return {"grayscale": data.grayscale, "resize": data.resize, "pad": data.pad, "num_bits": data.num_bits}


def split(data: "Data") -> str:
    """A seeded split in words."""
    return f"{data.test_fraction:g} held out with seed {data.split_seed}"


def kept(chunks: Iterable[Chunk], labels: list[np.ndarray], files: Path) -> Iterator[np.ndarray]:
    """Yield the images; their labels go to `labels`, the names of their files to the lines of `files`, as JSON.

    Raises OSError that names `files`.
    """
    for chunk in chunks:
        if chunk.labels is not None:
            labels.append(chunk.labels)
        if chunk.files is not None:
            lines = {name: f"{json.dumps(utf8(name))}\n" for name in dict.fromkeys(chunk.files)}
            with naming(files, files), files.open("a", encoding="ascii") as file:
                file.writelines(lines[name] for name in chunk.files)
        yield chunk.images


def utf8(name: str) -> str:
    """Return the name of a file with escapes for bytes that are not UTF-8, which strict readers of JSON refuse."""
    return os.fsencode(name).decode(errors="backslashreplace")
