"""Read a folder of images, with or without train and test parts, with or without a folder per class."""

import csv
import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from tqdm import tqdm

from flows.core.errors import Exit, FileError, UserError, brief
from flows.core.escaping import list_names, visible
from flows.core.files import contains, read_bounded, scratch_folder
from flows.images.containers import PARQUET, ZIP, unpack
from flows.images.depth import Used
from flows.images.image_set import LOSSY, chunks
from flows.images.picture_files import FIRST_FRAME, BadImageError, FileImages, levels, read_images
from flows.images.splitting import Part, SourceImages, division, part_of, parts_of
from flows.images.transforms import shape_of

if TYPE_CHECKING:
    from flows.core.params import Data

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")
CONVERTED_BY = {
    ".avif": "avifdec IN.avif OUT.png",
    ".dcm": "dcmj2pnm IN.dcm --write-16-bit-png OUT.png",
    ".fit": 'python -c \'import numpy, astropy.io.fits as f; numpy.save("OUT.npy", f.getdata("IN.fit"))\'',
    ".fits": 'python -c \'import numpy, astropy.io.fits as f; numpy.save("OUT.npy", f.getdata("IN.fits"))\'',
    ".heic": "heif-convert IN.heic OUT.png",
    ".heif": "heif-convert IN.heif OUT.png",
    ".jxl": "djxl IN.jxl OUT.png",
    ".svg": "rsvg-convert --width 64 IN.svg --output OUT.png",
    ".arrow": 'python -c \'import datasets as d; d.Dataset.from_file("IN.arrow").to_parquet("OUT.parquet")\'',
    "metadata.parquet": 'python -c \'import pandas as p; p.read_parquet("IN.parquet").to_csv("OUT.csv", index=False)\'',
    ".tar": "tar --extract --file IN.tar",
    ".tgz": "tar --extract --file IN.tgz",
    ".tar.gz": "tar --extract --file IN.tar.gz",
}
"""The command that makes files which are read of others, by their ending."""
TABLES = ("labels.csv", "metadata.csv")
"""Files with the labels of the images in a folder: a column with the name of the file, and one with the label."""
FILE_COLUMNS, LABEL_COLUMNS = ("file", "file_name", "filename", "image", "path"), ("label", "class", "category")
HIDDEN = (".", "__MACOSX")
"""How the names begin that are left out; macOS writes `._*` and `__MACOSX` beside the files that it packs."""
ROWS = 1000
MOST_NAMED = 5
MOST_LABEL = 255
"""Characters of a label in a table, as of the name of a folder."""

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """The files in a folder that hold images, sorted."""

    folder: Path
    names: list[str]
    are_packed: bool = False
    """Whether they are a zip file or Parquet files."""


