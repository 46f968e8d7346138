"""Read the files of pictures of a source in one pass, and say at its end which of them cannot be used, and why."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from flows.core.errors import Exit, FileError
from flows.core.escaping import list_names, visible
from flows.images.depth import Used
from flows.images.folder import PictureFiles
from flows.images.image_set import LOSSY
from flows.images.labels import class_labels, table_labels
from flows.images.picture import FIRST_FRAME, BadImageError, FileDoesNotFit, Picture, read_images
from flows.images.source import Source
from flows.images.splitting import division, part_of, parts_of
from flows.images.transforms import shape_of

if TYPE_CHECKING:
    from flows.core.params import Data

ROWS = 1000
MOST_NAMED = 5

log = logging.getLogger(__name__)


class PixelKind(NamedTuple):
    """Channels, bits per level, and the size such as `28x28`, or "" if it does not matter."""

    channels: int
    num_bits: int
    size: str


class Reading:
    """A pass over files of pictures, and what it finds."""

    def __init__(self, files: PictureFiles, data: "Data | None" = None) -> None:
        """The transforms of `data` may remove differences between pictures."""
        self.files, self.data = files, data
        self.num_levels = 0
        """K of the files that were read: their levels are 0..K-1."""
        self.used = Used()
        """Which levels the files of more than 8 bits have."""
        self.damaged: list[str] = []
        """The damaged files that were left out, as `data.max_damaged` allows."""
        self.formats: Counter[str] = Counter()
        self.lightness: list[float] = []
        """Of each picture with transparency that was read."""
        self.bad: dict[str, BadImageError] = {}
        """Why files cannot be used."""
        self.names_by_kind: dict[PixelKind, list[str]] = {}

    def pictures(self) -> Iterator[Picture]:
        """Yield the pictures of every file, at most ROWS at a time.  Of the transforms, only the background is applied.

        Pictures that the transforms do not make like those of the first file are left out.  Raises UserError after the
        last file if there are any, or files that could not be used, and names them: exit 5 if one is damaged, else 4.
        Of a single file it is a FileError.  Damaged files, as far as `data.max_damaged` allows them, are no reason.
        """
        for name in tqdm(self.files.names, "reading images", disable=None, leave=False):
            try:
                picture = self.read(name)
                if self.kind_of(picture) == next(iter(self.names_by_kind)):
                    yield from self.levels_of(picture)
            except BadImageError as error:
                self.bad[name] = error
        if frames := self.formats[FIRST_FRAME]:
            log.warning("%s: of %d animations, the first frame is taken", visible(self.files.source), frames)
        self.leave_out_damaged()
        self.require_usable()

    def read(self, name: str) -> Picture:
        """Return the picture in a file, and note its kind.  Raises BadImageError."""
        picture = read_images(self.files.folder / name, self.data.background_colour if self.data else None)
        stored = self.data.stored_bits if self.data else None
        if stored and picture.num_bits > stored:
            picture = picture._replace(num_levels=2**stored)
        self.names_by_kind.setdefault(self.kind_of(picture), []).append(name)
        return picture._replace(name=name)

    def levels_of(self, picture: Picture) -> Iterator[Picture]:
        """Yield a picture in parts, and note what it has.  Raises BadImageError."""
        self.num_levels = picture.num_levels
        for part in picture.parts(ROWS):
            if self.num_levels > 256:
                self.used.add(part.pixels)
            yield part
        self.formats[picture.format] += 1
        self.lightness += [] if picture.lightness is None else [picture.lightness]

    def kind_of(self, picture: Picture) -> PixelKind:
        """Return what the pictures of all files must have in common, as the transforms leave it.

        Raises BadImageError if a crop would leave nothing but a pixel.
        """
        shape = picture.pixels.shape[1:]
        channels, height, width = shape_of(shape, self.data) if self.data else shape
        if height == width == 1 < max(shape[1:]):
            advice = "remove, or leave out data.crop, which would leave one pixel"
            raise BadImageError("a pixel wide or high", advice)
        size = "" if self.data and self.data.resize else f"{height}x{width}"
        return PixelKind(channels, picture.num_bits, size)

    def leave_out_damaged(self) -> None:
        """Forget the damaged files if `data.max_damaged` allows as many, but for their names."""
        damaged = {name: error for name, error in self.bad.items() if error.code is Exit.MISSING}
        allowed, count = self.data.max_damaged if self.data else 0, len(self.files.names)
        most = allowed if isinstance(allowed, int) else allowed * count
        if damaged and self.names_by_kind and len(damaged) <= most:
            self.damaged = [os.fsencode(name).decode(errors="backslashreplace") for name in damaged]
            left_out = f"{len(damaged):,} of {count:,} files are left out: {group_refusals(damaged)}"
            log.warning("%s: %s", visible(self.files.source), left_out)
            self.bad = {name: error for name, error in self.bad.items() if name not in damaged}

    def require_usable(self) -> None:
        """Raise UserError unless all files can be used but those that are left out."""
        source, count = self.files.source, len(self.files.names)
        if self.bad and self.files.is_single:
            (only,) = self.bad.values()
            raise (FileDoesNotFit if only.may_fit else FileError)(source, str(only), only.code)
        bad = self.bad | unlike(self.names_by_kind)
        if not bad:
            return
        reason = f"{len(bad):,} of {count:,} files cannot be used: {group_refusals(bad)}"
        is_damaged = [error.code is Exit.MISSING for error in bad.values()]
        if self.data and all(is_damaged):
            reason += "; data.max_damaged leaves out as many as it allows"
        error = FileDoesNotFit if all(each.may_fit for each in bad.values()) else FileError
        raise error(source, reason, Exit.MISSING if any(is_damaged) else Exit.INVALID_DATA)


def unlike(found: Mapping[PixelKind, list[str]]) -> dict[str, BadImageError]:
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
            bad |= dict.fromkeys(names, BadImageError(" ".join(what), advice, may_fit=True))
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


def describe_damaged(damaged: list[str]) -> str:
    """Return which damaged files were left out, in a few words."""
    more = f" and {len(damaged) - MOST_NAMED:,} more" if len(damaged) > MOST_NAMED else ""
    return f"{len(damaged):,} damaged left out: {list_names(damaged[:MOST_NAMED])}{more}"


def read_folder(files: PictureFiles, data: "Data") -> Source:
    """Return the pictures in the files, in the order of their names.

    Raises what `parts_of` raises, and what `Reading.pictures` raises when they are read.
    """
    reading, source = Reading(files, data), files.source
    parts = {} if files.is_single else parts_of(files.folder, files.names, source)
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

    def pictures() -> Iterator[Picture]:
        for picture in reading.pictures():
            name = str(picture.name)
            label = np.full(len(picture.pixels), labels[name]) if labels else None
            yield picture._replace(labels=label, split=parts.get(part_of(name)))
        origin.update(describe_reading(reading))
        if reading.damaged:
            origin["split"] += f"; {describe_damaged(reading.damaged)}"
        say_levels(reading, data)

    return Source(str(source), pictures(), origin, splits)


def describe_reading(reading: Reading) -> dict[str, Any]:
    """Return what `dataset.json` says of the files that were read."""
    formats = ", ".join(f"{count} {name}" for name, count in sorted(reading.formats.items()))
    lossy = sum(reading.formats[name] for name in LOSSY)
    found = {"formats": formats, "lossy_files": lossy, "num_levels": reading.num_levels}
    return found | ({"damaged": reading.damaged} if reading.damaged else {})


def say_levels(reading: Reading, data: "Data") -> None:
    """Log which levels files of more than 8 bits have; warn if `data.num_bits` makes some of them equal."""
    if reading.num_levels <= 256:
        return
    bits = (reading.num_levels - 1).bit_length()
    left = reading.used.left(bits - min(bits, data.num_bits or bits))
    loses = left < len(reading.used.levels)
    text = "%s: levels %s"
    if loses:
        text += f"; the shift to {data.num_bits} bits, data.num_bits, leaves {left:,} levels; null leaves all"
    level = logging.WARNING if loses else logging.INFO
    log.log(level, text, visible(str(reading.files.source)), reading.used.words(reading.num_levels))
