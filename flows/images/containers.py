"""Pictures in a zip file or in Parquet files, unpacked into a folder that is read as any other.

In Parquet, Hugging Face's layout: a column of structures with the `bytes` of a file, or of the bytes themselves, and
perhaps a column `label`.  The files may be named after splits, as in `train-00000-of-00001.parquet`, or lie in folders
that are, as in `train/0000.parquet`.
"""

import csv
import json
import lzma
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from flows.core.errors import Exit, FileError, brief
from flows.core.files import open_regular
from flows.images.splitting import split_named

ZIP, PARQUET = ".zip", ".parquet"
LABELS = "labels.csv"
ROWS = 8
COLUMN, LABEL = "image", "label"
MOST_GROWTH, ALWAYS_ROOM = 200, 2**28
"""How many times its size a container may grow to, and the bytes that it may grow to in any case.

Masks shrink to a hundredth in a zip.
"""
BLOCK = 2**12
"""Bytes of the disk that a file takes beside its content, at most."""


def unpack(files: Sequence[Path], source: Path, out: Path) -> Path:
    """Write the pictures in a zip file, or in the Parquet files of a source, into an empty folder.

    Returns the folder that holds them.  Raises FileError: exit 5 for a damaged file, 4 for one that is not as described
    above, or larger than the disk or `MOST_GROWTH` allows, 2 for Parquet without pyarrow.
    """
    room = Room(files, out)
    splits = {file: split_of_place(file.relative_to(source)) for file in files}
    rows_of = Counter[tuple[str, str]]()
    for file in files:
        try:
            with open_regular(file) as content:
                if file.suffix.lower() == ZIP:
                    unzip(file, content, out, room)
                else:  # one split is that of all, as that of a single folder of pictures
                    folder = out / (splits[file] if len({*splits.values()}) > 1 else "")
                    write_rows(file, content, folder, room, rows_of)
        except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise FileError(file, f"damaged, or not as it is read: {brief(error)}") from error
        except OSError as error:  # without a number if it is of pyarrow or bz2
            what = f"cannot be unpacked: {error.strerror}" if error.errno else f"damaged: {brief(error)}"
            raise FileError(file, what) from error
    inside = [path for path in out.iterdir() if path.name != "__MACOSX"]
    # Many zip files hold one folder, in which everything else is.
    is_wrapped = len(inside) == 1 and inside[0].is_dir() and split_named(inside[0].name.lower()) is None
    return inside[0] if is_wrapped else out


class Room:
    """The bytes that may still be written for all files of a source."""

    def __init__(self, files: Sequence[Path], out: Path) -> None:
        self.out, self.free = out, shutil.disk_usage(out).free
        packed = sum(file.stat().st_size for file in files)
        self.most = max(ALWAYS_ROOM, MOST_GROWTH * packed)
        self.written = 0
        self.require_free(files[0], packed)  # pictures hardly shrink

    def require_free(self, file: Path, size: int) -> None:
        """Raise FileError (exit 4) unless the disk has room for so many bytes."""
        if size > self.free:
            reason = f"its {gibibytes(size)} do not fit into the {gibibytes(self.free)} free in {self.out.parent}"
            raise FileError(file, f"{reason}; set TMPDIR to another folder, or unpack a part of it", Exit.INVALID_DATA)

    def take(self, file: Path, size: int, count: int = 1) -> None:
        """Take room for `count` files of `size` bytes in all.  Raises FileError (exit 4) if there is none left."""
        self.written += size + count * BLOCK
        self.require_free(file, self.written)
        if self.written > self.most:
            reason = f"it grows to more than {gibibytes(self.most)}, {MOST_GROWTH} times its size"
            raise FileError(file, f"{reason}; unpack it yourself if you trust it", Exit.INVALID_DATA)


def gibibytes(size: int) -> str:
    """Return a number of bytes in GiB."""
    return f"{size / 2**30:,.1f} GiB"


def unzip(file: Path, content: BinaryIO, out: Path, room: Room) -> None:
    """Unpack a zip file.  No entry leads out of the folder, and none is longer than it says: `zipfile` sees to both."""
    with zipfile.ZipFile(content) as archive:
        entries = archive.infolist()
        room.take(file, sum(entry.file_size for entry in entries), len(entries))
        written = set[str]()
        for entry in entries:
            if {*entry.filename.split("/")} <= {"", ".", ".."}:
                if not entry.filename.endswith("/"):
                    raise ValueError("an entry has no name")
                continue
            path = archive.extract(entry, out)
            if path in written:
                raise ValueError(f"it holds {entry.filename} twice")
            if not entry.is_dir():
                written.add(path)


def split_of_place(place: Path) -> str:
    """Return the split that a Parquet file is named after, or the nearest of its folders; "" for none."""
    names = [place.stem.split("-")[0], *(folder.name for folder in place.parents)]
    return next(filter(None, (split_named(name.lower()) for name in names)), "")


def write_rows(file: Path, content: BinaryIO, folder: Path, room: Room, rows_of: Counter[tuple[str, str]]) -> None:
    """Write the pictures in a Parquet file, by row, into the folder of its split, and their labels beside them.

    The rows of files of one name are numbered on: `rows_of` has how many there were in a folder.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise FileError(file, "Parquet needs pyarrow; `pip install pyarrow`", Exit.USAGE) from error
    with parquet.ParquetFile(content) as table:
        columns = table.schema_arrow.names
        pictures = COLUMN if COLUMN in columns else next((each for each in columns if each in ("img", "bytes")), None)
        if pictures is None:
            reason = f"its columns are {', '.join(columns[:9])}, and none is `{COLUMN}`"
            raise FileError(file, f"{reason}; rename the one of the pictures", Exit.INVALID_DATA)
        names = read_class_names(table.schema_arrow.metadata or {})
        has_labels = LABEL in columns
        folder.mkdir(exist_ok=True)
        first = rows_of[str(folder), file.stem]
        with open_labels(folder) if has_labels else nullcontext() as labels:
            for number, (picture, label) in enumerate(rows(table, pictures, has_labels), first):
                name = f"{file.stem}-{number:08}.png"  # whatever it is: the content says what
                if not isinstance(picture, bytes):
                    reason = f"row {number - first} has no bytes of a picture; store these"
                    raise FileError(file, reason, Exit.INVALID_DATA)
                label = names[label] if isinstance(label, int) and 0 <= label < len(names) else label
                room.take(file, len(picture) + len(str(label)))
                (folder / name).write_bytes(picture)
                rows_of[str(folder), file.stem] += 1
                if labels:
                    labels.writerow((name, label))


@contextmanager
def open_labels(folder: Path) -> Iterator[Any]:
    """Open the table of labels in a folder, to which rows are added."""
    with (folder / LABELS).open("a", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        if not file.tell():
            lines.writerow(("file", "label"))
        yield lines


def rows(table: Any, pictures: str, has_labels: bool) -> Iterator[tuple[Any, Any]]:
    """Yield the bytes and the label of each row, some rows in memory at a time."""
    for batch in table.iter_batches(ROWS, columns=[pictures, *([LABEL] if has_labels else [])]):
        for row in batch.to_pylist():
            content = row[pictures]
            yield content.get("bytes") if isinstance(content, dict) else content, row.get(LABEL)


def read_class_names(metadata: dict[bytes, bytes]) -> list[str]:
    """Return the names of the classes, by number, that Hugging Face's `datasets` wrote into a file; [] for none."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][LABEL]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
