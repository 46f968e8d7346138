"""Sampling (section 3.3, appendix A.4): from z_1 ~ N(0, I) in T steps down to z_0, then to pixels.

The paper samples ancestrally.  `Solver` has two more choices, the order and the noise of a step, with which the same
step gives the known fast samplers.  `vdm.samplers` names them.

The noise of an image depends on the seed and on the image's index alone.  So image i is the same picture, whatever the
other images and the batch size are.  A pixel may differ by a level only if the rounding of a convolution or of a matrix
product depends on the batch size or on the number of threads, as in float32.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdm.choices import GridKind, Precision
from vdm.diffusion import denoise, forward_step, image_generators, reverse_step
from vdm.discretization import nearest_pixels, pixels_to_x
from vdm.grids import Grid, even_in_gamma
from vdm.model import VDM
from vdm.prefetch import prefetch
from vdm.schedule import LinearSchedule
from vdm.vlb import PredictNoise

SAMPLING_STREAM = [0, 0, 0, 1]
"""Where the counter of the noise starts.  With the same keys `vdm.evaluation` starts at zero: other noise."""


class Solver(NamedTuple):
    """How to go from noise to an image: T steps that are even in gamma or in t, or those of a `Grid` of as many.

    A grid's variances are those of ancestral sampling, which has order 1 and eta 1.
    `order` is 1 or 2.  `eta` is the noise of a step, from 0 (none) to 1 (that of p(z_s | z_t)).  `clip` limits every
    x_hat to [-1, 1], where all images lie.  `precision` is that of the network's matrix products.  `classes` are those
    of image 0, 1 and so on, in turn, and `guidance` is that of `vdm.model.VDM.given`.
    """

    num_timesteps: int
    order: int = 1
    eta: float = 1.0
    grid: GridKind | Grid = "gamma"
    clip: bool = True
    precision: Precision = "float32"
    classes: Sequence[int] | None = None
    guidance: float = 1.0


class Step(NamedTuple):
    """What a step from t to s computes: z_s and x_hat(z_t), (B,C,H,W) each."""

    z: Tensor
    x_hat: Tensor


def sample(model: VDM, indices: Sequence[int], solver: Solver, *, seed: int) -> Tensor:
    """Return the images with these indices, (N,C,H,W) integer pixels on the model's device."""
    return decode(model, trajectory(model, indices, solver, seed=seed))


@torch.no_grad()
def decode(model: VDM, steps: Iterable[Step]) -> Tensor:
    """Return the pixels (N,C,H,W) at the end of the steps: the mode of p(x | z_0) instead of a draw.

    For images of 256 levels at gamma_0 = -13.3, a draw would differ from it in 0.2% of the pixels, by one level.
    Raises ArithmeticError as the steps do.
    """
    last = deque(steps, maxlen=1).pop()
    return nearest_pixels(last.z, model.schedule.gamma_0, model.num_levels)


@torch.no_grad()
def trajectory(model: VDM, indices: Sequence[int], solver: Solver, *, seed: int) -> Iterator[Step]:
    """Yield the steps on the way to the images with these indices, from noise to z_0.

    The second order extrapolates x_hat linearly in gamma from the step before (Lu et al., algorithm 2).  The first and
    the last step are of first order: the first has no step before it, and x_hat bends most where the noise ends.

    Raises ArithmeticError if the schedule does not increase or, after the last step, if the network's output was not
    finite, and ValueError for a model with dropout in training mode, and for a grid of another number of steps or with
    variances that are not of this sampler.
    """
    model.require_evaluation_mode()
    gammas = noise_levels(model.schedule, solver)
    noise = image_noise(model, indices, seed, len(gammas) if solver.eta else 1)
    predict_noise = predictor(model, indices, solver)
    h, widths = -gammas.diff() / 2, noise_widths(solver, gammas)
    z, before = next(noise), None
    for i, (gamma_t, gamma_s) in enumerate(pairwise(gammas)):
        x_hat = predict(predict_noise, z, gamma_t, solver)
        extrapolated = x_hat
        if solver.order == 2 and before is not None and i < len(h) - 1:
            extrapolated = x_hat + (x_hat - before) * h[i] / (2 * h[i - 1])
        eps = next(noise) if solver.eta else torch.zeros_like(z)
        if widths is not None:
            eps = widths[i] * eps
        z = reverse_step(z, extrapolated, eps, gamma_s, gamma_t, eta=solver.eta)
        yield Step(z, x_hat)
        before = x_hat
    require_finite(z)


