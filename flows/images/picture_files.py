"""Read one file of images: its head, and its levels exactly as they are stored, or why it cannot be used."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps

from flows.images.array_files import inspect_array, read_array
from flows.images.reading import FORMATS, BadImageError, Head, Kind, damage_named, limited, open_file, unchanged

MOST_FILE_BYTES = 2**28
MOST_HEAD_BYTES = 2**23
MOST_SCANS = 100
PRICE = 256
MOST_TILE = 2**24
STRIP = 2**22
BESIDES = "holds too much besides its pixels; save only the picture"

# Bits per level in the file, if they are not those of the mode.  Pillow scales levels of 1, 2 and 4 bits to 0..255.
STORED = {"L;2": 2, "L;4": 4, "I;12": 12}
MODES = {"1": (1, 1), "L": (1, 8), "RGB": (3, 8), "I;16": (1, 16), "I;16B": (1, 16), "I;16L": (1, 16), "I;16N": (1, 16)}


def inspect(path: Path) -> Head:
    """Return the head of a file without reading pixels.  Raises BadImageError."""
    if path.suffix.lower() == ".npy":
        return inspect_array(path)
    with damage_named(), open_image(path) as image:
        return head_of_image(image)


def read(path: Path, expected: Head | None = None) -> Iterator[np.ndarray]:
    """Yield the images of a file, (n,C,H,W) uint8, or uint16 for more than 8 bits.

    Raises BadImageError, also if the file no longer has the expected head.
    """
    if path.suffix.lower() == ".npy":
        yield from read_array(path, expected)
    else:
        yield read_picture(path, expected)[None]


def read_picture(path: Path, expected: Head | None) -> np.ndarray:
    """Return the levels of a picture, (C,H,W) uint8 or uint16.  Raises BadImageError.

    Not in `read`, which would keep Pillow's copy of the pixels, up to 320 MB, while the caller works on the levels.
    """
    with damage_named(), open_image(path) as image:
        head = head_of_image(image)
        unchanged(head, expected)
        return decoded(image, head)


def head_of_image(image: Image.Image) -> Head:
    """Return the head of an opened picture."""
    turned = orientation(image)
    # Pillow reports the size of a TIFF file as it is after turning.
    width, height = image.size[::-1] if turned >= 5 and image.format != "TIFF" else image.size
    channels, bits = MODES[image.mode]
    # The suffixes I and R are TIFF's inverted levels and reversed bits.
    kind = Kind((channels, height, width), STORED.get(raw_mode(image).rstrip("IR"), bits))
    return Head(kind, 1, format_of(image), turned != 1)


def format_of(image: Image.Image) -> str:
    """Return the format of an opened picture, such as `PNG`; `lossy WEBP` or `lossy TIFF` if it may lose detail."""
    match image.format:
        case "MPO":
            return "JPEG"
        case "WEBP" if lossy_webp(image):
            return "lossy WEBP"
        case "TIFF" if image.info["compression"] in ("tiff_jpeg", "jpeg", "webp"):  # lossless WebP counts, too
            return "lossy TIFF"
    return str(image.format)


def lossy_webp(image: Image.Image) -> bool:
    """Whether the first pixels of a WebP file are in a chunk `VP8 `, not `VP8L`.  Frames are in chunks `ANMF`."""
    file = image.fp  # type: ignore[attr-defined]
    place, name = 12, b""
    while name not in (b"VP8 ", b"VP8L"):
        file.seek(place)
        name, size = struct.unpack("<4sI", file.read(8))
        place += 24 if name == b"ANMF" else 8 + size + size % 2
    return bool(name == b"VP8 ")


def decoded(image: Image.Image, head: Head) -> np.ndarray:
    """Return the levels of an opened picture, upright, (C,H,W) uint8 or uint16."""
    if "progressive" in image.info:
        require_few_scans(image)
    with silent() if image.format == "TIFF" else nullcontext():
        image.load()
    if head.turned:
        ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    channels, bits = MODES[image.mode]
    pixels = np.empty((channels, height, width), np.uint8 if bits <= 8 else np.uint16)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):  # in strips, since NumPy makes two copies of what it converts
        strip = image.crop((0, top, width, min(top + rows, height)))
        levels = np.asarray(strip.convert("L") if strip.mode == "1" else strip)
        pixels[:, top : top + rows] = levels if levels.ndim == 2 else levels.transpose(2, 0, 1)
    factor = max(1, 255 // (2**head.kind.num_bits - 1))
    return pixels // pixels.dtype.type(factor) if factor > 1 else pixels


@contextmanager
def silent() -> Iterator[None]:
    """Discard what the block writes to stderr: libtiff prints there what Pillow raises."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def require_few_scans(image: Image.Image) -> None:
    """Raise BadImageError for a JPEG file of too many scans: each may be a few bytes and decodes all pixels."""
    file = image.fp  # type: ignore[attr-defined]
    file.seek(0)
    count = file.read().count(b"\xff\xda")
    if count > MOST_SCANS:
        raise BadImageError(f"{count} scans, of which at most {MOST_SCANS} are decoded; save it again")


