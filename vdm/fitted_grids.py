"""Grids that are fitted to a model: the ends of T steps and their variances that give the least bound.

Both follow from one curve, f(gamma) = E (eps - eps_hat)^2 of every dimension, measured on images that the model was not
fitted to.  With v = expm1(gamma_t - gamma_s) f(gamma_t), a step from t to s adds to a dimension of the bound

    1/2 v              with the paper's variance
    1/2 ln(1 + v)      with the best one, u = 1 + v, where f is the mean over the dimensions if they share it

The sum over the steps of a grid is least for one that dynamic programming finds exactly among given noise levels
(Watson et al. 2021, arXiv 2106.03802).

A dimension's error of N images is shrunk to the mean over the dimensions as if that were the error of
`PSEUDO_IMAGES` more, since a variance that is too small costs more than one that is too large.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch

from vdm.choices import Precision
from vdm.discretization import pixels_to_x
from vdm.evaluation import image_noise
from vdm.grids import Grid
from vdm.model import VDM, images_per_batch
from vdm.schedule import LinearSchedule
from vdm.vlb import squared_errors

PSEUDO_IMAGES = 20
"""The images whose errors, if all dimensions had the same, count as much as those that were seen."""
LEVELS_A_STEP, MOST_LEVELS_TO_TRY = 4, 512
"""The levels among which the ends are chosen, some of them between those of the curve: so many a step, at most."""
MOST_DIMENSIONS_TO_TRY = 512
"""The dimensions by which the ends are chosen, evenly spread."""
LEAST_ERROR = 1e-30
"""Errors below have no logarithm to interpolate between."""

Variances = Literal["paper", "step", "dimension"]
"""Whether p(z_s | z_t) has the paper's variance, one a step, or one a step and dimension."""


class ErrorCurve(NamedTuple):
    """The errors of a model at L + 1 noise levels that are even in gamma, from gamma_0 to gamma_1.

    `errors` (L+1,C,H,W) are means of (eps - eps_hat)^2 over `num_images` images.  `span` is gamma_1 - gamma_0.
    """

    errors: np.ndarray
    span: float
    num_images: int

    @property
    def num_intervals(self) -> int:
        """L, the number of intervals between the levels."""
        return len(self.errors) - 1

    def require_usable(self) -> None:
        """Raise ValueError unless there are two levels and an image, and errors and span are finite, none negative."""
        if self.errors.ndim != 4 or self.num_intervals < 1 or not self.errors.size or self.num_images < 1:
            raise ValueError(f"a curve needs errors (L+1,C,H,W) of images, got {self.errors.shape}")
        if not (np.isfinite(self.errors).all() and (self.errors >= 0).all() and 0 < self.span < np.inf):
            raise ValueError("the errors of a curve must be finite and not negative, and its span above 0")

    def shrunk(self) -> np.ndarray:
        """Return the errors (L+1,D) of D dimensions, shrunk to the mean of their level."""
        errors = self.errors.reshape(len(self.errors), -1).astype(np.float64)
        share = PSEUDO_IMAGES / (self.num_images + PSEUDO_IMAGES)
        return np.asarray(errors + share * (errors.mean(1, keepdims=True) - errors))

    def at(self, shares: np.ndarray, variances: Variances) -> np.ndarray:
        """Return the errors (n,D) at shares (n,) of the way from gamma_0 to gamma_1, for these variances.

        D is 1 if the dimensions share them.  Between its levels the logarithm of the curve is a straight line.
        """
        errors = self.shrunk() if variances == "dimension" else self.shrunk().mean(1, keepdims=True)
        logarithms = np.log(np.maximum(errors, LEAST_ERROR))
        place = shares * self.num_intervals
        below = np.minimum(place.astype(int), self.num_intervals - 1)
        rest = (place - below)[:, None]
        return np.asarray(np.exp(logarithms[below] + rest * (logarithms[below + 1] - logarithms[below])))


