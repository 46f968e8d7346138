"""Pictures in a zip file."""

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from flows.images.unpacking import Container, Room


class Zip(Container):
    """No entry leads out of the folder, and none is longer than it says: `zipfile` sees to both."""

    called, endings = "zip", (".zip",)
    damage = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)

    def unpack(self, file: Path, content: BinaryIO, folder: Path, room: Room) -> None:
        """Unpack a zip file."""
        with zipfile.ZipFile(content) as archive:
            entries = archive.infolist()
            room.take(file, sum(entry.file_size for entry in entries), len(entries))
            written = set[str]()
            for entry in entries:
                if {*entry.filename.split("/")} <= {"", ".", ".."}:
                    if not entry.filename.endswith("/"):
                        raise ValueError("an entry has no name")
                    continue
                path = archive.extract(entry, folder)
                if path in written:
                    raise ValueError(f"it holds {entry.filename} twice")
                if not entry.is_dir():
                    written.add(path)