@torch.no_grad()
def fill_in(
    model: VDM, known: Tensor, missing: Tensor, indices: Sequence[int], solver: Solver, *, seed: int, repeats: int
) -> Iterator[Step]:
    """Yield the steps on the way to images that have the pixels `known` (C,H,W) except where `missing` (H,W) is true.

    `decode` rounds z_0, which is noisy, so a known pixel may differ by a level.  Put the known pixels back afterwards.

    Each step puts the known pixels into x_hat, so that there z_s is a draw from q(z_s | z_t, x).  The other pixels are
    drawn by a model that saw the known ones with noise only, so this is an approximation of p(missing | known).  As in
    RePaint (Lugmayr et al. 2022, arXiv 2201.09865), every step is taken `repeats` times, with `forward_step` back to t
    in between, which makes both parts agree better.  Steps are of first order with all noise, whatever the solver says.
    Raises what `trajectory` raises, TypeError and ValueError unless `known` is an image of the model, and ValueError
    for a mask of another shape.
    """
    model.require_evaluation_mode()
    model.require_images(known[None].cpu().numpy())
    if missing.shape != known.shape[1:] or missing.dtype != torch.bool:
        raise ValueError(
            f"a mask of bool {tuple(known.shape[1:])} is needed, got {missing.dtype} {tuple(missing.shape)}"
        )
    gammas = noise_levels(model.schedule, solver)
    noise = image_noise(model, indices, seed, 1 + (len(gammas) - 1) * (2 * repeats - 1))
    predict_noise, widths = predictor(model, indices, solver), noise_widths(solver._replace(order=1, eta=1.0), gammas)
    z = next(noise)
    x = pixels_to_x(known.to(z.device), model.num_levels, z.dtype)
    missing = missing.to(z.device)
    for i, (gamma_t, gamma_s) in enumerate(pairwise(gammas)):
        for repeat in range(repeats):
            if repeat:
                z = forward_step(z, next(noise), gamma_s, gamma_t)
            x_hat = torch.where(missing, predict(predict_noise, z, gamma_t, solver), x)
            eps = next(noise)
            if widths is not None:  # where x is known, the step is q's
                eps = torch.where(missing, widths[i] * eps, eps)
            z = reverse_step(z, x_hat, eps, gamma_s, gamma_t)
        yield Step(z, x_hat)
    require_finite(z)


def noise_levels(schedule: LinearSchedule, solver: Solver) -> Tensor:
    """Return gamma at the ends of the steps, (T+1,), falling from gamma_1 to gamma_0.

    Levels that rounding makes equal are left out: a step between them would do nothing.  Raises ArithmeticError if
    they all are, and ValueError for a grid of another number of steps.
    """
    if not schedule.gamma_0 < schedule.gamma_1:
        raise ArithmeticError("the noise schedule does not increase")
    match solver.grid:
        case "gamma":
            grid = even_in_gamma(solver.num_timesteps)
        case "t":
            grid = Grid(solver.num_timesteps)
        case grid:
            if grid.num_timesteps != solver.num_timesteps:
                raise ValueError(f"the grid has {grid.num_timesteps} steps, and the solver {solver.num_timesteps}")
    return torch.unique_consecutive(grid.levels(schedule).flip(0))  # type: ignore[no-any-return]


def noise_widths(solver: Solver, gammas: Tensor) -> Tensor | None:
    """Return by what the noise of each step is multiplied, sqrt(u), from the first step on: (T,1,1,1) or (T,C,H,W).

    None stands for 1.  Raises ValueError if the variances are not of this sampler, and ArithmeticError if steps are so
    short that rounding left some out.
    """
    if isinstance(solver.grid, str) or solver.grid.variances is None:
        return None
    if (solver.order, solver.eta) != (1, 1.0):
        raise ValueError("the variances of a grid are those of ancestral sampling: order 1 and eta 1")
    if len(gammas) != solver.num_timesteps + 1:
        raise ArithmeticError("the steps of the grid are too short for the model's number format")
    widths = torch.from_numpy(np.sqrt(solver.grid.variances)[::-1].copy()).to(gammas)
    return widths.reshape(len(widths), 1, 1, 1) if widths.ndim == 1 else widths


def predictor(model: VDM, indices: Sequence[int], solver: Solver) -> PredictNoise:
    """Return the noise predictor of the images with these indices."""
    classes = [solver.classes[index % len(solver.classes)] for index in indices] if solver.classes else None
    return model.given(classes, solver.guidance)


def predict(predict_noise: PredictNoise, z_t: Tensor, gamma_t: Tensor, solver: Solver) -> Tensor:
    """Return x_hat(z_t) (B,C,H,W), within [-1, 1] if the solver clips, where infinity becomes NaN."""
    with torch.autocast(z_t.device.type, torch.bfloat16, enabled=solver.precision == "bfloat16"):
        eps_hat = predict_noise(z_t, gamma_t.expand(len(z_t)))
    x_hat = denoise(z_t, eps_hat, gamma_t)
    # Clipping would hide infinity.  NaN stays in z until `require_finite`, so that no step waits for the device.
    return torch.where(x_hat.isfinite(), x_hat.clamp(-1, 1), math.nan) if solver.clip else x_hat


def require_finite(z: Tensor) -> None:
    """Raise ArithmeticError unless all numbers are finite; at the end of the steps, since it waits for the device."""
    if not z.isfinite().all():
        raise ArithmeticError("the network's output is not finite")


def image_noise(model: VDM, indices: Iterable[int], seed: int, count: int) -> Iterator[Tensor]:
    """Yield standard normal noise (N,C,H,W) `count` times, from one counter-based stream per image index."""
    generators = image_generators(seed, indices, SAMPLING_STREAM)
    like = next(model.parameters())

    def draw(_: int) -> list[np.ndarray]:
        noise = np.empty((len(generators), *model.image_shape), dtype=np.float32)
        for image, generator in zip(noise, generators, strict=True):
            generator.standard_normal(out=image, dtype=np.float32)
        return [noise]

    for (noise,) in prefetch(draw, range(count), like.device):
        yield noise.to(like.dtype)