def find_images(root: Path, source: Path | None = None) -> Found:
    """Return the images below a folder, or the Parquet files if there are some; for a single file, its folder and it.

    Hidden files and folders are left out, and links to folders are not followed.  Messages name the `source` that was
    unpacked into the folder, if it was.  Raises UserError: exit 5 for a folder that is missing or without images, 4 for
    a link out of the folder, for images beside Parquet files, and for an .npz file.  Raises OSError for a folder that
    cannot be read.
    """
    source = source or root
    if source.suffix == ".npz":
        raise UserError(f"{source}: .npz files are not read; save the array of images as .npy", Exit.INVALID_DATA)
    if root.is_file() and (told := others_in_words([source.name])):
        raise UserError(f"{source}: {told}", Exit.INVALID_DATA)
    if root.is_file():
        return Found(root.parent, [root.name], root.suffix.lower() in (ZIP, PARQUET))
    if not root.is_dir():
        raise UserError(f"{source} does not exist, or is not a folder of images", Exit.MISSING)
    images: list[str] = []
    tables: list[str] = []
    others: list[str] = []
    for folder, folders, files in os.walk(root, onerror=give_up):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        files = [name for name in files if not name.startswith(HIDDEN)]
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not contains(root, path):
                copy = f"`cp -rL {shlex.quote(str(source))} COPY` makes a folder without links"
                raise UserError(f"{path}: a link that leads out of {source}; {copy}", Exit.INVALID_DATA)
        place = os.path.relpath(folder, root)
        for name in files:
            if name in TABLES:
                continue
            is_table = name.lower().endswith(PARQUET) and not name.lower().endswith((*CONVERTED_BY,))
            found = images if name.lower().endswith(ENDINGS) else tables if is_table else others
            found.append(name if place == "." else f"{place}/{name}")
    told = others_in_words(others)
    if images and tables:
        reason = f"holds {len(images):,} images and {len(tables):,} Parquet files, such as {list_names(tables[:1])}"
        advice = "name the folder of the ones as the source, or move the others away"
        raise UserError(f"{source}: {reason}; {advice}", Exit.INVALID_DATA)
    if not images and not tables:
        found_instead = f": {told}" if told else ""
        raise UserError(f"{source}: holds no {', '.join(ENDINGS)} files{found_instead}", Exit.MISSING)
    if told:
        log.warning("%s: %s", visible(source), told)
    unknown = [name for name in others if not name.lower().endswith((*CONVERTED_BY,))]
    if unknown:
        named = list_names(sorted(unknown)[:3])
        log.warning("%s: %d files are not images, such as %s", visible(source), len(unknown), named)
    return Found(root, sorted(images or tables), bool(tables))


def others_in_words(names: list[str]) -> str:
    """Return which of the files hold pictures that are not read, and the commands that convert them; "" for none."""
    counts = Counter(end for name in names for end in CONVERTED_BY if name.lower().endswith(end))
    return "; ".join(
        f"{count:,} file{' is' if count == 1 else 's are'} {end}, not read; convert by `{CONVERTED_BY[end]}`"
        for end, count in counts.most_common()
    )


def give_up(error: OSError) -> NoReturn:
    """Raise the error, which `os.walk` would ignore."""
    raise error


class Listed(NamedTuple):
    """The files of images in a source, a folder or a file."""

    source: Path
    root: Path
    """Where the images are: the source, or the folder into which it is unpacked."""
    folder: Path
    names: list[str]

    def shown(self, name: str) -> Path:
        """Return what messages call a file: its path, or its place in the source from which it was unpacked."""
        return self.source if self.root.is_file() else self.source / name

    def only(self, name: str) -> "Listed":
        """Return one of the files, as if it was the source."""
        return Listed(self.shown(name), self.folder / name, self.folder, [name])


@contextmanager
def open_source(source: Path) -> Iterator[Listed]:
    """Yield the files of images in a source.  What a zip or Parquet file holds is unpacked while the block runs.

    Raises what `find_images` and `flows.images.containers.unpack` raise.
    """
    found = find_images(source)
    if not found.are_packed:
        yield Listed(source, source, found.folder, found.names)
        return
    with scratch_folder() as unpacked:
        root = unpack([found.folder / name for name in found.names], source, unpacked)
        inside = find_images(root, source)
        if inside.are_packed:
            reason = f"holds Parquet files, such as {list_names(inside.names[:1])}, which are read of a folder"
            raise UserError(f"{source}: {reason}; unpack it", Exit.INVALID_DATA)
        yield Listed(source, root, inside.folder, inside.names)


class Levels(NamedTuple):
    """Images (n,C,H,W) of a file, uint8 or uint16, its name, and what they were before the background, (n,...)."""

    name: str
    images: np.ndarray
    sources: np.ndarray


