"""Read one file of images, with its levels exactly as they are stored, or say why it cannot be used."""

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flows.core.errors import Exit, brief
from flows.core.files import open_regular
from flows.images.store import map_array

FORMATS = ["PNG", "JPEG", "WEBP", "TIFF"]
MODES = {"1": (1, 1), "L;2": (1, 2), "L;4": (1, 4), "L": (1, 8), "RGB": (3, 8), "I;16": (1, 16), "I;16B": (1, 16)}
"""Channels and bits by Pillow's name for how a file stores its pixels.  Pillow reads all others with loss, or alpha."""
ORIENTATION = 0x0112  # EXIF's tag


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

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} of {self.num_bits} bits"


class Head(NamedTuple):
    """What a file holds."""

    kind: Kind
    format: str
    """`NPY`, or the name of a picture's format, such as `PNG`, `lossy WEBP` or `lossy TIFF`."""
    turned: bool = False
    """Whether EXIF asks to rotate or mirror the picture."""


def accept(head: Head) -> None:
    """Take any images."""


def read_images(path: Path, check: Callable[[Head], None] = accept) -> tuple[Head, np.ndarray]:
    """Return the head and the images of a file, (N,C,H,W): one picture, or an array that is mapped into memory.

    `levels` converts the images to the type of their levels.  `check` is called before pixels are decoded; it may raise
    BadImageError.  Raises BadImageError for a file that is damaged, too large, or does not hold images of levels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return read_array(path, check) if path.suffix.lower() == ".npy" else read_picture(path, check)
    except BadImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        raise BadImageError(f"too large: {brief(error)}; make it smaller") from error
    except UnidentifiedImageError as error:
        raise BadImageError(f"damaged, or not {', '.join(FORMATS)}", Exit.MISSING) from error
    except Exception as error:  # damaged bytes make Pillow and NumPy raise almost anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"damaged: {brief(error)}"
        raise BadImageError(reason, Exit.MISSING) from error


def levels(images: np.ndarray, num_bits: int) -> np.ndarray:
    """Return images of any integers as uint8 or, for more than 8 bits, uint16.  Raises BadImageError out of range."""
    for level in (int(images.min()), int(images.max())):
        if not 0 <= level < 2**num_bits:
            raise BadImageError(f"level {level} of {images.dtype}, outside 0..{2**num_bits - 1}")
    return images.astype(np.uint16 if num_bits > 8 else np.uint8, copy=False)


def read_array(path: Path, check: Callable[[Head], None]) -> tuple[Head, np.ndarray]:
    """Return the head and the images of a .npy file of integers: (H,W), (C,H,W) or (N,C,H,W)."""
    array = map_array(path)
    shape = array.shape
    if array.dtype.kind not in "biu":
        raise BadImageError(f"an array of {array.dtype}, not levels; save the integers that it was made of")
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise BadImageError(f"an array of {shape}; wanted (H,W), (C,H,W) or (N,C,H,W)")
    # If one of the two axes before the last has at most 4 entries, it may be the channels: the documented order holds.
    if len(shape) > 2 and shape[-1] in (1, 3, 4) and min(shape[-3:-1]) > 4:
        raise BadImageError(f"an array of {shape}, channels last; transpose it to (N,C,H,W)")
    if len(shape) == 3 and shape[0] > 4:
        raise BadImageError(f"an array of {shape}; add the axis of the channels, as in (N,1,H,W)")
    images = array.reshape((1,) * (4 - len(shape)) + shape)
    head = Head(Kind(images.shape[1:], {"bool": 1, "uint16": 16}.get(array.dtype.name, 8)), "NPY")
    check(head)
    return head, images


def read_picture(path: Path, check: Callable[[Head], None]) -> tuple[Head, np.ndarray]:
    """Return the head and the levels, (1,C,H,W) uint8 or uint16, of a picture, turned as EXIF says."""
    # Given a path, Pillow would map a TIFF file into memory and misread one that is to be turned.
    with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
        # A JPEG file that also holds a preview or a gain map is "MPO"; its first frame is the photograph.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise BadImageError("several frames; save each as a file")
        if (stored := stored_mode(image)) not in MODES or "transparency" in image.info:
            reason = "a transparent colour" if stored in MODES else f"pixels of mode {stored}"
            raise BadImageError(f"{reason}; convert it to gray levels or RGB of 8 bits, or save it as .npy (C,H,W)")
        channels, bits = MODES[stored]
        orientation = stated_orientation(image)
        # Pillow reports the size of a TIFF file as it is after turning.
        width, height = image.size[::-1] if orientation >= 5 and image.format != "TIFF" else image.size
        head = Head(Kind((channels, height, width), bits), format_of(image), orientation != 1)
        check(head)
        image.load()
        if head.turned:
            ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    if bits < 8:
        pixels = pixels // np.uint8(255 // (2**bits - 1))  # Pillow scales these levels to 0..255
    return head, levels(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), bits)[None]


def stored_mode(image: Image.Image) -> str:
    """Return how the file stores the pixels, in Pillow's names: `L;4` is 4-bit gray."""
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else image.mode  # a WebP file has no tiles
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def stated_orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, or 1 (upright) if none from 1 to 8 is stated.

    In a PNG file it counts only if it precedes the pixels, since a later one is read by decoding them.
    """
    stated = image.getexif().get(ORIENTATION) if image.format != "PNG" or "exif" in image.info else None
    return int(stated) if stated in range(1, 9) else 1


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
