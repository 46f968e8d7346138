"""What `vdmctl sample MODEL` asks for: draw it, and write it as a grid, as PNG files, or as an array of levels."""

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image

from flows.core.documents import Count, Number, Sha256
from flows.core.errors import Exit, FileError, UserError
from flows.core.files import name_in_errors, replace_file_last, replace_folder, require_replaceable, write_whole
from flows.core.model import TrainedModel
from flows.core.params import Data
from flows.evaluation.results import SamplerSettings
from flows.images.grids import as_8_bits, grid, png, rows_of, stretch_of
from flows.images.image_set import class_numbers, dtype_of, write_array
from flows.images.picture import BadImageError, Colour, levels, read_images
from flows.images.user_files import shift_of_files, transforms_of
from flows.sampling import film
from flows.sampling.drawing import Drawing, draw
from vdm.model import VDM

if TYPE_CHECKING:
    from flows.core.params import Sample

WRITTEN = r"\d+\.png"
log = logging.getLogger(__name__)


class Request(NamedTuple):
    """A model, how to sample, the files to write and to read, and classes for the images in turn: `3,7`."""

    model: TrainedModel
    settings: "Sample"
    out: Path
    film: Path | None
    known: Path | None
    mask: Path | None
    force: bool
    classes: str | None = None


class Sampled(SamplerSettings):
    """What was drawn, and how."""

    out: str
    film: str | None
    """Null without `--film`."""
    num_images: Count
    classes: list[Count] | None
    """Their numbers, which the images have in turn; null for a model without classes."""
    approximate: bool
    """Whether known pixels were filled in around."""
    model_sha256: Sha256
    seconds: Number
    """How long drawing took."""


def answer(request: Request) -> Sampled:
    """Draw the images and write the outputs; return what was done, with the seconds that drawing took.

    Raises UserError for options and files that do not fit, and OSError that names the file.
    """
    require_outputs(request)
    model, vdm = request.model, request.model.vdm
    classes = list(range(vdm.classes)) if vdm.classes else None
    if request.classes is not None:
        classes = class_numbers(request.classes, vdm.classes, model.class_names)
    drawing = Drawing(model, request.settings.model_copy(update={"classes": classes}))
    beside = list[np.ndarray]()
    if request.known and request.mask:
        stated = transforms_of(model)
        known = read_known(request.known, vdm, stated)
        missing = read_mask(request.mask, vdm)
        drawing = drawing._replace(known=known, missing=missing)
        beside = [known.numpy(), np.where(missing, vdm.num_levels - 1, 0 * known)]
    begin = perf_counter()
    images = draw(drawing)
    seconds = perf_counter() - begin
    with ExitStack() as stack:
        if request.film:  # it appears after the images, or neither does
            content = film.encode_film(film.record(drawing), request.film.suffix)
            stack.enter_context(replace_file_last(request.film, content))
        shift = shift_of_files(transforms_of(model))
        write_drawn(request.out, images, vdm.num_levels, beside, rows=len(classes or []), shift=shift)
    return Sampled(
        out=str(request.out),
        film=str(request.film) if request.film else None,
        num_images=len(images),
        seed=request.settings.seed,
        **drawing.solver._asdict(),
        approximate=drawing.known is not None,
        model_sha256=model.sha256,
        seconds=seconds,
    )


def require_outputs(request: Request) -> None:
    """Raise UserError (exit 2) for outputs of another kind, or that exist, and for options that do not fit together."""
    if (request.known is None) != (request.mask is None):
        raise UserError("--known and --mask must be given together: a picture and its mask", Exit.USAGE)
    require_kind(request.out, ".png", ".npy", "")
    vdm = request.model.vdm
    if not request.out.suffix and vdm.num_levels > 256 and vdm.image_shape[0] != 1:
        reason = f"{request.out}: PNG files of {vdm.num_levels} levels are gray, and these images have"
        raise UserError(f"{reason} {vdm.image_shape[0]} channels; name an .npy file", Exit.USAGE)
    inputs = [path for path in (request.model.folder, request.known, request.mask) if path]
    names = None if request.out.suffix else WRITTEN
    require_replaceable(request.out, *inputs, force=request.force, names=names)
    if request.film:
        require_kind(request.film, ".png", ".gif")
        require_replaceable(request.film, *inputs, force=request.force)
        if request.film.resolve() == request.out.resolve():
            raise UserError(f"--out and --film are both {request.out}; name two files", Exit.USAGE)
    for path in filter(None, (request.out, request.film)):
        path.parent.mkdir(parents=True, exist_ok=True)  # fails now, not after sampling


