"""A folder of images as a set: with or without train and test, with or without a folder per class.

Files are looked at twice: their heads first, so that what cannot be used is named before anything is written, and
then their pixels, which stream through.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flows.errors import Exit, UserError
from flows.picture_files import ROWS, SUFFIXES, BadImageError, Kind, advice, inspect, read
from flows.publishers import Chunk, Splits, held_out

log = logging.getLogger(__name__)

MOST_NAMED = 1000
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev", "eval")


class ImageFolder(NamedTuple):
    """What is known of a folder before its pixels are read."""

    splits: Splits
    num_levels: int
    formats: str
    """How many files of which format."""
    split: str | None
    """How the folder itself splits the images; None when it does not."""


class Survey(NamedTuple):
    """What the heads of all files say."""

    counts: list[int]
    """Images by file."""
    examples: dict[Kind, list[str]]
    """Up to three files of each kind."""
    formats: Counter[str]
    num_turned: int


def read_folder(
    source: Path,
    *,
    test_fraction: float,
    split_seed: int,
    grayscale: bool,
    resized: bool,
    transform: Callable[[np.ndarray, int], np.ndarray],
) -> ImageFolder:
    """The images in `source`, a folder or one .npy file, each transformed, in the order of their names.

    Without train and test parts a seeded share is held out.  Gray and RGB images together need `grayscale`,
    several sizes `resized`.  Raises UserError that lists every file that cannot be used (exit 5 when one is damaged or
    none is there, else 4); the splits raise it as they are read.
    """
    root, names = find_images(source)
    survey = look_at_all(root, names)
    num_levels = agree(root, survey, grayscale=grayscale, resized=resized)
    chosen = choose(root, names, survey.counts, test_fraction, split_seed)
    labels = class_labels(root, names)
    problems: dict[str, BadImageError] = {}

    def stream(wanted: np.ndarray, *, last: bool) -> Iterator[Chunk]:
        empty = True
        for images, chunk_labels, files in batched(pixels(root, names, survey.counts, wanted, labels, problems)):
            empty = False
            yield Chunk(transform(images, num_levels), chunk_labels, files)
        if empty and not last:  # there will be no other split to read
            problems.update(all_problems(root, names, problems))
        if empty or last:
            complain(root, problems, len(names))

    splits = Splits(stream(~chosen, last=False), stream(chosen, last=True))
    given = f"by its {' and '.join(sorted({part_of(name) for name in names}))}" if has_splits(names) else None
    return ImageFolder(splits, num_levels, remark(root, survey), given)


def find_images(source: Path) -> tuple[Path, list[str]]:
    """The folder, and the names of the image files there, sorted.  Raises UserError, exit 5 for what cannot be read."""
    try:
        return (source.parent, [source.name]) if source.is_file() else (source, images_below(source))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable", Exit.MISSING) from error


def images_below(root: Path) -> list[str]:
    """Names of the image files, sorted.  Raises UserError, exit 5 without any, 4 for links out of `root`; OSError."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder of images", Exit.MISSING)
    names, ignored, outside = [], [], []
    for path in files_below(root):
        relative = str(path.relative_to(root))
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            outside.append(relative)
        elif path.suffix.lower() in SUFFIXES:
            names.append(relative)
        else:
            ignored.append(relative)
    if outside:
        raise UserError(f"{root}: links lead out of the folder: {listed(outside)}; copy the files", Exit.INVALID_DATA)
    if not names:
        raise UserError(f"{root}: holds no {', '.join(sorted(SUFFIXES))} files", Exit.MISSING)
    if ignored:
        log.warning("%s: %d files are no images, such as %s", root, len(ignored), listed(sorted(ignored)[:3]))
    return sorted(names)


def files_below(root: Path) -> Iterator[Path]:
    """Files, and links to folders, in all folders.  Raises OSError where `os.walk` would go on without a folder."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=refuse):
        yield from (Path(folder, name) for name in files)
        yield from (path for name in folders if (path := Path(folder, name)).is_symlink())


def look_at_all(root: Path, names: list[str]) -> Survey:
    """The heads of all files.  Raises UserError that lists every file that cannot be used."""
    survey = Survey([], {}, Counter(), 0)
    problems, num_turned = {}, 0
    for name in names:
        try:
            head = inspect(root / name)
        except BadImageError as error:
            problems[name] = error
            continue
        examples = survey.examples.setdefault(head.kind, [])
        if len(examples) < 3:
            examples.append(name)
        survey.counts.append(head.num_images)
        survey.formats[head.format] += 1
        num_turned += head.turned
    if problems:
        # Of a file with a good head the pixels may be damaged all the same: every file is named once, here.
        complain(root, all_problems(root, names, problems), len(names))
    return survey._replace(num_turned=num_turned)


def all_problems(root: Path, names: list[str], known: dict[str, BadImageError]) -> dict[str, BadImageError]:
    """The known problems, and those that reading the pixels of the other files meets."""
    problems = dict(known)
    for name in names:
        try:
            for _ in read(root / name) if name not in known else ():
                pass
        except BadImageError as error:
            problems[name] = error
    return problems


def agree(root: Path, survey: Survey, *, grayscale: bool, resized: bool) -> int:
    """The number of levels, when all images are of one kind once the transforms are done.  Raises UserError."""
    kinds = {kind.after(grayscale=grayscale, resized=resized) for kind in survey.examples}
    if len(kinds) == 1:
        return int(2 ** kinds.pop().num_bits)
    # One of each kind, then more, up to three files.
    ranked = sorted(
        (rank, name, kind) for kind, names in survey.examples.items() for rank, name in enumerate(sorted(names))
    )
    shown = ", ".join(
        f"{listed([name])} is {'x'.join(map(str, kind.shape))} of {kind.num_bits} bits" for _, name, kind in ranked[:3]
    )
    raise UserError(f"{root}: images of {len(survey.examples)} kinds: {shown}; {advice(kinds)}", Exit.INVALID_DATA)


def choose(root: Path, names: list[str], counts: list[int], test_fraction: float, split_seed: int) -> np.ndarray:
    """(N,) which images, file by file, are test images: by the folder's train and test parts, or a seeded share."""
    if has_splits(names):
        return np.repeat([part_of(name) in TEST_NAMES for name in names], counts)
    found = sorted({Path(name).parts[0] for name in names}, key=lambda first: (not is_split(first), first))
    if is_split(found[0]) and len(names) > 1:
        raise UserError(
            f"{root}: a split is one of {', '.join(TRAIN_NAMES)}, one of {', '.join(TEST_NAMES)} and nothing else; "
            f"there is {listed(found[:5])}; rename or remove what is not meant so",
            Exit.INVALID_DATA,
        )
    total = sum(counts)
    test = np.zeros(total, dtype=bool)
    test[held_out(total, test_fraction, split_seed)] = True
    if test.all() or not test.any():
        raise UserError(
            f"{root}: {test.sum()} of {total} images would be held out (data.test_fraction {test_fraction}), but "
            f"training and test images are needed",
            Exit.INVALID_DATA,
        )
    return test


