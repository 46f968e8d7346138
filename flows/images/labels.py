"""The labels of pictures in a folder: of its tables, or else of its folders."""

import csv
import logging
from io import StringIO
from pathlib import Path

from flows.core.errors import Exit, UserError, brief
from flows.core.escaping import list_names, visible
from flows.core.files import read_bounded
from flows.images.folder import LABEL_TABLES, PictureFiles

FILE_COLUMNS, LABEL_COLUMNS = ("file", "file_name", "filename", "image", "path"), ("label", "class", "category")
MOST_LABEL = 255
"""Characters of a label in a table, as of the name of a folder."""

log = logging.getLogger(__name__)


def table_labels(files: PictureFiles) -> tuple[dict[str, int], list[str]] | None:
    """Return what `class_labels` does, from the tables in the folder and in the folders in it; None without a table.

    Raises UserError: exit 5 for a table that cannot be read, 4 if it lacks a column, or the label of an image.
    """
    if files.is_single:
        return None
    stated: dict[str, str] = {}
    tables = [table for name in LABEL_TABLES for pattern in (name, f"*/{name}") for table in files.folder.glob(pattern)]
    for table in tables:
        shown = files.source / table.relative_to(files.folder)
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
        place = "" if table.parent == files.folder else f"{table.parent.name}/"
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
