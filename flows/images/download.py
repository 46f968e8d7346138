"""The stage `download`: read the source that `data:` names, transform its images and write them as an image set."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.files import contains, replace_file, replace_folder, write_whole
from flows.images.folder import open_source
from flows.images.image_set import (
    FEWEST_COMPARED,
    SPLITS,
    digests_of,
    files_of,
    labels_of,
    open_images,
    sources_of,
    valid_text,
    write_array,
    write_description,
    write_header,
)
from flows.images.picture import Picture
from flows.images.publishers import read_digits, read_published
from flows.images.reading import read_folder
from flows.images.source import Source
from flows.images.splitting import DIGEST_BYTES, digest_of, require_splits, split_of
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


def write_set(folder: Path, source: Source, data: "Data") -> Counter[Split]:
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


class Digests(NamedTuple):
    """The digests of the pixels of some images, and of what they were before the transforms."""

    pixels: list[bytes]
    original: list[bytes]


def divide(source: Source, data: "Data") -> Iterator[tuple[Picture, Digests]]:
    """Yield the transformed pictures of a source, each of one split, in the order of the source within each split.

    The source is read once.  Without copies, its origin says how many were left out.
    """
    known: set[bytes] = set()
    left_out = 0
    for picture in source.pictures:
        is_plain = not list_transforms(picture.num_levels, data)
        for some in map(picture.part, parts(picture.pixels, data)):
            pixels = transform(some.pixels, some.num_levels, data)
            digests = [digest_of(image) for image in pixels]
            before = digests if is_plain else [digest_of(image) for image in some.original]
            splits = np.array([SPLITS.index(split_of(digest, some.split, source, data)) for digest in before])
            kept = np.ones(len(pixels), bool)
            if data.without_copies:
                for place, digest in enumerate(digests):
                    kept[place] = digest not in known
                    known.add(digest)
                left_out += int(np.count_nonzero(~kept))
            for number in np.unique(splits[kept]).tolist():
                chosen = np.flatnonzero(kept & (splits == number))
                of_split = some._replace(split=SPLITS[number]).part(chosen, pixels[chosen])
                yield of_split, Digests(*([every[place] for place in chosen] for every in (digests, before)))
    if data.without_copies:
        source.origin["split"] += f"; {left_out:,} exact copies of other images left out"


class SplitWriter:
    """The array of a split while it is written, and what is kept of each of its images."""

    def __init__(self, file: BinaryIO, pixels: np.ndarray) -> None:
        self.file, self.dtype, self.shape = file, pixels.dtype, pixels.shape[1:]
        self.digests, self.sources, self.labels, self.names = bytearray(), bytearray(), list[int](), list[str]()
        write_header(file, (0, *self.shape), self.dtype)  # the number is known at the end

    def __len__(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def add(self, picture: Picture, digests: Digests) -> None:
        """Append a picture."""
        self.file.write(np.ascontiguousarray(picture.pixels).data)
        self.digests += b"".join(digests.pixels)
        self.sources += b"".join(digests.original)
        if picture.labels is not None:
            self.labels += picture.labels.tolist()
        if picture.name is not None:
            self.names += [picture.name] * len(picture.pixels)

    def finish(self) -> None:
        """Write the number of images into the array's header."""
        self.file.seek(0)
        write_header(self.file, (len(self), *self.shape), self.dtype)


def write_splits(folder: Path, source: Source, data: "Data") -> dict[str, tuple[int, ...]]:
    """Write the transformed images of each split, their labels, digests and names of files; return the shapes."""
    splits: dict[Split, SplitWriter] = {}
    with ExitStack() as stack:
        for picture, digests in divide(source, data):
            assert picture.split
            if picture.split not in splits:
                file = stack.enter_context(replace_file(folder / f"{picture.split}.npy"))
                splits[picture.split] = SplitWriter(file, picture.pixels)
            splits[picture.split].add(picture, digests)
        for written in splits.values():
            written.finish()
    for split, written in splits.items():
        write_array(digests_of(folder, split), [np.frombuffer(written.digests, np.uint8).reshape(-1, DIGEST_BYTES)])
        if list_transforms(source.origin["num_levels"], data):
            write_array(sources_of(folder, split), [np.frombuffer(written.sources, np.uint8).reshape(-1, DIGEST_BYTES)])
        if written.labels:
            write_array(labels_of(folder, split), [np.array(written.labels, np.int64)])
        if written.names:
            write_whole(files_of(folder, split), "".join(f"{line_for_name(name)}\n" for name in written.names))
    return {split: (len(written), *written.shape) for split, written in splits.items()}


def line_for_name(name: str) -> str:
    """Return the name of a file as JSON."""
    return json.dumps(valid_text(name))