class ImageFiles:
    """The files of images in a source, and what a pass over them finds."""

    def __init__(self, listed: Listed, data: "Data | None" = None) -> None:
        """The transforms of `data` may remove differences between images."""
        self.source, self.root, self.folder, self.names = listed
        self.data = data
        self.num_levels = 0
        """K of the files that were read: their levels are 0..K-1."""
        self.used = Used()
        """Which levels the files of more than 8 bits have."""
        self.damaged: list[str] = []
        """The damaged files that were left out, as `data.max_damaged` allows."""
        self.formats: Counter[str] = Counter()
        self.lightness: list[float] = []
        """Of each picture with transparency that was read."""

    def read(self) -> Iterator[Levels]:
        """Yield the images of every file, at most ROWS at a time.  Of the transforms, only the background is applied.

        Images that the transforms do not make like those of the first file are left out.  Raises UserError after the
        last file if there are any, or files that could not be used, and names them: exit 5 if one is damaged, else 4.
        Of a single file it is a FileError.
        Damaged files, as far as `data.max_damaged` allows them, are no reason.
        """
        bad: dict[str, BadImageError] = {}
        found: dict[PixelKind, list[str]] = {}
        for name in tqdm(self.names, "reading images", disable=None, leave=False):
            try:
                images = read_images(self.folder / name, self.data.background_colour if self.data else None)
                stored = self.data.stored_bits if self.data else None
                if stored and images.num_bits > stored:
                    images = images._replace(num_bits=stored)
                found.setdefault(kind := self.kind_of(images), []).append(name)
                if kind != next(iter(found)):
                    continue
                self.num_levels = 2**images.num_bits
                for _, pixels in chunks(images.pixels, ROWS):
                    found_levels = levels(pixels, images.num_bits)
                    if self.num_levels > 256:
                        self.used.add(found_levels)
                    yield Levels(name, found_levels, found_levels if images.source is None else images.source)
                self.formats[images.format] += 1
                self.lightness += [] if images.lightness is None else [images.lightness]
            except BadImageError as error:
                bad[name] = error
        if frames := self.formats[FIRST_FRAME]:
            log.warning("%s: of %d animations, the first frame is taken", visible(self.source), frames)
        damaged = {name: error for name, error in bad.items() if error.code is Exit.MISSING}
        allowed = self.data.max_damaged if self.data else 0
        if found and 0 < len(damaged) <= (allowed if isinstance(allowed, int) else allowed * len(self.names)):
            self.damaged = [os.fsencode(name).decode(errors="backslashreplace") for name in damaged]
            left_out = f"{len(damaged):,} of {len(self.names):,} files are left out: {group_refusals(damaged)}"
            log.warning("%s: %s", visible(self.source), left_out)
            bad = {name: error for name, error in bad.items() if name not in damaged}
        if bad and self.root.is_file():
            (only,) = bad.values()
            raise FileError(self.source, str(only), only.code)
        if bad := bad | unlike(found):
            reason = f"{len(bad):,} of {len(self.names):,} files cannot be used: {group_refusals(bad)}"
            if self.data and bad.keys() <= damaged.keys():
                reason += "; data.max_damaged leaves out as many as it allows"
            is_damaged = not bad.keys().isdisjoint(damaged)
            raise UserError(f"{self.source}: {reason}", Exit.MISSING if is_damaged else Exit.INVALID_DATA)

    def kind_of(self, images: FileImages) -> "PixelKind":
        """Return what the images of all files must have in common, as the transforms leave it.

        Raises BadImageError if a crop would leave nothing but a pixel.
        """
        shape = images.pixels.shape[1:]
        channels, height, width = shape_of(shape, self.data) if self.data else shape
        if height == width == 1 < max(shape[1:]):
            advice = "remove, or leave out data.crop, which would leave one pixel"
            raise BadImageError("a pixel wide or high", advice)
        size = "" if self.data and self.data.resize else f"{height}x{width}"
        return PixelKind(channels, images.num_bits, size)


class PixelKind(NamedTuple):
    """Channels, bits per level, and the size such as `28x28`, or "" if it does not matter."""

    channels: int
    num_bits: int
    size: str


