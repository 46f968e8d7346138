"""One file of images: what it holds, and its levels, exactly as they are stored, or why that cannot be had."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flows.errors import Exit
from vdm.images import chunks

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".npy"})
FORMATS = ["PNG", "JPEG", "WEBP", "TIFF"]
ROWS = 1000

# Bits per level in the file where they are not those of the mode.  Pillow widens 1, 2 and 4 to 0..255 by a factor.
STORED = {"L;2": 2, "L;4": 4, "I;12": 12}
MODES = {"1": (1, 1), "L": (1, 8), "RGB": (3, 8), "I;16": (1, 16), "I;16B": (1, 16), "I;16L": (1, 16), "I;16N": (1, 16)}


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
        """The kind without what these transforms make the same."""
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


def inspect(path: Path) -> Head:
    """The head of a file; pixels are not read.  Raises BadImageError."""
    if path.suffix.lower() == ".npy":
        images, num_bits = open_array(path)
        return Head(Kind(images.shape[1:], num_bits), len(images), "NPY", False)
    with damage_named(), open_image(path) as image:
        turned = orientation(image)
        # Of a TIFF file Pillow has turned the size already.
        width, height = image.size[::-1] if turned >= 5 and image.format != "TIFF" else image.size
        kind = Kind((MODES[image.mode][0], height, width), stored_bits(image))
        return Head(kind, 1, str(image.format), turned != 1)


def read(path: Path) -> Iterator[np.ndarray]:
    """The images of a file, (n,C,H,W) uint8 or, of more than 8 bits, uint16.  Raises BadImageError."""
    if path.suffix.lower() == ".npy":
        images, num_bits = open_array(path)
        for _, chunk in chunks(images, ROWS):
            yield checked(chunk, num_bits)
        return
    with damage_named(), open_image(path) as image:
        num_bits, turned = stored_bits(image), orientation(image)
        image.load()
        upright = ImageOps.exif_transpose(image) if turned != 1 else image
        pixels = np.asarray(upright.convert("L") if image.mode == "1" else upright)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.uint16)
    yield pixels[None] // pixels.dtype.type(max(1, 255 // (2**num_bits - 1)))


def advice(kinds: set[Kind]) -> str:
    """How to make one kind of several."""
    channels = {kind.shape[0] for kind in kinds}
    if len({kind.num_bits for kind in kinds}) > 1 or not (len(channels) == 1 or channels == {1, 3}):
        return "convert them to one mode"
    gray = "data.grayscale to true" if len(channels) > 1 else ""
    size = "data.resize to [height, width]" if len({kind.shape[1:] for kind in kinds}) > 1 else ""
    return f"set {' and '.join(filter(None, (gray, size)))}{', or convert them to one mode' if gray else ''}"


@contextmanager
def damage_named() -> Iterator[None]:
    """BadImageError for what Pillow and NumPy raise, or warn of, when they read a file that is damaged or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except BadImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImageError(f"too large: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImageError(f"damaged, or not {', '.join(FORMATS)}", Exit.MISSING) from error
    except Exception as error:  # damaged bytes make these parsers raise almost anything, tokenize.TokenError even
        raise BadImageError(f"damaged: {error}", Exit.MISSING) from error


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """The opened file, of a mode whose pixels are levels.  Raises BadImageError, and what Pillow does."""
    if not path.is_file() or path.stat().st_size == 0:
        raise BadImageError("empty" if path.is_file() else "not a file", Exit.MISSING)
    # By its name Pillow would map a TIFF file that is to be turned, and misread it.
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        if reason := unusable(image):
            raise BadImageError(reason)
        yield image


def unusable(image: Image.Image) -> str | None:
    """Why the pixels of an intact file are not levels of channels; None when they are."""
    if getattr(image, "n_frames", 1) > 1:
        return f"{image.n_frames} frames; save each as a file"  # type: ignore[attr-defined]
    if image.mode not in MODES:
        return f"mode {image.mode}; convert it to gray levels or RGB"
    if "transparency" in image.info:
        return "a transparent colour; flatten it"
    if image.mode == "RGB" and "16" in raw_mode(image):
        return "16 bits per channel, of which 8 would be read; save it as .npy, (3,H,W) uint16"
    return None


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 for upright and for what is none of 1 to 8.

    Of a PNG file only when it precedes the pixels: asking would decode them.
    """
    asked = image.format != "PNG" or "exif" in image.info
    stated = image.getexif().get(0x0112, 1) if asked else 1
    return int(stated) if stated in range(2, 9) else 1


def stored_bits(image: Image.Image) -> int:
    """Bits per level in the file.  Ends of I and R tell TIFF's inverted levels and reversed bits: `L;4IR`."""
    return STORED.get(raw_mode(image).rstrip("IR"), MODES[image.mode][1])


def raw_mode(image: Image.Image) -> str:
    """How the file stores the pixels, in the decoder's words: `L;4` is 4-bit gray."""
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def open_array(path: Path) -> tuple[np.ndarray, int]:
    """A mapped array as (N,C,H,W), and its bits per level.  Raises BadImageError."""
    with damage_named():
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or not 2 <= array.ndim <= 4 or 0 in array.shape:
        raise BadImageError(f"an array of {getattr(array, 'shape', '?')}; wanted (H,W), (C,H,W) or (N,C,H,W)")
    if array.ndim > 2 and array.shape[-1] in (1, 3, 4) and array.shape[-3] > 4:
        raise BadImageError(f"an array of {array.shape}, channels last; transpose it to (N,C,H,W)")
    if array.ndim == 3 and len(array) > 4:
        count, height, width = array.shape
        gray, one = f"({count},1,{height},{width})", f"(1,{count},{height},{width})"
        raise BadImageError(f"an array of {array.shape}; gray images must be {gray}, one of {count} channels {one}")
    array = array.reshape((1,) * (4 - array.ndim) + array.shape) if array.ndim < 4 else array
    if array.dtype.kind == "f":
        raise BadImageError(floats(array[:ROWS]))
    match array.dtype.name:
        case "bool":
            return array, 1
        case "uint16":
            return array, 16
        case _ if array.dtype.kind in "iu":
            return array, 8
        case name:
            raise BadImageError(f"an array of {name}, not levels")


def floats(array: np.ndarray) -> str:
    """What is wrong with floats in place of levels."""
    if np.isnan(array).any():
        return f"{array.dtype} with NaN, not levels"
    lowest, highest = array.min(), array.max()
    return f"{array.dtype} from {lowest:g} to {highest:g}, not levels; save the integers that it was made of"


def checked(images: np.ndarray, num_bits: int) -> np.ndarray:
    """Integers of any type as uint8 or uint16.  Raises BadImageError for a level out of range."""
    for level in (int(images.min()), int(images.max())):
        if not 0 <= level < 2**num_bits:
            raise BadImageError(f"level {level} of {images.dtype}, outside 0..{2**num_bits - 1}")
    return images.astype(np.uint16 if num_bits > 8 else np.uint8)
