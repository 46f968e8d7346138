"""Which images of a run are new since an earlier one, by their digests."""

from collections import Counter
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flows.core import layout
from flows.core.documents import parse
from flows.core.errors import UserError
from flows.core.files import parse_json, write_whole
from flows.images.download import line_for_name
from flows.images.image_set import (
    DESCRIPTION,
    SPLITS,
    Description,
    ImageSet,
    digests_of,
    files_of,
    labels_of,
    load_array,
    save_images,
    spread,
)
from flows.process.inputs import content
from flows.repository.commit import Commit
from flows.repository.files import read_content


class Arrivals(NamedTuple):
    """How many images of a run are not among those of an earlier one, and how many of those are gone."""

    added: int
    removed: int
    since: str

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)

    def __str__(self) -> str:
        return f"{self.added:,} added and {self.removed:,} removed since {self.since}"


def count_arrivals(images: ImageSet, earlier: Commit) -> Arrivals:
    """Return how many images of a set are new since an earlier run.  Raises UserError (exit 5) if its are lost."""
    ours, theirs = set[bytes]().union(*map(images.digests, images.splits)), digests_at(earlier)
    return Arrivals(len(ours - theirs), len(theirs - ours), earlier.repository.name_of(earlier.digest))


def digests_at(earlier: Commit) -> set[bytes]:
    """Return the digests of all images of an earlier run.  Raises UserError (exit 5) if they cannot be had."""
    found: set[bytes] = set()
    with earlier.files() as files:
        for split in SPLITS:
            if recorded := read_content(files, digests_of(layout.IMAGES, split)):
                found |= set(map(bytes, np.load(BytesIO(recorded), allow_pickle=False)))
    return found


def has_same_images(images: ImageSet, earlier: Commit) -> bool:
    """Whether the images are those of an earlier run by equal code, in splits and classes, in any order."""
    # Lost, or no answer.
    with suppress(UserError, ValueError, EOFError), earlier.files() as files:
        described = parse(Description, read_content(files, layout.IMAGES / DESCRIPTION) or b"", DESCRIPTION)
        return (described.splits, described.class_names) == (images.splits, images.class_names) and all(
            count_images(*(content(place(images.lies_in, split)) for place in (digests_of, labels_of)))
            == count_images(*(read_content(files, place(layout.IMAGES, split)) for place in (digests_of, labels_of)))
            for split in images.splits
        )
    return False


def count_images(digests: bytes | None, labels: bytes | None) -> Counter[tuple[bytes, int | None]]:
    """Return how often each image of a split is there, by its digest and its label, if it has one."""
    rows = np.load(BytesIO(digests or b""), allow_pickle=False)
    numbers = np.load(BytesIO(labels), allow_pickle=False).tolist() if labels else [None] * len(rows)
    return Counter(zip(map(bytes, rows), numbers, strict=True))


def recorded_files(earlier: Commit) -> dict[str, set[bytes]]:
    """Return the digests of the images of a run, by the name of their file; {} if DVC's cache here lacks its files."""
    found: dict[str, set[bytes]] = {}
    with earlier.files(remote=False) as files:
        for split in SPLITS:
            lines, digests = (read_content(files, place(layout.IMAGES, split)) for place in (files_of, digests_of))
            if lines and digests:
                rows = map(bytes, np.load(BytesIO(digests), allow_pickle=False))
                for line, digest in zip(lines.splitlines(), rows, strict=True):
                    found.setdefault(str(parse_json(line)), set()).add(digest)
    return found


def damaged_files(earlier: Commit) -> set[str]:
    """Return the files that a run left out as damaged.  Raises UserError if DVC's cache here lacks its files."""
    with earlier.files(remote=False) as files:
        described = parse(Description, read_content(files, layout.IMAGES / DESCRIPTION) or b"", DESCRIPTION)
    return {*(described.damaged or ())}


def write_new_images(images: ImageSet, earlier: Commit, most: int, out: Path) -> None:
    """Write the images of a set that an earlier run did not have, at most so many, evenly spread, as a set in `out`.

    They are its test images, with the names of their files.  Raises UserError (exit 5) if that run's cannot be read.
    """
    known = digests_at(earlier)
    places = [
        (split, number)
        for split in images.splits
        for number, digest in enumerate(load_array(digests_of(images.lies_in, split)))
        if bytes(digest) not in known
    ]
    chosen = [places[place] for place in spread(np.arange(len(places)), most)]
    named = {split: images.file_names(split, {number for each, number in chosen if each == split}) for split in SPLITS}
    array = np.stack([images[split][number] for split, number in chosen])
    described = {"name": images.description.name, "num_levels": images.num_levels}
    described["transforms"] = images.description.transforms
    save_images(out, {"train": array[:0], "test": array}, described)
    if all(named[split] for split, _ in chosen):
        write_whole(
            files_of(out, "test"), "".join(f"{line_for_name(named[split][number])}\n" for split, number in chosen)
        )
