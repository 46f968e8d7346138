"""The stage `download`: read the source that `data:` names, transform its images and write them as an image set."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.files import contains, replace_file, replace_folder, write_whole
from flows.images.folder import open_source, read_folder
from flows.images.image_set import (
    FEWEST_COMPARED,
    SPLITS,
    digests_of,
    files_of,
    labels_of,
    open_images,
    sources_of,
    write_array,
    write_description,
    write_header,
)
from flows.images.publishers import read_digits, read_published
from flows.images.splitting import DIGEST_BYTES, SourceImages, digest_of, require_splits, split_of
from flows.images.transforms import describe_transforms, levels_left, list_transforms, parts, transform
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Data

log = logging.getLogger(__name__)


def download(data: "Data", *, out: Path, downloads: Path) -> None:
    """Write the images that the parameters name, and log their origin.

    Raises UserError: exit 2 if that would remove images of the source or add to them, 5 for a source that does not
    exist, and what `write_images` raises.
    """
    source = None if data.is_published else Path(data.source)
    if source and (contains(out, source) or contains(source, out)):
        reason = f"data.source {source} and {out}, which is replaced, must lie apart"
        raise UserError(f"{reason}; move the images to another folder", Exit.USAGE)
    if source and not source.exists():
        raise UserError(f"data.source: {source} does not exist in {Path.cwd()}; correct the path", Exit.MISSING)
    origin = write_images(data, source=source, out=out, downloads=downloads)
    log.info("%s: %s, transforms: %s -> %s", data.name, origin["title"], origin["transforms"], out)
    if (num_test := open_images(out).description.num_test) < FEWEST_COMPARED:
        drawn = f"data.test_fraction {data.test_fraction:g} and data.split_seed {data.split_seed}"
        needed = f"the stage `sample` compares with {FEWEST_COMPARED} or more; add some, or change {drawn}"
        log.warning("%s: only %d test images; %s", out, num_test, needed)


@contextmanager
def require_unchanged(source: Path | None) -> Iterator[None]:
    """Raise UserError (exit 6) if the files of the source change while the block reads them.

    DVC looks at them after the command, and would record the changed ones as those that were read.
    """
    before = list_source(source) if source else None
    yield
    if source and list_source(source) != before:
        reason = f"{source} changed while it was read, so what was read is not recorded"
        raise UserError(f"{reason}; run again when no more files arrive", Exit.BUSY)


def list_source(source: Path) -> dict[str, tuple[int, int]]:
    """Return the sizes and times of all files of a source, by name.  Raises OSError that names one that is gone."""
    paths = [source] if source.is_file() else [path for path in source.rglob("*") if not path.is_dir()]
    return {str(path): (state.st_size, state.st_mtime_ns) for path in paths for state in [path.lstat()]}


def write_images(data: "Data", *, source: Path | None, out: Path, downloads: Path) -> dict[str, Any]:
    """Write an image set (see `flows.images.image_set`) into the folder `out`, completely or not at all.

    Returns what `dataset.json` says of its origin.  `downloads` is a folder for temporary files.  Raises UserError:
    exit 5 for a missing, damaged or unexpected file, 4 for images that are not levels of one shape, 2 for transforms
    that the images do not allow, 6 for a source that changes meanwhile.
    """
    with replace_folder(out) as folder, require_unchanged(source), ExitStack() as stack:
        match data.name:
            case "digits":
                images = read_digits(data)
            case "image_folder":
                assert source  # checked with the parameters
                images = read_folder(stack.enter_context(open_source(source)), data)
            case _:
                images = read_published(data, source, downloads)
        counts = write_set(folder, images, data)
        require_splits(images, counts, data)
    return images.origin


def write_set(folder: Path, source: SourceImages, data: "Data") -> Counter[Split]:
    """Write the images of a source into an empty folder, as a set, and return how many there are in each split.

    The origin of the source gets the transforms.
    """
    shapes = write_splits(folder, source, data)
    levels = source.origin["num_levels"]
    source.origin.update(num_levels=levels_left(levels, data.num_bits), transforms=describe_transforms(levels, data))
    if steps := list_transforms(levels, data):
        source.origin["transformed"] = [*steps]
    write_description(folder, shapes, source.origin | {"name": data.name})
    return Counter({split: shapes[split][0] for split in SPLITS if split in shapes})


class Part(NamedTuple):
    """Transformed images (n,C,H,W) of a split, their labels (n,), and the name of their file."""

    split: Split
    images: np.ndarray
    digests: list[bytes]
    sources: list[bytes]
    """The digests of the pixels before the transforms."""
    labels: np.ndarray | None
    file: str | None


def divide(source: SourceImages, data: "Data") -> Iterator[Part]:
    """Yield the transformed images of a source, which is read once, in the order of the source within each split.

    Without copies, the origin of the source says how many were left out.
    """
    known: set[bytes] = set()
    left_out = 0
    for batch in source.batches:
        sources = batch.images if batch.sources is None else batch.sources
        is_plain = describe_transforms(batch.num_levels, data) == "none"
        for some in parts(batch.images, data):
            images = transform(batch.images[some], batch.num_levels, data)
            digests = [digest_of(image) for image in images]
            before = digests if is_plain else [digest_of(image) for image in sources[some]]
            splits = np.array([SPLITS.index(split_of(digest, batch.split, source, data)) for digest in before])
            kept = np.ones(len(images), bool)
            if data.without_copies:
                for place, digest in enumerate(digests):
                    kept[place] = digest not in known
                    known.add(digest)
                left_out += int(np.count_nonzero(~kept))
            for number in np.unique(splits[kept]).tolist():
                chosen = np.flatnonzero(kept & (splits == number))
                labels = None if batch.labels is None else batch.labels[some][chosen]
                after, of_source = ([every[place] for place in chosen] for every in (digests, before))
                yield Part(SPLITS[number], images[chosen], after, of_source, labels, batch.file)
    if data.without_copies:
        source.origin["split"] += f"; {left_out:,} exact copies of other images left out"


class Written:
    """The array of a split while it is written, and what is kept of each of its images."""

    def __init__(self, file: BinaryIO, images: np.ndarray) -> None:
        self.file, self.dtype, self.shape = file, images.dtype, images.shape[1:]
        self.digests, self.sources, self.labels, self.names = bytearray(), bytearray(), list[int](), list[str]()
        write_header(file, (0, *self.shape), self.dtype)  # the number is known at the end

    def __len__(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def add(self, part: Part) -> None:
        """Append images."""
        self.file.write(np.ascontiguousarray(part.images).data)
        self.digests += b"".join(part.digests)
        self.sources += b"".join(part.sources)
        if part.labels is not None:
            self.labels += part.labels.tolist()
        if part.file is not None:
            self.names += [part.file] * len(part.images)

    def finish(self) -> None:
        """Write the number of images into the array's header."""
        self.file.seek(0)
        write_header(self.file, (len(self), *self.shape), self.dtype)