def describe_damaged(damaged: list[str]) -> str:
    """Return which damaged files were left out, in a few words."""
    more = f" and {len(damaged) - MOST_NAMED:,} more" if len(damaged) > MOST_NAMED else ""
    return f"{len(damaged):,} damaged left out: {list_names(damaged[:MOST_NAMED])}{more}"


def unlike(found: dict[PixelKind, list[str]]) -> dict[str, BadImageError]:
    """Return why files cannot be used that differ from most in channels, bits or size; `found` has all by kind."""
    if not found:
        return {}
    counts: list[Counter[Any]] = [Counter(), Counter(), Counter()]
    for kind, names in found.items():
        for count, part in zip(counts, kind, strict=True):
            count[part] += len(names)
    usual = PixelKind(*(count.most_common(1)[0][0] for count in counts))
    bad: dict[str, BadImageError] = {}
    for kind, names in found.items():
        what, wanted, parameters = [], [], []
        if kind[:2] != usual[:2]:
            what.append({1: "gray", 3: "in colour"}.get(kind.channels, f"of {kind.channels} channels"))
        if kind.channels != usual.channels:
            wanted.append({1: "gray levels", 3: "RGB"}.get(usual.channels, f"{usual.channels} channels"))
            parameters += ["data.grayscale (or data.gray_as_rgb)"] if {kind.channels, usual.channels} == {1, 3} else []
        if kind.num_bits != usual.num_bits:
            what.append(f"with {kind.num_bits} bit{'' if kind.num_bits == 1 else 's'}")
            wanted.append(f"{usual.num_bits} bits")
        if kind.size != usual.size:
            what.append(f"of another size than {usual.size}")
            wanted.append(usual.size)
            parameters.append("data.resize")
        advice = f"convert to {' and '.join(wanted)}"
        if len(parameters) == len(wanted):
            advice += f", or set {' and '.join(parameters)} for the pipeline"
        if wanted:
            bad |= dict.fromkeys(names, BadImageError(" ".join(what), advice))
    return bad


