"""A picture, read from a file with its levels exactly as they are stored, or the reason why it cannot be used.

A picture with transparency has no levels of its own.  Laid over a background it has 8 bits.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from flows.core.errors import Exit, FileError, UserError, brief
from flows.core.files import open_regular
from flows.images.image_set import chunks, map_array
from vdm.choices import Split

FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"]
FIRST_FRAME = "GIF (first frame)"
BITS = {"1": 1, "L;2": 2, "L;4": 4, "L": 8, "RGB": 8, "I;16": 16, "I;16B": 16, "I;16N": 16}
BITS |= {"1;I": 1, "L;2I": 2, "L;4I": 4, "L;I": 8}
"""Bits per level by Pillow's name for how a file stores its pixels; of those with I at the end, 0 is white.

The other ways in which pixels may be stored are palettes and, of 8 and 16 bits, gray levels and RGB beside alpha.
"""
WHITE_IS_ZERO = 0
"""What a TIFF file says of levels of which 0 is white."""
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


STRIP = 2**20
"""Pixels that are laid over a background at a time."""


class BadImageError(Exception):
    """A file that cannot be used: what such files are, what to do with them, and what this one has of its own.

    `code` is MISSING for damage, INVALID_DATA for what is not supported.
    """

    def __init__(
        self, what: str, advice: str, code: Exit = Exit.INVALID_DATA, *, detail: str = "", may_fit: bool = False
    ) -> None:
        super().__init__(f"{what}{f' ({detail})' if detail else ''}; {advice}")
        self.what, self.advice, self.code, self.detail = what, advice, code, detail
        self.may_fit = may_fit
        """Whether it could be used if it was made to fit a model."""


class DoesNotFit(UserError):
    """Pictures are not as a model takes them, and could be made to fit."""


class FileDoesNotFit(FileError, DoesNotFit):
    """The same of a file, or of a source, that is named."""


class Picture(NamedTuple):
    """What a file holds, and what is known of it: a picture, or an array of N of one shape, which count as one here."""

    pixels: np.ndarray
    """(N,C,H,W) of any integers, mapped into memory if they are an array; `parts` and `levels` convert them."""
    num_levels: int = 256
    """K of the file: its levels are 0..K-1."""
    format: str = ""
    """`NPY`, or the format of a picture: one of `FORMATS`, `lossy WEBP`, `lossy TIFF` or `FIRST_FRAME`."""
    before: np.ndarray | None = None
    """Of a picture with transparency, its colours and its opacity, (N,C+1,H,W), before the background."""
    lightness: float | None = None
    """Of a picture with transparency, the mean gray level of what it shows, 0 to 255."""
    name: str | None = None
    """The name of its file in the source, if that has files."""
    labels: np.ndarray | None = None
    """(N,) integers."""
    split: Split | None = None
    """The split in which the source has it; None if it has no splits."""
    number: int = 0
    """The number of the first of these images in the file."""
    transforms: str = "none"
    """The transforms that were applied, in words; see `flows.images.transforms`."""
    changes: str | None = None
    """What was done to make it fit a model, in words, "" for nothing; None if it was not to be made to fit."""
    is_resized: bool = False
    """Whether that changed its size."""

    @property
    def num_bits(self) -> int:
        """Bits per level."""
        return (self.num_levels - 1).bit_length()

    @property
    def original(self) -> np.ndarray:
        """What the picture was before the background, (N,...)."""
        return self.pixels if self.before is None else self.before

    def parts(self, rows: int) -> Iterator["Picture"]:
        """Yield it in parts of at most so many rows, of levels.  Raises BadImageError for integers that are none."""
        for first, pixels in chunks(self.pixels, rows):
            yield self.part(slice(first, first + len(pixels)), levels(pixels, self.num_bits))

    def part(self, some: slice | np.ndarray, pixels: np.ndarray | None = None) -> "Picture":
        """Return some of its rows, with these `pixels` if they are given."""
        before, labels = (None if each is None else each[some] for each in (self.before, self.labels))
        number = self.number + (some.start or 0) if isinstance(some, slice) else self.number
        pixels = self.pixels[some] if pixels is None else pixels
        return self._replace(pixels=pixels, before=before, labels=labels, number=number)


class PictureSize(NamedTuple):
    """What the header of a picture says."""

    width: int
    height: int
    has_transparency: bool

    @property
    def num_pixels(self) -> int:
        """The pixels of the picture."""
        return self.width * self.height

    @property
    def cost(self) -> int:
        """The pixels without transparency that take as much time and memory to read."""
        return self.num_pixels * (2 if self.has_transparency else 1)


def read_size(path: Path) -> PictureSize | None:
    """Return what the header of a picture says, without decoding it; None for what is no picture."""
    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                return PictureSize(*image.size, image.has_transparency_data)
    except Exception:  # damaged bytes make Pillow raise almost anything, and its reader says what
        return None


def read_images(path: Path, background: Colour | None = None) -> Picture:
    """Return what a file holds; pictures with transparency are laid over the background.

    Raises BadImageError if the file is damaged, too large, or does not hold levels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return read_array(path) if path.suffix.lower() == ".npy" else read_picture(path, background)
    except BadImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        raise BadImageError("too large", "make smaller", detail=brief(error)) from error
    except UnidentifiedImageError as error:  # its message shows a Python object
        detail = f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        raise BadImageError("damaged", "replace or remove", Exit.MISSING, detail=detail) from error
    except Exception as error:  # damaged bytes make Pillow and NumPy raise almost anything
        if isinstance(error, OSError) and error.strerror:
            raise BadImageError("unreadable", "replace or remove", Exit.MISSING, detail=error.strerror) from error
        raise BadImageError("damaged", "replace or remove", Exit.MISSING, detail=brief(error)) from error


