"""Pictures in a zip file or in Parquet files, unpacked into a folder that is read as any other.

In Parquet, Hugging Face's layout: a column of structures with the `bytes` of a file, or of the bytes themselves, and
perhaps a column `label`.  The files may be named after splits, as in `train-00000-of-00001.parquet`.
"""

import csv
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.core.errors import Exit, UserError, brief
from flows.images.splitting import split_named

ZIP, PARQUET = ".zip", ".parquet"
LABELS = "labels.csv"
ROWS = 64
COLUMN, LABEL = "image", "label"


def packed_files(source: Path) -> list[Path]:
    """Return the zip file or the Parquet files in which a source has its pictures; [] for a folder of pictures."""
    if source.is_file():
        return [source] if source.suffix.lower() in (ZIP, PARQUET) else []
    return sorted(source.rglob(f"*{PARQUET}")) if source.is_dir() else []


def unpack(files: list[Path], out: Path) -> Path:
    """Write the pictures in the files into an empty folder, and return the folder that holds them.

    Raises UserError: exit 5 for a damaged file, 4 for one that is not as described above, or larger than the disk, 2
    for Parquet without pyarrow.
    """
    for file in files:
        try:
            if file.suffix.lower() == ZIP:
                unzip(file, out)
            else:
                write_rows(file, out)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise UserError(f"{file}: damaged, or not as it is read: {brief(error)}", Exit.MISSING) from error
    inside = [path for path in out.iterdir() if path.name != "__MACOSX"]
    # Many zip files hold one folder, in which everything else is.
    is_wrapped = len(inside) == 1 and inside[0].is_dir() and split_named(inside[0].name.lower()) is None
    return inside[0] if is_wrapped else out


def unzip(file: Path, out: Path) -> None:
    """Unpack a zip file.  No entry leads out of the folder, and none is longer than it says: `zipfile` sees to both."""
    with zipfile.ZipFile(file) as archive:
        require_space(file, sum(entry.file_size for entry in archive.infolist()), out)
        archive.extractall(out)


def require_space(file: Path, size: int, out: Path) -> None:
    """Raise UserError (exit 4) unless the disk has room for so many bytes."""
    if size > (free := shutil.disk_usage(out).free):
        reason = f"its {size / 2**30:,.1f} GiB do not fit into the {free / 2**30:,.1f} GiB free in {out.parent}"
        raise UserError(f"{file}: {reason}; set TMPDIR to another folder, or unpack a part of it", Exit.INVALID_DATA)


def write_rows(file: Path, out: Path) -> None:
    """Write the pictures in a Parquet file, by row, into the folder of its split, and their labels beside them."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{file}: Parquet needs pyarrow; `pip install pyarrow`", Exit.USAGE) from error
    split = split_named(file.stem.split("-")[0].lower()) or ""
    with parquet.ParquetFile(file) as table:
        columns = table.schema_arrow.names
        pictures = COLUMN if COLUMN in columns else next((each for each in columns if each in ("img", "bytes")), None)
        if pictures is None:
            reason = f"its columns are {', '.join(columns[:9])}, and none is `{COLUMN}`"
            raise UserError(f"{file}: {reason}; rename the one of the pictures", Exit.INVALID_DATA)
        names = read_class_names(table.schema_arrow.metadata or {})
        require_space(file, sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)), out)
        folder = out / split
        folder.mkdir(exist_ok=True)
        has_labels = LABEL in columns
        labels: list[tuple[str, Any]] = []
        for number, (content, label) in enumerate(rows(table, pictures, has_labels)):
            name = f"{file.stem}-{number:08}.png"  # whatever it is: the content says what
            if not isinstance(content, bytes):
                raise UserError(f"{file}: row {number} has no bytes of a picture; store these", Exit.INVALID_DATA)
            (folder / name).write_bytes(content)
            labels.append((name, names[label] if isinstance(label, int) and 0 <= label < len(names) else label))
    if has_labels:
        is_new = not (folder / LABELS).exists()
        with (folder / LABELS).open("a", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([("file", "label"), *labels] if is_new else labels)


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
