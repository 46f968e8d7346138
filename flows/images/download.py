"""The stage `download`: read the source that `data:` names, transform its images and write them as an image set."""

import json
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.files import contains, write_whole, writing, writing_folder
from flows.images.folder import read_folder
from flows.images.image_set import (
    FEWEST_COMPARED,
    SPLITS,
    files_of,
    labels_of,
    open_images,
    write_array,
    write_description,
    write_header,
)
from flows.images.publishers import read_digits, read_published
from flows.images.splitting import Source
from flows.images.transforms import describe, levels_left, parts, transform

if TYPE_CHECKING:
    from flows.core.params import Data


log = logging.getLogger(__name__)


def download(data: "Data", *, out: Path, downloads: Path) -> None:
    """Write the images that the parameters name, and log their origin.

    Raises UserError: exit 2 if that would remove images of the source or add to them, 5 for a relative source that does
    not exist.  Also raises what `write_images` raises.
    """
    source = Path(data.source).expanduser() if data.source is not None else None
    if source and (contains(out, source) or contains(source, out)):
        reason = f"data.source {source} and {out}, which is replaced, must lie apart"
        raise UserError(f"{reason}; move the images to another folder", Exit.USAGE)
    if source and not source.is_absolute() and not source.exists():
        reason = f"data.source: {source} does not exist in {Path.cwd()}"
        raise UserError(f"{reason}; name its absolute path, which runs of the Prefect flow find, too", Exit.MISSING)
    origin = write_images(data, source=source, out=out, downloads=downloads)
    log.info("%s: %s, transforms: %s -> %s", data.name, origin["title"], origin["transforms"], out)
    if (num_test := open_images(out).description.num_test) < FEWEST_COMPARED:
        needed = f"the stage `sample` compares with {FEWEST_COMPARED} or more; add some, or raise data.test_fraction"
        log.warning("%s: only %d test images; %s", out, num_test, needed)


def write_images(data: "Data", *, source: Path | None, out: Path, downloads: Path) -> dict[str, Any]:
    """Write an image set (see `flows.images.image_set`) into the folder `out`, completely or not at all.

    Returns what `dataset.json` says of its origin.  `downloads` is a folder for temporary files.  Raises UserError:
    exit 5 for a missing, damaged or unexpected file, 4 for images that are not levels of one shape, 2 for transforms
    that the images do not allow.
    """
    with writing_folder(out) as folder:
        match data.name:
            case "digits":
                images = read_digits(data)
            case "image_folder":
                assert source  # checked with the parameters
                images = read_folder(source, data)
            case _:
                images = read_published(data, source, downloads)
        shapes = write_splits(folder, images, data)
        levels = images.origin["num_levels"]
        transformed = {"num_levels": levels_left(levels, data.num_bits), "transforms": describe(levels, data)}
        origin = images.origin | transformed
        write_description(folder, shapes, origin | {"name": data.name})
    return origin


def write_splits(folder: Path, source: Source, data: "Data") -> dict[str, tuple[int, ...]]:
    """Write the transformed images of each split, their labels and the names of their files; return the shapes.

    Raises UserError (exit 5) unless the source holds as many images as it has splits for.
    """
    arrays: dict[str, BinaryIO] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    labels: list[np.ndarray] = []
    files: list[str] = []
    count = 0
    with ExitStack() as stack:
        for batch in source.batches:
            first, count = count, count + len(batch.images)
            if batch.labels is not None:
                labels.append(batch.labels)
            if batch.file is not None:
                files += [batch.file] * len(batch.images)
            for part in parts(batch.images, data):
                images = transform(batch.images[part], batch.num_levels, data)
                numbers = source.splits[first:count][part]
                for number in np.unique(numbers):
                    split = SPLITS[number]
                    if split not in arrays:
                        arrays[split] = stack.enter_context(writing(folder / f"{split}.npy"))
                        shapes[split] = int((source.splits == number).sum()), *images.shape[1:]
                        write_header(arrays[split], shapes[split], images.dtype)
                    arrays[split].write(np.ascontiguousarray(images[np.flatnonzero(numbers == number)]).data)
        if count != len(source.splits):
            reason = f"{count:,} images, but {len(source.splits):,} were expected"
            raise UserError(f"data.{data.name}: {reason}; fetch the files again", Exit.MISSING)
    for split in shapes:
        chosen = np.flatnonzero(source.splits == SPLITS.index(split))
        if labels:
            write_array(labels_of(folder, split), [np.concatenate(labels)[chosen].astype(np.int64)])
        if files:
            write_whole(files_of(folder, split), "".join(f"{line_of(files[number])}\n" for number in chosen))
    return shapes


def line_of(name: str) -> str:
    """Return the name of a file as JSON.  Strict readers of JSON refuse a name that is not valid UTF-8."""
    return json.dumps(os.fsencode(name).decode(errors="backslashreplace"))