def levels(pixels: np.ndarray, num_bits: int) -> np.ndarray:
    """Return integers of any type as uint8 or, for more than 8 bits, uint16.  Raises BadImageError out of range."""
    for level in (int(pixels.min()), int(pixels.max())):
        if not 0 <= level < 2**num_bits:
            what, detail = f"with levels outside 0..{2**num_bits - 1}", f"{level} of {pixels.dtype}"
            raise BadImageError(what, "save levels from 0 as uint8 or uint16", detail=detail)
    return pixels.astype(np.uint16 if num_bits > 8 else np.uint8, copy=False)


def read_array(path: Path) -> Picture:
    """Return the images in a .npy file of integers: (H,W), (C,H,W) or (N,C,H,W)."""
    array = map_array(path)
    shape = array.shape
    if array.dtype.kind not in "biu":
        raise BadImageError(f"of {array.dtype}, not levels", "save the integers of which it was made")
    # If one of the two axes before the last has at most 4 entries, it may be the channels: the documented order holds.
    channels_last = len(shape) > 2 and shape[-1] in (1, 3, 4) and min(shape[-3:-1]) > 4
    many_channels = len(shape) == 3 and shape[0] > 4
    if not 2 <= len(shape) <= 4 or 0 in shape or channels_last or many_channels:
        advice = "save (H,W), (C,H,W) of at most 4 channels, or (N,C,H,W), with channels before rows"
        raise BadImageError("of an unusual shape", advice, detail=str(shape))
    num_bits = {"bool": 1, "uint16": 16}.get(array.dtype.name, 8)
    return Picture(array.reshape((1,) * (4 - len(shape)) + shape), 2**num_bits, "NPY")


def read_picture(path: Path, background: Colour | None) -> Picture:
    """Return a picture, turned as EXIF says, without an alpha channel."""
    # Given a path, Pillow would map a TIFF file into memory and misread one that is to be turned.
    with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
        # A JPEG file that also holds a preview or a gain map is "MPO"; its first frame is the photograph.
        if getattr(image, "is_animated", False) and image.format not in ("MPO", "GIF"):
            how = ", as `tiffsplit FILE` does" if image.format == "TIFF" else ""
            raise BadImageError("with several frames", f"save each frame as a file{how}")
        # How the file stores the pixels, in Pillow's names: `L;4` is 4-bit gray.  A WebP file has no tiles.
        tile: Any = getattr(image, "tile", None)
        arguments = tile[0][3] if tile and image.format not in ("GIF", "BMP") else image.mode
        stored = arguments[0] if isinstance(arguments, tuple) else arguments
        if stored not in BITS and image.mode not in ("LA", "P", "PA", "RGBA"):
            raise refuse_picture(image, stored)
        found = format_of(image, file)
        # Pillow turns levels of which 0 is white, but not those of 16 bits.
        of_white = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
        is_negative = of_white and BITS.get(stored) == 16
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            before = apart(image, stored)
            colours, alpha = before[..., :-1], before[..., -1]
            if background is None and alpha.min() < 255:
                shown_as = 'white, black or "#rrggbb"'
                advice = f"set data.background ({shown_as}), or lay them over a colour and save them without alpha"
                warning = 'an image editor\'s "convert to RGB" may show colours that transparency hides'
                raise BadImageError("with transparency", f"{advice}; {warning}", may_fit=True)
            if background is None and "16" in stored:
                raise refuse_picture(image, stored)
            if alpha.min() < 255 and background is not None:
                pixels, lightness = lay_over(colours, alpha, background)
                pixels, before = (each.transpose(2, 0, 1)[None] for each in (pixels, before))
                return Picture(pixels, 256, found, before, lightness)
            pixels = colours
        elif image.mode == "P":
            pixels = np.asarray(image.convert("RGB"))
        else:
            pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    if (num_bits := BITS.get(stored, 8)) < 8:
        pixels = pixels // np.uint8(255 // (2**num_bits - 1))  # Pillow scales these levels to 0..255
    if is_negative:
        pixels = np.uint16(2**16 - 1) - pixels
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return Picture(pixels[None], 2**num_bits, found)


