"""What is drawn from a model, and drawing it: in batches, and on several devices at once."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flows.core.device import compile_long_work, find_device, find_precision
from flows.core.errors import Exit, UserError
from flows.core.model import TrainedModel
from flows.process.streams import bar
from vdm.sampling import Solver, Step, decode, fill_in, trajectory

if TYPE_CHECKING:
    from flows.core.params import Sample

REPEATS = 10
"""How often filling in takes every step, as in RePaint."""


class Drawing(NamedTuple):
    """The first `num_images` images of a seed, from noise or around the known pixels of a picture.

    With `known`, (C,H,W) levels, the pixels are those of `known` except where `missing` (H,W) is true.
    """

    model: TrainedModel
    settings: "Sample"
    known: Tensor | None = None
    missing: Tensor | None = None

    @property
    def solver(self) -> Solver:
        """The solver that the settings describe, with the precision that the model's device has."""
        chosen = self.settings.model_dump(include=set(Solver._fields) - {"precision"})
        solver = Solver(precision=find_precision(self.settings.precision, self.model.device), **chosen)
        return solver if self.known is None else solver._replace(order=1, eta=1.0)  # as `fill_in` takes its steps

    @property
    def num_evaluations(self) -> int:
        """The evaluations of the network that all images take."""
        settings, repeats = self.settings, 1 if self.known is None else REPEATS
        each = 2 if settings.classes and settings.guidance != 1 else 1
        return settings.num_images * settings.num_timesteps * repeats * each

    def steps(self, indices: range) -> Iterator[Step]:
        """Yield the steps from noise to the images with these indices."""
        vdm, seed = self.model.vdm, self.settings.seed
        if self.known is None or self.missing is None:
            return trajectory(vdm, indices, self.solver, seed=seed)
        return fill_in(vdm, self.known, self.missing, indices, self.solver, seed=seed, repeats=REPEATS)

    def batches(self, share: range) -> list[range]:
        """Return the indices of the images of a share, in batches."""
        firsts = range(share.start, share.stop, self.settings.batch_size)
        return [range(first, min(first + self.settings.batch_size, share.stop)) for first in firsts]

    def joined(self, parts: list[Tensor]) -> np.ndarray:
        """Return the images of all batches, (N,C,H,W) levels, with the known pixels as they are."""
        images = torch.cat(parts).cpu().numpy()
        if self.known is None or self.missing is None:
            return images
        return np.where(self.missing.numpy(), images, self.known.numpy().astype(images.dtype))


def draw(drawing: Drawing) -> np.ndarray:
    """Return the images, (N,C,H,W) levels.

    `num_devices` processes share them, or fewer if there are fewer images; one process fills in.  Raises UserError:
    exit 2 for devices, 5 for a model whose output is not finite or whose schedule does not increase.
    """
    settings = drawing.settings
    count = min(settings.num_devices, settings.num_images) if drawing.known is None else 1
    find_device(settings.device, count)  # refuses what the machine does not have, before processes start
    if count == 1:
        return draw_share(drawing, 1)
    from flows.training.distributed import launch

    return np.concatenate(launch(partial(draw_share, drawing, count), num_processes=count))


def draw_share(drawing: Drawing, count: int) -> np.ndarray:
    """Return the images of this one of `count` processes, with one bar for the steps of all batches."""
    from flows.training.distributed import local_rank

    rank, settings = local_rank(), drawing.settings
    model = drawing.model.on(find_device(settings.device, count, rank))
    share = range(rank * settings.num_images // count, (rank + 1) * settings.num_images // count)
    batches = drawing.batches(share)
    compile_long_work(model.vdm, len(batches) * settings.num_timesteps)
    progress = iter(bar("sampling", shown=rank == 0)(range(len(batches) * settings.num_timesteps)))
    try:
        parts = [decode(model.vdm, advance(drawing.steps(batch), progress)) for batch in batches]
    except ArithmeticError as error:
        raise UserError(f"no images can be drawn from this model: {error}", Exit.MISSING) from error
    return drawing.joined(parts)


def advance(steps: Iterable[Step], progress: Iterator[int]) -> Iterator[Step]:
    """Yield the steps, and advance the progress bar by one for each."""
    for step in steps:
        next(progress, None)
        yield step