def write_splits(folder: Path, source: SourceImages, data: "Data") -> dict[str, tuple[int, ...]]:
    """Write the transformed images of each split, their labels, digests and names of files; return the shapes."""
    splits: dict[Split, Written] = {}
    with ExitStack() as stack:
        for part in divide(source, data):
            if part.split not in splits:
                file = stack.enter_context(replace_file(folder / f"{part.split}.npy"))
                splits[part.split] = Written(file, part.images)
            splits[part.split].add(part)
        for written in splits.values():
            written.finish()
    for split, written in splits.items():
        write_array(digests_of(folder, split), [np.frombuffer(written.digests, np.uint8).reshape(-1, DIGEST_BYTES)])
        if describe_transforms(source.origin["num_levels"], data) != "none":
            write_array(sources_of(folder, split), [np.frombuffer(written.sources, np.uint8).reshape(-1, DIGEST_BYTES)])
        if written.labels:
            write_array(labels_of(folder, split), [np.array(written.labels, np.int64)])
        if written.names:
            write_whole(files_of(folder, split), "".join(f"{line_for_name(name)}\n" for name in written.names))
    return {split: (len(written), *written.shape) for split, written in splits.items()}


def line_for_name(name: str) -> str:
    """Return the name of a file as JSON.  Strict readers of JSON refuse a name that is not valid UTF-8."""
    return json.dumps(os.fsencode(name).decode(errors="backslashreplace"))
