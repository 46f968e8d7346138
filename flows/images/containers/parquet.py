"""Pictures in Parquet files.

Hugging Face's layout: a column of structures with the `bytes` of a file, or of the bytes themselves, and perhaps a
column `label`.  The files may be named after splits, as in `train-00000-of-00001.parquet`, or lie in folders that are,
as in `train/0000.parquet`.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from flows.core.errors import Exit, FileError
from flows.images.unpacking import Container, Room

LABELS = "labels.csv"
ROWS = 8
COLUMN, LABEL = "image", "label"


class Parquet(Container):
    """Each row becomes a file of a picture, and its label a line of a table beside it."""

    called, endings, in_folders = "Parquet", (".parquet",), True

    def __init__(self) -> None:
        self.rows_of = Counter[tuple[str, str]]()
        """How many rows the files of a name have had in a folder: those of the next one are numbered on."""

    @classmethod
    def takes(cls, name: str) -> bool:
        """Whether a file is of the kind; `metadata.parquet` has labels of pictures elsewhere."""
        return super().takes(name) and not name.lower().endswith("metadata.parquet")

    def unpack(self, file: Path, content: BinaryIO, folder: Path, room: Room) -> None:
        """Write the pictures in a Parquet file, by row, and their labels."""
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise FileError(file, "Parquet needs pyarrow; `pip install pyarrow`", Exit.USAGE) from error
        with parquet.ParquetFile(content) as table:
            columns = table.schema_arrow.names
            pictures = (
                COLUMN if COLUMN in columns else next((each for each in columns if each in ("img", "bytes")), None)
            )
            if pictures is None:
                reason = f"its columns are {', '.join(columns[:9])}, and none is `{COLUMN}`"
                raise FileError(file, f"{reason}; rename the one of the pictures", Exit.INVALID_DATA)
            names = read_class_names(table.schema_arrow.metadata or {})
            has_labels = LABEL in columns
            first = self.rows_of[str(folder), file.stem]
            with open_labels(folder) if has_labels else nullcontext() as labels:
                for number, (picture, label) in enumerate(rows(table, pictures, has_labels), first):
                    name = f"{file.stem}-{number:08}.png"  # whatever it is: the content says what
                    if not isinstance(picture, bytes):
                        reason = f"row {number - first} has no bytes of a picture; store these"
                        raise FileError(file, reason, Exit.INVALID_DATA)
                    label = names[label] if isinstance(label, int) and 0 <= label < len(names) else label
                    room.take(file, len(picture) + len(str(label)))
                    (folder / name).write_bytes(picture)
                    self.rows_of[str(folder), file.stem] += 1
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
