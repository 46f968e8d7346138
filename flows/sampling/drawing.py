"""Draw images from a model: in batches, and on several devices at once."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from flows.core.checkpoint import load_model
from flows.core.device import compile_long_work, find_device, find_precision
from flows.core.errors import Exit, UserError
from flows.process.progress import bar
from flows.sampling.pictures import grid, png
from vdm.model import VDM
from vdm.sampling import Solver, Step, decode, fill_in, sample, trajectory

if TYPE_CHECKING:
    from flows.core.params import Sample

REPEATS = 10
"""How often `fill` takes every step, as in RePaint."""
Steps = Callable[[range], Iterator[Step]]
"""Returns the steps to the images with these indices."""


def draw(model: Path, settings: "Sample") -> np.ndarray:
    """Return the first `num_images` images of the seed, (N,C,H,W) levels.

    `num_devices` processes share them, or fewer if there are fewer images.  Raises CheckpointError for the model and
    UserError (exit 2) for devices.
    """
    count = min(settings.num_devices, settings.num_images)
    if count == 1:
        return draw_share(load_model(model, find_device(settings.device)), settings, range(settings.num_images))
    find_device(settings.device, count)  # refuses what the machine does not have, before processes start
    from flows.training.distributed import launch

    return np.concatenate(launch(partial(draw_part, model, settings, count), num_processes=count))


def draw_part(model: Path, settings: "Sample", count: int) -> np.ndarray:
    """Return the images of this one of `count` processes."""
    from flows.training.distributed import local_rank

    rank = local_rank()
    device = find_device(settings.device, count, rank)
    share = range(rank * settings.num_images // count, (rank + 1) * settings.num_images // count)
    return draw_share(load_model(model, device), settings, share, shown=rank == 0)


def draw_share(vdm: VDM, settings: "Sample", share: range, *, shown: bool = True) -> np.ndarray:
    """Return the images with the indices in `share`, (N,C,H,W) levels."""
    return in_batches(vdm, settings, share, sampling(vdm, settings), shown=shown)


def sampling(vdm: VDM, settings: "Sample") -> Steps:
    """Return the function from indices to the steps of `vdm.sampling.trajectory`."""
    return partial(trajectory, vdm, solver=solver_of(settings, vdm), seed=settings.seed)


def fill(vdm: VDM, settings: "Sample", known: torch.Tensor, missing: torch.Tensor) -> np.ndarray:
    """Return `num_images` images with the pixels `known` (C,H,W) except where `missing` (H,W) is true.

    Raises what `in_batches` raises.
    """
    images = in_batches(vdm, settings, range(settings.num_images), filling(vdm, settings, known, missing))
    return np.where(missing.numpy(), images, known.numpy().astype(images.dtype))


def filling(vdm: VDM, settings: "Sample", known: torch.Tensor, missing: torch.Tensor) -> Steps:
    """Return the function from indices to the steps of `vdm.sampling.fill_in`."""
    solver = solver_of(settings, vdm)
    return partial(fill_in, vdm, known, missing, solver=solver, seed=settings.seed, repeats=REPEATS)


def counted(steps: Iterable[Step], progress: Iterator[int]) -> Iterator[Step]:
    """Yield the steps, and advance the progress bar by one for each."""
    for step in steps:
        next(progress, None)
        yield step


def in_batches(vdm: VDM, settings: "Sample", share: range, steps_to: Steps, *, shown: bool = True) -> np.ndarray:
    """Return the images at the end of the steps, (N,C,H,W) levels, with one bar for the steps of all batches.

    Raises UserError (exit 5) for a model whose output is not finite or whose schedule does not increase.
    """
    firsts = range(share.start, share.stop, settings.batch_size)
    batches = [range(first, min(first + settings.batch_size, share.stop)) for first in firsts]
    compile_long_work(vdm, len(batches) * settings.num_timesteps)
    progress = iter(bar("sampling", shown=shown)(range(len(batches) * settings.num_timesteps)))
    try:
        parts = [decode(vdm, counted(steps_to(batch), progress)) for batch in batches]
    except ArithmeticError as error:
        raise UserError(f"no images can be drawn from this model: {error}", Exit.MISSING) from error
    return torch.cat(parts).cpu().numpy()


def preview(vdm: VDM) -> bytes:
    """Return a picture of the first 16 images of seed 0 as a PNG file.  Raises what `vdm.sampling.sample` raises."""
    classes = range(vdm.classes) if vdm.classes else None
    images = sample(vdm, range(16), Solver(num_timesteps=25, order=2, classes=classes), seed=0)
    return png(grid(images.cpu().numpy(), vdm.num_levels))


def solver_of(settings: "Sample", vdm: VDM) -> Solver:
    """Return the solver that the settings describe, with the precision that the model's device has."""
    chosen = settings.model_dump(include=set(Solver._fields) - {"precision"})
    return Solver(precision=find_precision(settings.precision, next(vdm.parameters()).device), **chosen)