def advice(kinds: set[Kind]) -> str:
    """Return how to convert images of several kinds to one."""
    channels = {kind.shape[0] for kind in kinds}
    if len({kind.num_bits for kind in kinds}) > 1 or not (len(channels) == 1 or channels == {1, 3}):
        return "convert them to one mode"
    settings = []
    if len(channels) > 1:
        settings.append("data.grayscale to true")
    if len({kind.shape[1:] for kind in kinds}) > 1:
        settings.append("data.resize to [height, width]")
    alternative = ", or convert them to one mode" if len(channels) > 1 else ""
    return f"set {' and '.join(settings)}{alternative}"


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open a picture whose mode stores levels.  Raises BadImageError, and what Pillow raises."""
    with open_file(path) as file, limited():
        size = os.fstat(file.fileno()).st_size
        if size > MOST_FILE_BYTES:
            raise BadImageError(f"too large: {size:,} bytes, of which at most {MOST_FILE_BYTES:,} are read")
        # Given a path, Pillow would map a TIFF file into memory and misread one that is to be turned.
        counted = Counted(file, MOST_HEAD_BYTES)
        with Image.open(cast(BinaryIO, counted), formats=FORMATS) as image:
            if reason := unusable(image):
                raise BadImageError(reason)
            if size > MOST_HEAD_BYTES + 8 * image.width * image.height:
                raise BadImageError(BESIDES)
            counted.left = MOST_HEAD_BYTES + 1.5 * size
            yield image


class Counted:
    """A file from which at most `left` bytes may be read; a read of fewer than `PRICE` bytes counts as `PRICE`.

    This bounds the time and memory spent on a file that is padded, has millions of parts, or refers to the same bytes
    many times.
    """

    def __init__(self, file: BinaryIO, left: float) -> None:
        self.left = left
        self.read_file = file.read
        self.seek = file.seek
        self.tell = file.tell
        self.fileno = file.fileno

    def read(self, size: int = -1) -> bytes:
        """Read from the file.  Raises BadImageError beyond the limit."""
        content = self.read_file(size)
        if size >= 0:  # a WebP file is read as a whole
            self.left -= max(len(content), PRICE)
            if self.left < 0:
                raise BadImageError(BESIDES)
        return content


def unusable(image: Image.Image) -> str | None:
    """Return why an intact picture cannot be used; None if it can."""
    # A JPEG file that also holds a preview or a gain map is "MPO"; its first frame is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        # Counting the frames of a TIFF file means walking from each to the next.
        count = "several" if image.format == "TIFF" else image.n_frames  # type: ignore[attr-defined]
        return f"{count} frames; save each as a file"
    tags = getattr(image, "tag_v2", {})  # only of TIFF files; the file chooses the types
    if max(numbers(tags.get(322))) * max(numbers(tags.get(323))) > MOST_TILE + 2 * image.width * image.height:
        return "tiles much larger than the picture; save it again"
    if image.mode not in MODES:
        return f"mode {image.mode}; convert it to gray levels or RGB"
    if "transparency" in image.info:
        return "a transparent colour; flatten it"
    if image.mode == "RGB" and ("16" in raw_mode(image) or max(numbers(tags.get(258))) > 8):
        return "16 bits per channel, of which 8 would be read; save it as .npy, (3,H,W) uint16"
    if (samples := max(numbers(tags.get(277)))) > (read := MODES[image.mode][0]):
        return f"{samples} channels, of which {read} would be read; save it as .npy, (C,H,W)"
    if image.mode.startswith("I;16") and tags.get(262) == 0:
        return "16 bits per level, of which 0 is white; save it with 0 as black"
    return None


def numbers(value: Any) -> list[int]:
    """Return the integers in the value of a TIFF tag, after a 0."""
    return [0, *(number for number in (value if isinstance(value, tuple) else [value]) if isinstance(number, int))]


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, or 1 (upright) if no orientation from 1 to 8 is stated.

    In a PNG file it counts only if it precedes the pixels, since a later one is read by decoding them.
    """
    asked = image.format != "PNG" or "exif" in image.info
    stated = image.getexif().get(0x0112, 1) if asked else 1
    return int(stated) if stated in range(2, 9) else 1


def raw_mode(image: Image.Image) -> str:
    """Return how the file stores the pixels, in Pillow's names: `L;4` is 4-bit gray."""
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