def group_refusals(bad: dict[str, BadImageError]) -> str:
    """Return what is wrong with files: the largest group first, each with a few names and an advice."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, error in bad.items():
        groups.setdefault((error.what, error.advice), []).append(name)
    texts = []
    for (what, advice), names in sorted(groups.items(), key=lambda group: -len(group[1])):
        shown = [": ".join(filter(None, (list_names([name]), bad[name].detail))) for name in names[:MOST_NAMED]]
        if len(names) > MOST_NAMED:
            shown.append(f"and {len(names) - MOST_NAMED:,} more")
        texts.append(f"{len(names):,} {what} ({', '.join(shown)}): {advice}")
    return "; ".join(texts)


def read_folder(listed: Listed, data: "Data") -> SourceImages:
    """Return the images in the files, in the order of their names.

    Raises what `parts_of` raises, and what `ImageFiles.read` raises when the batches are read.
    """
    files = ImageFiles(listed, data)
    source = files.source
    parts = parts_of(files.root, files.names, source)
    labels, classes = table_labels(files) or class_labels(source, files.names, 1 if parts else 0)
    given = f"by its folders: {', '.join(f'{part} for {split}' for part, split in parts.items())}" if parts else None
    splits = frozenset(parts.values())
    origin: dict[str, Any] = {
        "title": visible(source.resolve().name) or "images",
        "homepage": "a folder",
        "licence": "not stated",
        "split": division(data, given, has_validation="validation" in splits),
    }
    if classes:
        origin["class_names"] = classes

    def batches() -> Iterator[Part]:
        for name, images, sources in files.read():
            label = np.full(len(images), labels[name]) if labels else None
            yield Part(images, files.num_levels, label, name, parts.get(part_of(name)), sources)
        formats = ", ".join(f"{count} {name}" for name, count in sorted(files.formats.items()))
        origin.update(formats=formats, num_levels=files.num_levels)
        origin["lossy_files"] = sum(files.formats[each] for each in LOSSY)
        if files.damaged:
            origin["damaged"] = files.damaged
            origin["split"] += f"; {describe_damaged(files.damaged)}"
        bits = (files.num_levels - 1).bit_length()
        if files.num_levels > 256:
            left = files.used.left(bits - min(bits, data.num_bits or bits))
            text = "%s: levels %s"
            if left < len(files.used.levels):
                text += f"; the shift to {data.num_bits} bits, data.num_bits, leaves {left:,} levels; null leaves all"
            level = logging.INFO if left == len(files.used.levels) else logging.WARNING
            log.log(level, text, visible(str(source)), files.used.words(files.num_levels))

    return SourceImages(str(source), batches(), origin, splits)


def table_labels(files: ImageFiles) -> tuple[dict[str, int], list[str]] | None:
    """Return what `class_labels` does, from the tables in the folder and in the folders in it; None without a table.

    Raises UserError: exit 5 for a table that cannot be read, 4 if it lacks a column, or the label of an image.
    """
    if files.root.is_file():
        return None
    stated: dict[str, str] = {}
    tables = [table for name in TABLES for pattern in (name, f"*/{name}") for table in files.root.glob(pattern)]
    for table in tables:
        shown = files.source / table.relative_to(files.root)
        try:
            lines = csv.DictReader(StringIO(read_bounded(table).decode("utf-8-sig"), newline=""))
            columns = lines.fieldnames or []
            file, label = (next((each for each in columns if each.lower() in known), None)
                           for known in (FILE_COLUMNS, LABEL_COLUMNS))  # fmt: skip
            rows = list(lines)
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{shown}: missing or damaged: {brief(error)}", Exit.MISSING) from error
        if file is None or label is None:
            reason = f"its columns are {list_names(columns[:9])}, and it needs `file` and `label`"
            raise UserError(f"{shown}: {reason}; rename them, or the table", Exit.INVALID_DATA)
        place = "" if table.parent == files.root else f"{table.parent.name}/"
        stated |= {f"{place}{row[file]}".replace("/./", "/"): row[label] for row in rows if row[file] and row[label]}
    if not tables:
        return None
    if without := [name for name in files.names if name not in stated]:
        reason = f"{len(without):,} images have no label in {tables[0].name}, such as {list_names(without[:3])}"
        raise UserError(f"{files.source}: {reason}; add them, or remove the table", Exit.INVALID_DATA)
    if gone := stated.keys() - {*files.names}:
        text = "%s: %d labels are of files that are not there, such as %s"
        log.warning(text, visible(files.source), len(gone), list_names(sorted(gone)[:3]))
    found = {stated[name] for name in files.names}
    if (longest := max(map(len, found))) > MOST_LABEL:
        reason = f"a label in {tables[0].name} has {longest:,} characters, and {MOST_LABEL} are the most"
        raise UserError(f"{files.source}: {reason}; shorten it, or close its quotation mark", Exit.INVALID_DATA)
    classes = sorted(found)
    if all(label.isdecimal() for label in found):
        classes.sort(key=int)  # 10 after 9
    numbers = {label: number for number, label in enumerate(classes)}
    return {name: numbers[stated[name]] for name in files.names}, [visible(label) for label in classes]


def class_labels(source: Path, names: list[str], first: int) -> tuple[dict[str, int] | None, list[str]]:
    """Return the class of each file, the number of its folder, and the classes' names: folders from level `first` on.

    Without classes they are None and [].
    """
    folders = {name: "/".join(name.split("/")[first:-1]) for name in names}
    classes = sorted(set(folders.values()))
    if "" not in classes:
        numbers = {folder: number for number, folder in enumerate(classes)}
        return {name: numbers[folder] for name, folder in folders.items()}, [visible(folder) for folder in classes]
    if len(classes) > 1:
        stray = [name for name, folder in folders.items() if not folder]
        text = "%s: images have no labels, since %d files are in no class folder, such as %s"
        log.warning(text, visible(source), len(stray), list_names(stray[:3]))
    return None, []