def has_splits(names: list[str]) -> bool:
    """Whether there is one part for training and one for tests, and nothing else."""
    parts = {part_of(name) for name in names}
    return len(parts) == 2 and len(parts & {*TRAIN_NAMES}) == len(parts & {*TEST_NAMES}) == 1


def is_split(name: str) -> bool:
    """Whether a name is of a part for training or for tests."""
    return part_of(name) in (*TRAIN_NAMES, *TEST_NAMES)


def part_of(name: str) -> str:
    """The first part of a name, in lower case: `train` of Train/cat/1.png and of train.npy."""
    return Path(name).parts[0].lower().removesuffix(".npy")


def class_labels(root: Path, names: list[str]) -> list[int] | None:
    """A number per file for the folder that it lies in, below the split; None unless every file lies in one."""
    first = 1 if has_splits(names) else 0
    folders = ["/".join(Path(name).parts[first:-1]) for name in names]
    classes = sorted(set(folders))
    if "" in classes:
        return None
    empty = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())]
    if empty:
        log.warning("%s: classes without images: %s", root, listed(sorted(empty)))
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[folder] for folder in folders]


def pixels(
    root: Path,
    names: list[str],
    counts: list[int],
    wanted: np.ndarray,
    labels: list[int] | None,
    problems: dict[str, BadImageError],
) -> Iterator[tuple[np.ndarray, int | None, str]]:
    """The wanted images, (N,) bool, file by file, with label and name; files that cannot be read go to `problems`."""
    first = 0
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        place, first = first, first + count
        if name in problems or not wanted[place:first].any():
            continue
        try:
            for images in read(root / name):
                part = images[wanted[place : place + len(images)]]
                place += len(images)
                if len(part):
                    yield part, labels[number] if labels else None, name
        except BadImageError as error:
            problems[name] = error


def batched(
    parts: Iterator[tuple[np.ndarray, int | None, str]],
) -> Iterator[tuple[np.ndarray, np.ndarray | None, list[str]]]:
    """Consecutive images of one shape together, about a thousand at a time, with their labels and files."""
    waiting: list[np.ndarray] = []
    labels: list[int | None] = []
    files: list[str] = []

    def together() -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        return np.concatenate(waiting), None if None in labels else np.array(labels), files

    for images, label, name in parts:
        if waiting and (len(labels) >= ROWS or images.shape[1:] != waiting[0].shape[1:]):
            yield together()
            waiting, labels, files = [], [], []
        waiting.append(images)
        labels += [label] * len(images)
        files += [name] * len(images)
    if waiting:
        yield together()


def complain(root: Path, problems: dict[str, BadImageError], count: int) -> None:
    """UserError that lists the files that cannot be used; nothing when there are none."""
    if problems:
        reasons = [f"{listed([name])}: {error}" for name, error in sorted(problems.items())]
        more = f"; and {len(reasons) - MOST_NAMED} more" if len(reasons) > MOST_NAMED else ""
        damaged = any(error.code is Exit.MISSING for error in problems.values())
        raise UserError(
            f"{root}: {len(reasons)} of {count} files cannot be used: {'; '.join(reasons[:MOST_NAMED])}{more}",
            Exit.MISSING if damaged else Exit.INVALID_DATA,
        )


def remark(root: Path, survey: Survey) -> str:
    """How many files of which format; warns of what a reader of the bits/dim must know."""
    if survey.formats["JPEG"]:
        log.warning("%s: %d JPEG files: their bits/dim are those of decoded JPEG", root, survey.formats["JPEG"])
    if survey.num_turned:
        log.warning("%s: %d images turned as their EXIF tags say", root, survey.num_turned)
    return ", ".join(f"{count} {name}" for name, count in sorted(survey.formats.items()))


def listed(names: list[str]) -> str:
    """Names in quotes; line ends and the like are escaped."""
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names)
