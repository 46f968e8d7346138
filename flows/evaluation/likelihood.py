"""The ODE likelihood over a whole set, and the paired comparison of two models."""

import math
from collections.abc import Callable, Iterable
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint

from flows.core.errors import Exit, UserError
from flows.evaluation.bound import number
from vdm.choices import Dequantisation
from vdm.evaluation import Evaluation
from vdm.model import VDM
from vdm.ode import Solve, State, basis_probes, importance_weighted, log_weight
from vdm.vlb import bits_per_dim


def evaluate_ode(
    model: VDM,
    pixels: np.ndarray,
    *,
    seed: int,
    num_draws: int,
    num_probes: int,
    dequantisation: Dequantisation,
    tolerance: float,
    batch_size: int,
    progress: Callable[[range], Iterable[int]] = iter,
) -> np.ndarray:
    """-log P(pixels) under the probability-flow ODE for every image (N,C,H,W): (N,) bits/dim, an upper bound.

    The mean over `num_draws` is inside the logarithm.  `num_probes` 0 takes the exact divergence.  Rademacher probes
    are shared by an image's draws, so that their common error leaves the logarithm; what differs between draws stays
    inside, and makes many draws with few probes err a little to the low side.  Draws and probes depend on the seed
    and the image's index alone.  `batch_size` counts images times draws.
    """
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    images_per_batch = max(1, batch_size // num_draws)
    results = []
    for first in progress(range(0, len(pixels), images_per_batch)):
        indices = range(first, min(first + images_per_batch, len(pixels)))
        batch = torch.from_numpy(np.array(pixels[first : indices.stop])).repeat_interleave(num_draws, 0).to(device)
        draws, probes = dequantisation_draws(seed, indices, num_draws, num_probes, model.image_shape)
        places = torch.from_numpy(draws).to(device)
        log_weights = log_weight(
            batch,
            places,
            basis_probes(places) if num_probes == 0 else torch.from_numpy(probes).to(device),
            num_levels=model.num_levels,
            gamma_0=model.schedule.gamma_0.detach().double(),
            gamma_1=model.schedule.gamma_1.detach().double(),
            dequantisation=dequantisation,
            predict_noise=lambda z, gamma: model.network(z.to(dtype), gamma.to(dtype)).double(),
            solve=dopri5(tolerance),
        )
        results.append(importance_weighted(log_weights.reshape(-1, num_draws).T))
    return bits_per_dim(-torch.cat(results), model.num_dims).cpu().numpy()


def memory_needed(model: VDM, *, num_images: int, num_draws: int, num_probes: int, batch_size: int) -> int:
    """Return a lower bound of the bytes that `evaluate_ode` takes: a batch's draws, probes and one block."""
    draws = num_draws * min(num_images, max(1, batch_size // num_draws))
    num_pixels = model.image_shape[1] * model.image_shape[2]
    probes = num_probes * draws if num_probes else model.num_dims
    return 8 * model.num_dims * (probes + 2 * draws) + 24 * model.network.width * num_pixels * draws


def dequantisation_draws(
    seed: int, indices: range, num_draws: int, num_probes: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Uniform places in (0, 1), (N num_draws,C,H,W), and Rademacher probes (num_probes, N num_draws,C,H,W), float64.

    An image's draws share its probes.
    """
    streams = [np.random.Generator(np.random.Philox(key=[seed, index])) for index in indices]
    places = np.concatenate([1 - stream.random((num_draws, *shape)) for stream in streams])
    signs = [stream.integers(0, 2, (num_probes, 1, *shape)) for stream in streams]
    probes = np.repeat(2.0 * np.concatenate(signs, axis=1) - 1, num_draws, axis=1)
    return places.clip(max=1 - 1e-12), probes


def dopri5(tolerance: float) -> Solve:
    """torchdiffeq's adaptive Runge-Kutta 5(4) at that absolute and relative tolerance.

    Solving raises UserError (exit 2) when no step is short enough for it.
    """

    def solve(derivative: Callable[[Tensor, State], State], start: State, times: Tensor) -> State:
        try:
            z, change = odeint(derivative, start, times, rtol=tolerance, atol=tolerance, method="dopri5")
        except AssertionError as error:
            reason = f"no step of the ODE reaches ode.tolerance {tolerance:g} ({error}); set a larger one"
            raise UserError(f"{reason}, or see whether the model's bound is finite", Exit.USAGE) from error
        return z[-1], change[-1]

    return solve


def paired_difference(first: Evaluation, second: Evaluation, *, confidence: float) -> dict[str, Any]:
    """Mean of second - first in bits/dim over the same images, times and noise, with its confidence interval."""
    difference = second.bpd - first.bpd
    mean = float(difference.mean())
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.nan
    half_width = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return {
        "difference_bpd": number(mean),
        "difference_standard_error": number(error),
        "confidence": confidence,
        "confidence_interval": [number(mean - half_width), number(mean + half_width)],
        "num_images": len(difference),
    }