@torch.inference_mode()
def error_curve(
    model: VDM,
    pixels: np.ndarray,
    *,
    levels: int,
    seed: int,
    batch_size: int,
    classes: np.ndarray | None = None,
    precision: Precision = "float32",
    progress: Callable[[range], Iterable[int]] = iter,
) -> ErrorCurve:
    """Measure the curve on images (N,C,H,W), given their classes (N,), if any, at one draw of the noise for each level.

    It takes (levels + 1) N evaluations of the network.  `progress` gets the batches' first indices.  Raises TypeError
    and ValueError unless there are images, and they are images of the model, and for a model in training mode;
    ArithmeticError if the network's output is not finite.
    """
    model.require_evaluation_mode()
    model.require_images(pixels)
    if not len(pixels) or levels < 1:
        raise ValueError(f"a curve needs images and levels, got {len(pixels)} and {levels}")
    like, count = next(model.parameters()), levels + 1
    gamma_0, gamma_1 = model.schedule.gamma_0.double(), model.schedule.gamma_1.double()
    gammas = gamma_0 + (gamma_1 - gamma_0) * torch.arange(count, device=like.device, dtype=torch.float64) / levels
    sums = torch.zeros(count, *model.image_shape, dtype=torch.float64, device=like.device)
    size = images_per_batch(batch_size, count)
    for first in progress(range(0, len(pixels), size)):
        indices = range(first, min(first + size, len(pixels)))
        batch = torch.from_numpy(np.array(pixels[first : indices.stop])).to(like.device)
        x = pixels_to_x(batch, model.num_levels, like.dtype).repeat_interleave(count, 0)
        given = model.given(None if classes is None else classes[first : indices.stop].repeat(count))
        eps = torch.from_numpy(image_noise(seed, indices, count, model.image_shape)).to(like)
        with torch.autocast(like.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            squares = squared_errors(x, eps, gammas.to(like.dtype).repeat(len(indices)), given)
        sums += squares.double().unflatten(0, (len(indices), count)).sum(0)
    errors = (sums / len(pixels)).cpu().numpy()
    if not np.isfinite(errors).all():
        raise ArithmeticError("the network's output is not finite")
    return ErrorCurve(errors, float(gamma_1 - gamma_0), len(pixels))


def fit_grid(curve: ErrorCurve, num_timesteps: int, variances: Variances = "dimension") -> Grid:
    """Return the grid of T steps that gives the least bound with these variances.

    The ends are chosen among levels that are even in gamma.  Above `MOST_LEVELS_TO_TRY` / `LEVELS_A_STEP` steps, the
    best grid of so many is divided evenly.  Raises ValueError for a curve that is not usable.
    """
    curve.require_usable()
    steps = min(num_timesteps, MOST_LEVELS_TO_TRY // LEVELS_A_STEP)
    between = -(-LEVELS_A_STEP * steps // curve.num_intervals)
    count = max(1, min(between, MOST_LEVELS_TO_TRY // curve.num_intervals)) * curve.num_intervals
    steps = min(steps, count)
    found = best_ends(step_costs(curve, count, variances), steps) / count
    shares = np.interp(np.arange(num_timesteps + 1) / num_timesteps, np.arange(steps + 1) / steps, found)
    shares[0], shares[-1] = 0, 1
    return Grid(num_timesteps, shares, variances_at(curve, shares, variances))


def fit_variances(grid: Grid, curve: ErrorCurve, schedule: LinearSchedule, variances: Variances = "dimension") -> Grid:
    """Return the steps of a grid, such as one that is even in t, with the variances that give the least bound.

    Raises ValueError for a curve that is not usable, and for a schedule that does not increase.
    """
    curve.require_usable()
    with torch.no_grad():
        gammas = grid.levels(schedule).double().cpu().numpy()
    if not gammas[0] < gammas[-1]:
        raise ValueError("the noise schedule does not increase")
    shares = (gammas - gammas[0]) / (gammas[-1] - gammas[0])
    return Grid(grid.num_timesteps, grid.shares, variances_at(curve, shares, variances))


def variances_at(curve: ErrorCurve, shares: np.ndarray, variances: Variances) -> np.ndarray | None:
    """Return u of the steps with these ends (T+1,): (T,) or (T,C,H,W); None for the paper's variance."""
    if variances == "paper":
        return None
    found = 1 + np.expm1(curve.span * np.diff(shares))[:, None] * curve.at(shares[1:], variances)
    return np.asarray(found[:, 0] if variances == "step" else found.reshape(-1, *curve.errors.shape[1:]))


def step_costs(curve: ErrorCurve, count: int, variances: Variances) -> np.ndarray:
    """Return what a step adds to the mean bound of a dimension, (M+1,M+1) nats, from each level s to each level t.

    The levels are M + 1 that are even in gamma; M is `count`.  It is infinite unless s < t.
    """
    shares = np.arange(count + 1) / count
    errors = curve.at(shares, variances)
    errors = errors[:, :: max(1, errors.shape[1] // MOST_DIMENSIONS_TO_TRY)]
    rise = np.expm1(curve.span * shares)  # over so many levels
    costs = np.full((count + 1, count + 1), np.inf)
    for t in range(1, count + 1):
        v = rise[t:0:-1, None] * errors[t]
        costs[:t, t] = (0.5 * v if variances == "paper" else 0.5 * np.log1p(v)).mean(1)
    return costs


def best_ends(costs: np.ndarray, num_timesteps: int) -> np.ndarray:
    """Return the levels at which T steps end that cost the least, (T+1,) rising from 0 to M; T is at most M.

    `costs` (M+1,M+1) are those of a step between two levels.
    """
    least, came_from = costs[0], [np.zeros(len(costs), int)]  # of one step from level 0 to each level
    for _ in range(1, num_timesteps):
        sums = least[:, None] + costs
        came_from.append(sums.argmin(0))
        least = sums.min(0)
    ends = [len(costs) - 1]
    for before in reversed(came_from):
        ends.append(int(before[ends[-1]]))
    return np.array(ends[::-1])
