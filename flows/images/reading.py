"""A file of images that somebody else made: opened only when it is a file, and its damage named.

Parsers of images allocate what a file claims.  The claims are many; the system counts what they allocate, and beyond a
bound allocations fail, so that the file is refused.
"""

import os
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from flows.core.errors import Exit, brief
from vdm.files import open_regular

FORMATS = ["PNG", "JPEG", "WEBP", "TIFF"]

# Enough to decode a photograph of 80 million pixels; with all else that a stage holds it is less than 1 GB.
MOST_MEMORY = 640 * 2**20


class BadImageError(Exception):
    """A file that cannot be used; `code` tells damage from data that are no levels."""

    def __init__(self, reason: str, code: Exit = Exit.INVALID_DATA) -> None:
        super().__init__(reason)
        self.code = code


class Kind(NamedTuple):
    """What must be the same for all images of a set."""

    shape: tuple[int, int, int]
    """(C, H, W)."""
    num_bits: int

    def after(self, *, grayscale: bool, resized: bool) -> "Kind":
        """Return the kind without what these transforms make the same."""
        num_channels, *size = self.shape
        height, width = (0, 0) if resized else size
        return self._replace(shape=(1 if grayscale and num_channels == 3 else num_channels, height, width))


class Head(NamedTuple):
    """What a file says of itself."""

    kind: Kind
    num_images: int
    """Images in the file."""
    format: str
    turned: bool
    """Whether it asks to be rotated or mirrored (EXIF)."""


def unchanged(head: Head, expected: Head | None) -> None:
    """Raise BadImageError for another head than expected."""
    if expected not in (None, head):
        raise BadImageError("changed while it was read; run again", Exit.MISSING)


def open_file(path: Path) -> BinaryIO:
    """Open a file that is not empty.  Raises BadImageError."""
    try:
        file = open_regular(path)
    except PermissionError as error:
        raise BadImageError(f"{error.strerror}; make it readable", Exit.MISSING) from error
    except OSError as error:
        raise BadImageError("not a file", Exit.MISSING) from error
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise BadImageError("empty", Exit.MISSING)
    return file


@contextmanager
def damage_named() -> Iterator[None]:
    """Raise BadImageError for what parsers raise, or warn of, when a file is damaged or takes too much memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except BadImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        raise BadImageError(f"too large: {brief(error)}; make it smaller") from error
    except UnidentifiedImageError as error:
        raise BadImageError(f"damaged, or not {', '.join(FORMATS)}", Exit.MISSING) from error
    except Exception as error:  # damaged bytes make these parsers raise almost anything, tokenize.TokenError even
        raise BadImageError(f"damaged: {brief(error)}", Exit.MISSING) from error


@contextmanager
def limited() -> Iterator[None]:
    """Raise MemoryError in the block when it holds more than MOST_MEMORY beyond what was held before.

    Where the system does not say what is held (macOS), nothing is limited.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    try:
        limits.append(address_space() + MOST_MEMORY)
    except FileNotFoundError:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def address_space() -> int:
    """Return the bytes of this process's address space.  Raises FileNotFoundError."""
    return int(os.pread(status_file(os.getpid()), 64, 0).split()[0]) * resource.getpagesize()


@cache
def status_file(process: int) -> int:
    """Open what the system says of this process, whose number it is, once: it is read for every file."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
