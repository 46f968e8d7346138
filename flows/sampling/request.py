"""Draw what `vdmctl sample MODEL` asks for, and write it."""

from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flows.core.checkpoint import load_model, model_sha256
from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.core.files import scratch_folder, written_last
from flows.core.folders import contains
from flows.process.progress import bar
from flows.sampling import film, pictures
from flows.sampling.drawing import counted, draw, fill, filling, solver_of
from flows.sampling.filling import read_known, read_mask
from vdm.model import VDM
from vdm.sampling import noise_levels, trajectory

if TYPE_CHECKING:
    from flows.core.params import Sample


class Request(NamedTuple):
    """A model folder, how to sample, and the files to write and to read."""

    model: Path
    settings: "Sample"
    out: Path
    film: Path | None
    known: Path | None
    mask: Path | None
    force: bool


def answer(request: Request) -> dict[str, Any]:
    """Draw the images and write the outputs; return what was done, with the seconds that drawing took.

    Raises CheckpointError, UserError for options and files that do not fit, and OSError that names the file.
    """
    require_possible(request)
    vdm = load_model(request.model, find_device(request.settings.device))
    parts = None
    if request.known and request.mask:
        parts = read_known(request.known, vdm), read_mask(request.mask, vdm)
    begin = perf_counter()
    images = fill(vdm, request.settings, *parts) if parts else draw(request.model, request.settings)
    seconds = perf_counter() - begin
    with ExitStack() as stack:
        if request.film:  # it appears after the images, or neither does
            content = film.encoded(record(request, vdm, parts), request.film.suffix)
            stack.enter_context(written_last(request.film, content))
        pictures.write(request.out, images, vdm.num_levels)
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
    """Raise UserError (exit 2) for outputs of another kind, or that exist, and for options that do not fit together.

    Raises OSError for an output that cannot be written.
    """
    pictures.require_kind(request.out, ".png", ".npy", "")
    pictures.require_new(request.out, force=request.force)
    if request.film:
        pictures.require_kind(request.film, ".png", ".gif")
        pictures.require_new(request.film, force=request.force)
    require_apart(request)
    if (request.known is None) != (request.mask is None):
        raise UserError("--known and --mask must be given together: a picture and its mask", Exit.USAGE)
    for path in filter(None, (request.out, request.film)):
        # What cannot be written fails now, not after sampling.
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch_folder(path.parent):
                pass
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from error


def require_apart(request: Request) -> None:
    """Raise UserError (exit 2) if an output would replace an input, or the other output."""
    inputs = {"--known": request.known, "--mask": request.mask, "the model": request.model}
    for output, place, others in (
        ("--out", request.out, inputs | {"--film": request.film}),
        ("--film", request.film, inputs),
    ):
        for name, path in others.items():
            if place and path and contains(place, path):
                raise UserError(f"{output} {place} would replace {name} {path}", Exit.USAGE)


@torch.no_grad()
def record(request: Request, vdm: VDM, parts: tuple[torch.Tensor, torch.Tensor] | None) -> film.Film:
    """Return the film of the first images."""
    settings = request.settings
    indices = range(min(settings.num_images, film.MOST_IMAGES))
    solver = solver_of(settings, vdm)
    steps = filling(vdm, settings, *parts)(indices) if parts else trajectory(vdm, indices, solver, seed=settings.seed)
    number = len(noise_levels(vdm.schedule, solver)) - 1
    return film.record(counted(steps, iter(bar("film")(range(number)))), number)
