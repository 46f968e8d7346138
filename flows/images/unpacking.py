"""Containers of pictures, unpacked into a folder that is read as any other.

Each file in `flows/images/containers/` has the reader of one kind of container, a subclass of `Container`.  A new kind
is one file there.
"""

import inspect
import pkgutil
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, ClassVar

from flows.core.errors import Exit, FileError, brief
from flows.core.files import open_regular
from flows.images import containers
from flows.images.splitting import split_named

MOST_GROWTH, ALWAYS_ROOM = 200, 2**28
"""How many times its size a container may grow to, and the bytes that it may grow to in any case.

Masks shrink to a hundredth in a zip.
"""
BLOCK = 2**12
"""Bytes of the disk that a file takes beside its content, at most."""


class Container(ABC):
    """A kind of files that hold many pictures; an object unpacks those of one source."""

    called: ClassVar[str]
    """Its name in messages."""
    endings: ClassVar[tuple[str, ...]]
    """How the names of its files end, in lower case."""
    in_folders: ClassVar[bool] = False
    """Whether several of its files may lie in a folder, in place of pictures."""
    damage: ClassVar[tuple[type[Exception], ...]] = ()
    """What its library raises for damaged files, beside EOFError, RuntimeError, ValueError and OSError."""

    @classmethod
    def takes(cls, name: str) -> bool:
        """Whether a file of this name is of the kind."""
        return name.lower().endswith(cls.endings)

    @abstractmethod
    def unpack(self, file: Path, content: BinaryIO, folder: Path, room: "Room") -> None:
        """Write the pictures in a file into a folder, as files in it, folders of classes, and tables of labels.

        What is to be written is taken of the `room` before.  Raises ValueError for what is damaged, and FileError.
        """


def list_containers() -> list[type[Container]]:
    """Return the kinds of containers that are read."""
    modules = [
        import_module(f"{containers.__name__}.{each.name}") for each in pkgutil.iter_modules(containers.__path__)
    ]
    classes = [each for module in modules for _, each in inspect.getmembers(module, inspect.isclass)]
    return [each for each in classes if issubclass(each, Container) and each is not Container]


def unpack(kind: type[Container], files: Sequence[Path], source: Path, out: Path) -> Path:
    """Write the pictures in the files of a source, all of one kind, into an empty folder.

    Returns the folder that holds them.  Raises FileError: exit 5 for a damaged file, 4 for one that is not as its kind
    describes, or larger than the disk or `MOST_GROWTH` allows, 2 for one whose library is missing.
    """
    room, container = Room(files, out), kind()
    damage: tuple[type[Exception], ...] = (EOFError, RuntimeError, ValueError, *kind.damage)
    splits = {file: split_of_place(file.relative_to(source)) for file in files}
    for file in files:
        # One split is that of all, as that of a single folder of pictures.
        folder = out / (splits[file] if len({*splits.values()}) > 1 else "")
        try:
            folder.mkdir(exist_ok=True)
            with open_regular(file) as content:
                container.unpack(file, content, folder, room)
        except damage as error:
            raise FileError(file, f"damaged, or not as it is read: {brief(error)}") from error
        except OSError as error:  # without a number if it is of pyarrow or bz2
            what = f"cannot be unpacked: {error.strerror}" if error.errno else f"damaged: {brief(error)}"
            raise FileError(file, what) from error
    inside = [path for path in out.iterdir() if path.name != "__MACOSX"]
    # Many zip files hold one folder, in which everything else is.
    is_wrapped = len(inside) == 1 and inside[0].is_dir() and split_named(inside[0].name.lower()) is None
    return inside[0] if is_wrapped else out


def split_of_place(place: Path) -> str:
    """Return the split that a container is named after, or the nearest of its folders; "" for none."""
    names = [place.stem.split("-")[0], *(folder.name for folder in place.parents)]
    return next(filter(None, (split_named(name.lower()) for name in names)), "")


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