def require_kind(path: Path, *kinds: str) -> None:
    """Raise UserError (exit 2) unless the path ends in one of the kinds; "" is a path without an ending."""
    if path.suffix.lower() not in kinds:
        listed = " or ".join(kind or "no ending, for a folder" for kind in kinds)
        raise UserError(f"{path}: unknown ending; choose {listed}", Exit.USAGE)


def write_drawn(
    path: Path,
    images: np.ndarray,
    num_levels: int,
    beside: Sequence[np.ndarray] = (),
    *,
    rows: int = 0,
    shift: int = 0,
) -> None:
    """Write a grid (.png), an array of levels (.npy), or a folder with a PNG file for each image: of 8 bits, or of 16.

    The images `beside` (C,H,W) come first in a grid, and are in no other output.  Without them, a grid may have `rows`,
    as in `rows_of`.  Above 256 levels, files of pictures hold the levels, shifted to the left by `shift`.  The output
    appears whole or not at all.  Raises OSError that names the file.
    """
    match path.suffix.lower():
        case ".png":
            together = np.stack([*beside, *images])
            columns = max(1 + len(beside), math.ceil(math.sqrt(len(together)))) if beside else None
            by_row = rows and not beside
            write_whole(path, png(rows_of(images, num_levels, rows) if by_row else grid(together, num_levels, columns)))
            if num_levels > 256:
                log.info("%s: %s", path, stretch_of(together, num_levels).words)
        case ".npy":
            write_array(path, [images.astype(dtype_of(num_levels), copy=False)])
        case _:
            digits = len(str(len(images) - 1))
            with replace_folder(path) as folder:
                pictures = as_8_bits(images, num_levels) if num_levels <= 256 else images[:, 0] << shift
                for number, image in enumerate(pictures):
                    file = folder / f"{number:0{digits}}.png"
                    with name_in_errors(file, file):
                        Image.fromarray(image.astype(dtype_of(num_levels), copy=False)).save(file, optimize=True)


def read_known(path: Path, vdm: VDM, stated: Data | None) -> torch.Tensor:
    """Return a picture, or an array of levels in an .npy file, as levels (C,H,W) of the model.

    Black and white of a picture are the first and the last level; above 256 levels it holds the levels as the model's
    files do, whose transforms are `stated`.  Where it is transparent, it shows their background.  Raises UserError:
    exit 5 for a file that cannot be read, 4 for one that is no picture of levels, 2 for another size or other levels
    than the model's.
    """
    levels, white = read_one_image(path, stated.background_colour if stated else None)
    highest = vdm.num_levels - 1
    if highest > 255 >= white:
        raise FileError(path, f"it has 8 bits, and the model's levels are 0 to {highest}", Exit.USAGE)
    if path.suffix.lower() != ".npy":
        levels = np.rint(levels * (highest / white)) if highest <= 255 else levels >> shift_of_files(stated)
    if levels.max() > highest:
        raise FileError(path, f"it holds level {levels.max()}, but the model's levels are 0 to {highest}", Exit.USAGE)
    require_shape(path, levels.shape, vdm.image_shape)
    return torch.from_numpy(levels.astype(np.int64))


def read_mask(path: Path, vdm: VDM) -> torch.Tensor:
    """Return where the mask is bright, or above 0 in an .npy file, in any channel: (H,W), true for pixels to fill in.

    Raises UserError as `read_known`, and for a mask without bright pixels (exit 2).
    """
    stored, white = read_one_image(path)
    missing = (stored > (0 if path.suffix.lower() == ".npy" else white // 2)).any(0)
    require_shape(path, missing.shape, vdm.image_shape[1:])
    if not missing.any():
        raise FileError(path, "no pixel of the mask is white, so there is nothing to fill in", Exit.USAGE)
    return torch.from_numpy(missing)


def read_one_image(path: Path, background: Colour | None = None) -> tuple[np.ndarray, int]:
    """Return the image in a file, (C,H,W) of an unsigned type, and the highest level of its bits.

    Raises UserError: exit 2 for several images, 4 or 5 for a file that holds none.
    """
    try:
        picture = read_images(path, background)
        first = levels(picture.pixels[0], picture.num_bits)
    except BadImageError as error:
        raise FileError(path, str(error), error.code) from error
    if len(picture.pixels) > 1:
        raise FileError(path, f"it holds {len(picture.pixels)} images; give a file with one", Exit.USAGE)
    return first, picture.num_levels - 1


def require_shape(path: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise UserError (exit 2) unless a file's shape is the model's."""
    if found != expected:
        sizes = " x ".join(map(str, found)), " x ".join(map(str, expected))
        raise FileError(path, f"it is {sizes[0]}, but the model's images are {sizes[1]}", Exit.USAGE)
