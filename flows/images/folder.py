"""Read a folder of images, with or without train and test parts, with or without a folder per class.

Every file is read twice: first its head, so that unusable files are named before anything is written, then its
pixels, as a stream.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from tqdm import tqdm

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.images.array_files import ROWS
from flows.images.picture_files import advice, inspect, read
from flows.images.publishers import Chunk, Splits
from flows.images.reading import BadImageError, Head, Kind
from flows.images.scanning import Found, find_images, listed
from flows.images.splitting import divide, division, parts_of
from flows.images.store import SPLITS, fitting

if TYPE_CHECKING:
    from flows.core.params import Data

log = logging.getLogger(__name__)

MOST_REASONS, MOST_NAMED = 20, 100


def read_folder(source: Path, data: "Data") -> tuple[Splits, dict[str, Any]]:
    """Return the images in `source`, a folder or one .npy file, and what `dataset.json` says of them.

    They are as they are stored, in the order of their names; `divide` says how they are divided.  Chunks may differ in
    shape: gray and RGB images together need `data.grayscale`, several sizes `data.resize`.

    Raises UserError that lists every unusable file (exit 5 if one is damaged, else 4), also when the splits are read.
    Raises what `find_images` and `divide` raise, and UserError (exit 4) for images that remain of several kinds.
    """
    found = find_images(source)
    heads = look_at_all(found)
    num_levels = agree(found, heads, grayscale=data.grayscale, resized=data.resize is not None)
    chosen = divide(source, found.names, [head.num_images for head in heads], data)
    labels = class_labels(found)

    def stream(split: int) -> Iterator[Chunk]:
        return batched(pixels(found, heads, chosen == split, labels))

    splits: Splits = {split: stream(number) for number, split in enumerate(SPLITS) if number in chosen}
    return splits, origin_of(found, heads, num_levels, data)


def origin_of(found: Found, heads: list[Head], num_levels: int, data: "Data") -> dict[str, Any]:
    """Return what `dataset.json` says of the images in a folder."""
    source, parts = found.source, parts_of(found.names)
    described = ", ".join(f"{part} for {split}" for part, split in parts.items())
    given = f"by its folders: {described}" if described else None
    name = source.resolve().name if source.name in ("", "..") else source.name
    return {
        "title": visible(name) or "images",
        "homepage": "a folder",
        "licence": "not stated",
        "formats": remark(source, heads),
        "split": given if "validation" in parts.values() else division(data, given),
        "num_levels": num_levels,
    }


def look_at_all(found: Found) -> list[Head]:
    """Return the heads of all files.  Raises UserError that lists every unusable file."""
    heads: list[Head] = []
    known: dict[Head, Head] = {}
    for name in tqdm(found.names, "looking at files", disable=None, leave=False):
        try:
            head = inspect(found.root / name)
        except BadImageError as error:
            refuse(found, name, error)
        heads.append(known.setdefault(head, head))  # one object for all equal heads
    return heads


def refuse(found: Found, name: str, error: BadImageError) -> NoReturn:
    """Raise UserError that lists a file with its error, and all other unusable files, whose pixels are read for it."""
    problems = {name: error}
    for other in found.names:
        if other != name:
            try:
                deque(read(found.root / other), maxlen=0)
            except BadImageError as another:
                problems[other] = another
    complain(found.source, problems, len(found.names))


def agree(found: Found, heads: list[Head], *, grayscale: bool, resized: bool, remedy: str = "") -> int:
    """Return the number of levels.

    Raises UserError (exit 4) unless the transforms make all images one kind.  The error ends with `remedy` or, by
    default, with the parameters to set.
    """
    examples: dict[Kind, str] = {}
    for name, head in zip(found.names, heads, strict=True):
        examples.setdefault(head.kind, name)
    kinds = {kind.after(grayscale=grayscale, resized=resized) for kind in examples}
    if len(kinds) == 1:
        return int(2 ** kinds.pop().num_bits)
    shown = ", ".join(
        f"{listed([name])} is {'x'.join(map(str, kind.shape))} of {kind.num_bits} bits"
        for kind, name in list(examples.items())[:3]
    )
    reason = f"images of {len(examples)} kinds: {shown}; {remedy or advice(kinds)}"
    raise UserError(f"{found.source}: {reason}", Exit.INVALID_DATA)


def class_labels(found: Found) -> list[int] | None:
    """Return the class of each file, the number of its folder below the split; None unless every file lies in one."""
    first = 1 if parts_of(found.names) else 0
    folders = ["/".join(name.split("/")[first:-1]) for name in found.names]
    classes = sorted(set(folders))
    if "" in classes:
        if len(classes) > 1:
            stray = [name for name, folder in zip(found.names, folders, strict=True) if not folder]
            text = "%s: images have no labels, since %d files are in no class folder, such as %s"
            log.warning(text, visible(str(found.source)), len(stray), listed(stray[:3]))
        return None
    if found.empty:
        log.warning("%s: classes without images: %s", visible(str(found.source)), listed(sorted(found.empty)))
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[folder] for folder in folders]


def pixels(
    found: Found, heads: list[Head], wanted: np.ndarray, labels: list[int] | None
) -> Iterator[tuple[np.ndarray, int | None, str]]:
    """Yield the images where `wanted` (N,) is true, file by file, with label and name.

    Raises UserError that lists every file that cannot be read, also if one changed since its head was read.
    """
    end = 0
    names = tqdm(found.names, "reading images", disable=None, leave=False)
    for number, (name, head) in enumerate(zip(names, heads, strict=True)):
        place, end = end, end + head.num_images
        if not wanted[place:end].any():
            continue
        try:
            for images in read(found.root / name, head):
                these = wanted[place : place + len(images)]
                place += len(images)
                if these.any():
                    label = labels[number] if labels else None
                    yield images if these.all() else images[these], label, name
        except BadImageError as error:
            refuse(found, name, error)


def batched(parts: Iterator[tuple[np.ndarray, int | None, str]]) -> Iterator[Chunk]:
    """Join consecutive images of one shape: about a thousand, or as many as fit into a chunk."""
    waiting: list[np.ndarray] = []
    labels: list[int | None] = []
    files: list[str] = []

    def joined() -> Chunk:
        images = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
        return Chunk(images, None if None in labels else np.array(labels), files)

    for images, label, name in parts:
        most = fitting(ROWS, images[0].nbytes)
        if waiting and (len(labels) + len(images) > most or images.shape[1:] != waiting[0].shape[1:]):
            yield joined()
            waiting, labels, files = [], [], []
        waiting.append(images)
        labels += [label] * len(images)
        files += [name] * len(images)
        if len(labels) >= most:  # now: after the next part, two large images would be in memory
            yield joined()
            waiting, labels, files = [], [], []
    if waiting:
        yield joined()


def complain(source: Path, problems: dict[str, BadImageError], count: int) -> NoReturn:
    """Raise UserError that lists the unusable files by reason."""
    names: dict[str, list[str]] = {}
    for name, error in sorted(problems.items()):
        names.setdefault(str(error), []).append(name)
    reasons = []
    for reason, files in names.items():
        others = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
        reasons.append(f"{listed(files[:MOST_NAMED])}{others}: {reason}")
    more = f"; and {len(reasons) - MOST_REASONS} other reasons" if len(reasons) > MOST_REASONS else ""
    damaged = any(error.code is Exit.MISSING for error in problems.values())
    raise UserError(
        f"{source}: {len(problems)} of {count} files cannot be used: {'; '.join(reasons[:MOST_REASONS])}{more}",
        Exit.MISSING if damaged else Exit.INVALID_DATA,
    )


def remark(source: Path, heads: list[Head]) -> str:
    """Return the number of files by format, in words.  Warn of lossy files and of images that EXIF turns."""
    shown, formats = visible(str(source)), sorted(Counter(head.format for head in heads).items())
    num_turned = sum(head.turned for head in heads)
    for name, count in formats:
        if name.startswith(("JPEG", "lossy")):
            log.warning("%s: %d %s files: their bits/dim are those of decoded %s", shown, count, name, name)
    if num_turned:
        log.warning("%s: %d images turned as their EXIF tags say", shown, num_turned)
    return ", ".join(f"{count} {name}" for name, count in formats)
