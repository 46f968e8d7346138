"""Read the source that `data:` names, transform its images and write them as arrays."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.files import write_whole, writing
from flows.core.folders import writing_folder
from flows.images.folder import read_folder
from flows.images.publishers import read_digits, read_imagenet, read_published
from flows.images.splitting import TEST, TRAIN, Batch, Source, division, hold_out_validation
from flows.images.store import SPLITS, files_of, write_array, write_description, write_header
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

    Returns what `dataset.json` says of its origin.  `downloads` is a folder for temporary files.  Raises UserError:
    exit 5 for a missing, damaged or unexpected file, 4 for images that are not levels of one shape, 2 for transforms
    that the images do not allow, 6 if another process is writing the folder.
    """
    with writing_folder(out) as folder:
        found = open_source(data, source, downloads)
        shapes = write_splits(folder, found, data)
        origin = found.origin()
        levels = origin["num_levels"]
        origin |= {"num_levels": levels_left(levels, data.num_bits), "transforms": describe(levels, data)}
        write_description(folder, shapes, origin | {"name": data.name})
    return origin


def open_source(data: "Data", source: Path | None, downloads: Path) -> Source:
    """Return the images that the parameters name."""
    match data.name:
        case "digits":
            images, labels, splits = read_digits(data.test_fraction, data.validation_fraction, data.split_seed)
            return Source([Batch(images, 17, labels)], splits, lambda: DIGITS | {"split": division(data)})
        case "image_folder":
            assert source  # checked with the parameters
            return read_folder(source, data)
        case _:
            return open_published(data, source, downloads)


def open_published(data: "Data", source: Path | None, downloads: Path) -> Source:
    """Return the images of a published set."""
    from flows.images.catalogue import PUBLISHED, PublishedSet  # torchvision: 2 s, which other sources do not need

    entry = PUBLISHED[data.name]
    splits = np.repeat(np.array([TRAIN, TEST], np.int8), [entry.num_train, entry.num_test])
    hold_out_validation(data.name, splits, data.validation_fraction, data.split_seed)
    if isinstance(entry, PublishedSet):
        batches: Iterable[Batch] = read_published(entry, source, downloads)
    else:
        batches = read_imagenet(entry, source)
    origin = {
        "title": entry.title,
        "homepage": entry.homepage,
        "licence": entry.licence,
        "num_levels": 256,
        "published_train": entry.num_train,
        "published_test": entry.num_test,
        "split": division(data, "as published"),
    }
    return Source(batches, splits, lambda: origin)


def write_splits(folder: Path, source: Source, data: "Data") -> dict[str, tuple[int, ...]]:
    """Write the transformed images of each split, their labels and the names of their files; return the shapes.

    Raises UserError (exit 5) unless the source holds as many images as it has splits for.
    """
    arrays: dict[str, BinaryIO] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    labels: defaultdict[str, list[int]] = defaultdict(list)
    files: defaultdict[str, list[str]] = defaultdict(list)
    count = 0
    with ExitStack() as stack:
        for batch in source.batches:
            first, count = count, count + len(batch.images)
            numbers = source.splits[first:count]
            for part in parts(batch.images, data):
                images = transform(batch.images[part], batch.num_levels, data)
                for number in np.unique(numbers[part]):
                    split, chosen = SPLITS[number], np.flatnonzero(numbers[part] == number)
                    if split not in arrays:
                        arrays[split] = stack.enter_context(writing(folder / f"{split}.npy"))
                        shapes[split] = int((source.splits == number).sum()), *images.shape[1:]
                        write_header(arrays[split], shapes[split], images.dtype)
                    arrays[split].write(np.ascontiguousarray(images[chosen]).data)
                    if batch.labels is not None:
                        labels[split] += batch.labels[part][chosen].tolist()
                    if batch.file is not None:
                        files[split] += [batch.file] * len(chosen)
        if count != len(source.splits):
            reason = f"{count:,} images, but {len(source.splits):,} were expected"
            raise UserError(f"data.{data.name}: {reason}; fetch the files again", Exit.MISSING)
    for split, classes in labels.items():
        write_array(folder / f"{split}_labels.npy", [np.array(classes, np.int64)])
    for split, names in files.items():
        write_whole(files_of(folder, split), "".join(f"{line_of(name)}\n" for name in names))
    return shapes


def line_of(name: str) -> str:
    """Return the name of a file as JSON.  Strict readers of JSON refuse a name that is not valid UTF-8."""
    return json.dumps(os.fsencode(name).decode(errors="backslashreplace"))
