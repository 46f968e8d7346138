"""Read .npy files: the header, and the rows in chunks of bounded size.

NumPy's own reader allocates what the header claims, and a process that maps a file dies when the file shrinks.
"""

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from flows.images.reading import BadImageError, Head, Kind, damage_named, limited, open_file, unchanged
from flows.images.store import fitting

ROWS = 1000
MOST_HEAD_BYTES = 2**16
MOST_ROW_BYTES = 2**28


class Layout(NamedTuple):
    """What the header of an array says."""

    shape: tuple[int, ...]
    fortran: bool
    """Whether the first index changes fastest."""
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize


def inspect_array(path: Path) -> Head:
    """Return the head of a file of images without reading pixels.  Raises BadImageError."""
    with open_file(path) as file:
        return head_of(file, read_images_layout(file))


def read_array(path: Path, expected: Head | None) -> Iterator[np.ndarray]:
    """Yield the images of a file, (n,C,H,W) uint8 or uint16.  Raises BadImageError."""
    with open_file(path) as file:
        layout = read_images_layout(file)
        head = head_of(file, layout)
        unchanged(head, expected)
        rows = read_rows(file, layout)
        while (chunk := next_of(rows)) is not None:
            yield checked(chunk, head.kind.num_bits)


def next_of(rows: Iterator[np.ndarray]) -> np.ndarray | None:
    """Return the next rows, or None after the last.  Raises BadImageError."""
    with damage_named(), limited():
        return next(rows, None)


def read_images_layout(file: IO[bytes]) -> Layout:
    """Return the layout of a file of images as (N,C,H,W).  Raises BadImageError, also for a file that is too short."""
    with damage_named(), limited():
        layout = read_layout(file)
        held = os.fstat(file.fileno()).st_size - file.tell()
        if held < layout.num_bytes:
            raise ValueError(f"{held:,} bytes, but an array of {layout.shape} {layout.dtype} according to the header")
    shape = layout.shape
    if 0 in shape:
        raise BadImageError(f"an array of {shape}, which holds no pixel")
    if not 2 <= len(shape) <= 4:
        raise BadImageError(f"an array of {shape}; wanted (H,W), (C,H,W) or (N,C,H,W)")
    # If one of the two axes before the last has at most 4 entries, it may be the channels: the documented order holds.
    if len(shape) > 2 and shape[-1] in (1, 3, 4) and min(shape[-3:-1]) > 4:
        raise BadImageError(f"an array of {shape}, channels last; transpose it to (N,C,H,W)")
    if len(shape) == 3 and shape[0] > 4:
        count, height, width = shape
        gray, one = f"({count},1,{height},{width})", f"(1,{count},{height},{width})"
        raise BadImageError(f"an array of {shape}; gray images must be {gray}, one image of {count} channels {one}")
    return layout._replace(shape=(1,) * (4 - len(shape)) + shape)


def head_of(file: IO[bytes], layout: Layout) -> Head:
    """Return the head of an (N,C,H,W) array as images.  Raises BadImageError unless its entries are levels."""
    match layout.dtype.name:
        case "bool":
            num_bits = 1
        case "uint16":
            num_bits = 16
        case _ if layout.dtype.kind in "iu":
            num_bits = 8
        case name:
            raise BadImageError(f"an array of {name}, not levels; save the integers that it was made of")
    if os.fstat(file.fileno()).st_size - file.tell() > layout.num_bytes:
        raise BadImageError("more bytes than its array has, perhaps of a second array; save all images as one array")
    channels, height, width = layout.shape[1:]
    return Head(Kind((channels, height, width), num_bits), layout.shape[0], "NPY", False)


def checked(images: np.ndarray, num_bits: int) -> np.ndarray:
    """Return integers of any type as uint8 or uint16.  Raises BadImageError for a level out of range."""
    for level in (int(images.min()), int(images.max())):
        if not 0 <= level < 2**num_bits:
            raise BadImageError(f"level {level} of {images.dtype}, outside 0..{2**num_bits - 1}")
    return images.astype(np.uint16 if num_bits > 8 else np.uint8, copy=False)


def read_layout(file: IO[bytes]) -> Layout:
    """Read the header of an array; the file is then at the first byte of the content.  Raises what NumPy raises."""
    stream, formats = io.BytesIO(file.read(MOST_HEAD_BYTES)), np.lib.format
    version = formats.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the .npy format")
    read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
    layout = Layout(*read(stream))
    if not all(0 <= length < 2**63 for length in layout.shape):
        raise ValueError(f"impossible shape {layout.shape}")
    file.seek(stream.tell())
    return layout


def read_rows(file: IO[bytes], layout: Layout) -> Iterator[np.ndarray]:
    """Yield the rows (n,...) after the header, at most `ROWS` and a bounded number of bytes at a time.

    An array in Fortran order is read as a whole.  Raises ValueError if the file is too short, and MemoryError if a row,
    or an array in Fortran order, is too large.
    """
    bound = layout.num_bytes if layout.fortran else layout.row_bytes
    if bound > MOST_ROW_BYTES:
        what = "in Fortran order" if layout.fortran else "in one image"
        raise MemoryError(f"{bound:,} bytes {what}, of which at most {MOST_ROW_BYTES:,} are read")
    count = fitting(ROWS, layout.row_bytes)
    firsts = range(0, layout.shape[0], count)
    if layout.fortran:
        whole = read_entries(file, layout.dtype, math.prod(layout.shape)).reshape(layout.shape, order="F")
        yield from (np.ascontiguousarray(whole[first : first + count]) for first in firsts)
        return
    for first in firsts:
        shape = (min(count, layout.shape[0] - first), *layout.shape[1:])
        yield read_entries(file, layout.dtype, math.prod(shape)).reshape(shape)


def read_entries(file: IO[bytes], dtype: np.dtype[Any], count: int) -> np.ndarray:
    """Return the next (count,) entries.  Raises ValueError if the file is too short."""
    content = np.empty(count * dtype.itemsize, np.uint8)
    if file.readinto(content.data) != len(content):  # type: ignore[attr-defined]
        raise ValueError("cut short")
    return content.view(dtype)
