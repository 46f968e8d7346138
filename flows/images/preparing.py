"""Read the source that `data:` names, transform its images and write them as arrays."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.files import naming, scratch_folder
from flows.core.folders import writing_folder
from flows.images.fetching import held
from flows.images.folder import read_folder
from flows.images.imagenet import read_imagenet
from flows.images.publishers import Chunk, Splits, read_digits, read_published
from flows.images.splitting import division, held_out
from flows.images.store import files_of, save_images, write_array
from flows.images.transforms import describe, levels_left, parts, transform

if TYPE_CHECKING:
    from flows.core.params import Data

DIGITS = {
    "title": "Optical recognition of handwritten digits (scikit-learn's copy of the test part)",
    "homepage": "https://archive.ics.uci.edu/dataset/80",
    "licence": "CC BY 4.0",
    "num_levels": 17,
}


def write_images(data: "Data", *, source: Path | None, out: Path, downloads: Path) -> dict[str, Any]:
    """Write an image set (see `flows.images.store`) into the folder `out`, completely or not at all.

    Returns what `dataset.json` says of its origin.  Downloads are kept in `downloads`, in a folder of the set's name,
    until all is written, so that a later run can resume them.  Raises UserError: exit 5 for a missing, damaged or
    unexpected file and for a full disk, 4 for images that are not levels of one shape, 2 for transforms that the images
    do not allow, 6 if another process is writing the folder.
    """
    downloads = downloads / data.name  # sets have files of the same names
    fetched = source is None and data.name != "digits"
    try:
        with held(downloads) if fetched else nullcontext(), scratch_folder() as scratch, writing_folder(out) as folder:
            splits, origin = read(data, source, downloads, scratch)
            images = {split: written_beside(chunks, folder, split) for split, chunks in splits.items()}
            save_images(folder, images, origin | {"name": data.name})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"{error.filename}: {error.strerror}; free some space and run again", Exit.MISSING) from error
    return origin


def written_beside(chunks: Iterable[Chunk], folder: Path, split: str) -> Iterator[np.ndarray]:
    """Yield the images of a split, and write its labels and the names of its files into `folder`.

    The names are appended as the chunks come, one line of JSON for each image.  The labels are written after the last
    chunk.  Raises OSError that names the file.
    """
    names = files_of(folder, split)
    labels = []
    for chunk in chunks:
        if chunk.labels is not None:
            labels.append(chunk.labels)
        if chunk.files is not None:
            with naming(names, names), names.open("a", encoding="ascii") as file:
                for name in chunk.files:  # strict readers of JSON refuse a name that is not valid UTF-8
                    escaped = os.fsencode(name).decode(errors="backslashreplace")
                    file.write(f"{json.dumps(escaped)}\n")
        yield chunk.images
    if labels:
        write_array(folder / f"{split}_labels.npy", [np.concatenate(labels).astype(np.int64)])


def read(data: "Data", source: Path | None, downloads: Path, scratch: Path) -> tuple[Splits, dict[str, Any]]:
    """Return the transformed images, and what `dataset.json` says of them."""
    match data.name:
        case "digits":
            splits = read_digits(data.test_fraction, data.validation_fraction, data.split_seed)
            origin: dict[str, Any] = DIGITS | {"split": division(data)}
        case "image_folder":
            assert source  # checked with the parameters
            splits, origin = read_folder(source, data)
        case _:
            splits, origin = published(data, source, downloads, scratch)
    return transformed(data, splits, origin)


def published(data: "Data", source: Path | None, downloads: Path, scratch: Path) -> tuple[Splits, dict[str, Any]]:
    """Return the splits of a published set, and what `dataset.json` says of them."""
    from flows.images.catalogue import PUBLISHED, PublishedSet  # torchvision: 2 s, which other sources do not need

    entry, share = PUBLISHED[data.name], data.validation_fraction
    validation = held_out(data.name, entry.num_train, share, data.split_seed, "data.validation_fraction")
    if isinstance(entry, PublishedSet):
        splits = read_published(entry, source, downloads, scratch, validation=validation)
    else:
        splits = read_imagenet(entry, source, downloads, validation=validation)
    origin = {"title": entry.title, "homepage": entry.homepage, "licence": entry.licence, "num_levels": 256}
    counts = {"published_train": entry.num_train, "published_test": entry.num_test}
    return splits, origin | counts | {"split": division(data, "as published")}


def transformed(data: "Data", splits: Splits, origin: dict[str, Any]) -> tuple[Splits, dict[str, Any]]:
    """Return the splits transformed as `data` says, and the origin with the transforms and the levels left."""
    num_levels = origin["num_levels"]

    def stream(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for images, labels, files in chunks:
            for part in parts(images, data):
                yield Chunk(
                    transform(images[part], num_levels, data),
                    labels[part] if labels is not None else None,
                    files[part] if files is not None else None,
                )

    done = {"num_levels": levels_left(num_levels, data.num_bits), "transforms": describe(num_levels, data)}
    return {split: stream(chunks) for split, chunks in splits.items()}, origin | done