def apart(image: Image.Image, stored: str) -> np.ndarray:
    """Return the colours and the opacity of a picture with transparency, (H,W,2) or (H,W,4) of uint8.

    Of pixels of 16 bits these are the upper 8.  Raises BadImageError if a transparent colour of 16 bits is named.
    """
    has_alpha = image.mode in ("LA", "PA", "RGBA")
    if "16" in stored and not has_alpha:
        raise refuse_picture(image, stored)
    if stored in ("L;2", "L;4"):  # Pillow scales the levels, but not the level that is transparent
        image.info["transparency"] *= 255 // (2 ** BITS[stored] - 1)
    is_gray = stored.startswith("LA") or image.mode in ("1", "L", "LA")
    pixels = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    return pixels[..., :: 3 if is_gray else 1]


def lay_over(colours: np.ndarray, alpha: np.ndarray, background: Colour) -> tuple[np.ndarray, float]:
    """Return the colours (H,W,1) or (H,W,3) over the background, rounded, and the mean gray level of what they show.

    Gray ones are RGB if the background is not gray.
    """
    is_gray = colours.shape[2] == 1 and len({*background}) == 1
    under = np.array(background[:1] if is_gray else background, np.uint16)
    pixels = np.empty((*alpha.shape, 1 if is_gray else 3), np.uint8)
    shown = weight = 0.0
    rows = max(1, STRIP // alpha.shape[1])
    for some in (slice(first, first + rows) for first in range(0, len(alpha), rows)):
        opacity = alpha[some, :, None].astype(np.uint16)
        pixels[some] = (colours[some] * opacity + under * (255 - opacity) + 127) // 255
        weights = alpha[some] + 1e-9
        shown, weight = shown + (colours[some].mean(2) * weights).sum(), weight + weights.sum()
    return pixels, float(shown / weight)


def refuse_picture(image: Image.Image, stored: str) -> BadImageError:
    """Return why a picture cannot be used whose pixels are `stored` in another way than can be read."""
    match image.mode:
        case "CMYK":
            return BadImageError("in CMYK", "convert to RGB")
        case "RGB" | "RGBA" if "16" in stored:
            return BadImageError("in colour with 16 bits", "convert to 8 bits, or save as .npy, (C,H,W)")
    advice = "convert to gray levels or RGB of 8 bits, or save as .npy, (C,H,W)"
    return BadImageError("in an unusual pixel format", advice)


def format_of(image: Image.Image, file: BinaryIO) -> str:
    """Return the format of a picture, such as `PNG`; `lossy WEBP` or `lossy TIFF` if it may lose detail."""
    match image.format:
        case "MPO":
            return "JPEG"
        case "GIF" if getattr(image, "is_animated", False):
            return FIRST_FRAME
        case "WEBP":
            file.seek(0)  # Pillow has read the whole file
            # The chunk of a lossless picture begins early, after at most a profile of colours.
            return "WEBP" if b"VP8L" in file.read(2**16) else "lossy WEBP"
        case "TIFF" if image.info["compression"] in ("tiff_jpeg", "jpeg", "webp"):  # lossless WebP counts, too
            return "lossy TIFF"
    return str(image.format)
