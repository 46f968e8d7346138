"""Draw what `vdmctl sample MODEL` asks for, and write it."""

from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from flows.core.checkpoint import load_model, model_sha256, read_description
from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.core.files import written_last
from flows.core.folders import require_replaceable
from flows.images.labels import class_numbers
from flows.images.picture_files import BadImageError, levels, read_images
from flows.sampling import film, pictures
from flows.sampling.drawing import draw, fill, filling, sampling, solver_of
from vdm.model import VDM

if TYPE_CHECKING:
    from flows.core.params import Sample


class Request(NamedTuple):
    """A model folder, how to sample, the files to write and to read, and classes for the images in turn: `3,7`."""

    model: Path
    settings: "Sample"
    out: Path
    film: Path | None
    known: Path | None
    mask: Path | None
    force: bool
    classes: str | None = None


def answer(request: Request) -> dict[str, Any]:
    """Draw the images and write the outputs; return what was done, with the seconds that drawing took.

    Raises CheckpointError, UserError for options and files that do not fit, and OSError that names the file.
    """
    require_possible(request)
    vdm = load_model(request.model, find_device(request.settings.device))
    classes = list(range(vdm.classes)) if vdm.classes else None
    if request.classes is not None:
        classes = class_numbers(request.classes, vdm.classes, read_description(request.model).get("class_names"))
    request = request._replace(settings=request.settings.model_copy(update={"classes": classes}))
    parts, beside = None, list[np.ndarray]()
    if request.known and request.mask:
        parts = known, missing = read_known(request.known, vdm), read_mask(request.mask, vdm)
        beside = [known.numpy(), np.where(missing, vdm.num_levels - 1, 0 * known)]
    begin = perf_counter()
    images = fill(vdm, request.settings, *parts) if parts else draw(request.model, request.settings)
    seconds = perf_counter() - begin
    with ExitStack() as stack:
        if request.film:  # it appears after the images, or neither does
            steps_to = filling(vdm, request.settings, *parts) if parts else sampling(vdm, request.settings)
            content = film.encoded(film.record(vdm, request.settings, steps_to), request.film.suffix)
            stack.enter_context(written_last(request.film, content))
        pictures.write(request.out, images, vdm.num_levels, beside, rows=len(classes or []))
    solver = solver_of(request.settings, vdm)
    if parts:
        solver = solver._replace(order=1, eta=1.0)  # as `fill_in` always takes its steps
    return {
        "out": str(request.out),
        "film": str(request.film) if request.film else None,
        "num_images": len(images),
        "seed": request.settings.seed,
        **solver._asdict(),
        "approximate": parts is not None,
        "model_sha256": model_sha256(request.model),
        "seconds": seconds,
    }


def require_possible(request: Request) -> None:
    """Raise UserError (exit 2) for outputs of another kind, or that exist, and for options that do not fit together."""
    if (request.known is None) != (request.mask is None):
        raise UserError("--known and --mask must be given together: a picture and its mask", Exit.USAGE)
    pictures.require_kind(request.out, ".png", ".npy", "")
    inputs = [path for path in (request.model, request.known, request.mask) if path]
    names = None if request.out.suffix else pictures.WRITTEN
    require_replaceable(request.out, *inputs, force=request.force, names=names)
    if request.film:
        pictures.require_kind(request.film, ".png", ".gif")
        require_replaceable(request.film, *inputs, force=request.force)
        if request.film.resolve() == request.out.resolve():
            raise UserError(f"--out and --film are both {request.out}; name two files", Exit.USAGE)
    for path in filter(None, (request.out, request.film)):
        path.parent.mkdir(parents=True, exist_ok=True)  # fails now, not after sampling


def read_known(path: Path, vdm: VDM) -> torch.Tensor:
    """Return a picture, or an array of levels in an .npy file, as levels (C,H,W) of the model.

    Black and white of a picture are the first and the last level.  Raises UserError: exit 5 for a file that cannot be
    read, 4 for one that is no picture of levels, 2 for another size or other levels than the model's.
    """
    levels, white = read(path)
    highest = vdm.num_levels - 1
    if path.suffix.lower() != ".npy":
        levels = np.rint(levels * (highest / white))
    elif levels.max() > highest:
        raise UserError(f"{path} holds level {levels.max()}, but the model's levels are 0 to {highest}", Exit.USAGE)
    require_size(path, levels.shape, vdm.image_shape)
    return torch.from_numpy(levels.astype(np.int64))


def read_mask(path: Path, vdm: VDM) -> torch.Tensor:
    """Return where the mask is bright, or above 0 in an .npy file, in any channel: (H,W), true for pixels to fill in.

    Raises UserError as `read_known`, and for a mask without bright pixels (exit 2).
    """
    stored, white = read(path)
    missing = (stored > (0 if path.suffix.lower() == ".npy" else white // 2)).any(0)
    require_size(path, missing.shape, vdm.image_shape[1:])
    if not missing.any():
        raise UserError(f"{path}: no pixel of the mask is white, so there is nothing to fill in", Exit.USAGE)
    return torch.from_numpy(missing)


def read(path: Path) -> tuple[np.ndarray, int]:
    """Return the image in a file, (C,H,W) of an unsigned type, and the highest level of its bits.

    Raises UserError: exit 2 for several images, 4 or 5 for a file that holds none.
    """
    try:
        images = read_images(path)
        first = levels(images.pixels[0], images.num_bits)
    except BadImageError as error:
        raise UserError(f"{path}: {error}", error.code) from error
    if len(images.pixels) > 1:
        raise UserError(f"{path} holds {len(images.pixels)} images; give a file with one", Exit.USAGE)
    return first, 2**images.num_bits - 1


def require_size(path: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise UserError (exit 2) unless a file's shape is the model's."""
    if found != expected:
        sizes = " x ".join(map(str, found)), " x ".join(map(str, expected))
        raise UserError(f"{path} is {sizes[0]}, but the model's images are {sizes[1]}", Exit.USAGE)
