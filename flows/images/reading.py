"""Open an untrusted file of images safely, and say how it is damaged.

Parsers of images allocate as much as a file claims to need.  A limit on the address space makes allocations beyond a
bound fail, and the file is refused.
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
from flows.core.files import open_regular

FORMATS = ["PNG", "JPEG", "WEBP", "TIFF"]

# Enough to decode a photograph of 80 million pixels.  A stage as a whole stays below 1 GB.
MOST_MEMORY = 640 * 2**20


class BadImageError(Exception):
    """A file that cannot be used: `code` is MISSING for damage, INVALID_DATA for what is not supported."""

    def __init__(self, reason: str, code: Exit = Exit.INVALID_DATA) -> None:
        super().__init__(reason)
        self.code = code


class Kind(NamedTuple):
    """What must be equal for all images of a set."""

    shape: tuple[int, int, int]
    """(C, H, W)."""
    num_bits: int

    def after(self, *, grayscale: bool, resized: bool) -> "Kind":
        """Return the kind after the transforms, with the size (0, 0) if they make all sizes equal."""
        num_channels, *size = self.shape
        height, width = (0, 0) if resized else size
        return self._replace(shape=(1 if grayscale and num_channels == 3 else num_channels, height, width))


class Head(NamedTuple):
    """What the head of a file says."""

    kind: Kind
    num_images: int
    """Number of images in the file."""
    format: str
    """`NPY`, or the name that `flows.images.picture_files.format_of` returns."""
    turned: bool
    """Whether it asks to be rotated or mirrored (EXIF)."""


def unchanged(head: Head, expected: Head | None) -> None:
    """Raise BadImageError if a head is expected and this is another one."""
    if expected not in (None, head):
        raise BadImageError("changed while it was read; run again", Exit.MISSING)


def open_file(path: Path) -> BinaryIO:
    """Open a file.  Raises BadImageError, also for an empty file."""
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
    """Raise BadImageError for the errors and warnings of parsers: the file is damaged or takes too much memory."""
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
    """Make allocations in the block fail (MemoryError) beyond MOST_MEMORY more than what is allocated before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    pages = int(os.pread(status_file(os.getpid()), 64, 0).split()[0])  # of this process's address space
    limits.append(pages * resource.getpagesize() + MOST_MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@cache
def status_file(process: int) -> int:
    """Open /proc/self/statm once for each process id: opening it for every image takes a tenth of the time."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
