"""The likelihood of the probability-flow ODE, the deterministic process with the marginals of the diffusion.

With gamma itself as the time and y = z / sigma as the state, the image in units of its noise (Song et al. 2021, arXiv
2011.13456, eq. 13 and 39, for alpha and sigma as in `vdm.schedule`):

    dy/dgamma = 1/2 (eps_hat(sigma y, gamma) - y)
    log p(y_0) = log p(y_1) + integral over gamma of div(dy/dgamma),    log p(z) = log p(y) - D log sigma

Neither depends on the schedule between its end points.  An error of y moves the density by about the same amount at
every noise level.  An error of z of 1e-4, small compared with an image, is 8% of the noise at gamma_0 = -13.3.

Dequantisation turns the density into a probability of pixels:
level k owns the cell of width 2 alpha_0 / K around alpha_0 x_k, and for any density q on the cell

    log P(pixels) >= E over q of [log p(z_0) - log q(z_0)].

With the mean over several draws inside the logarithm (importance weighting) the bound is tighter.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdm.choices import Dequantisation
from vdm.diffusion import image_generators
from vdm.discretization import SUMMED, pixels_to_x
from vdm.model import VDM, images_per_batch
from vdm.schedule import alpha, sigma
from vdm.vlb import PredictNoise, bits_per_dim

OdeState = tuple[Tensor, Tensor]
Derivative = Callable[[Tensor, OdeState], OdeState]
Solve = Callable[[Derivative, OdeState, Tensor], OdeState]
"""Takes a derivative, the state at the first time, and the times; returns the state at the last time.

The state is y (B,C,H,W) and the gain of log density (B,) in nats per dimension.
"""


@torch.inference_mode(False)  # the divergence takes gradients
def evaluate_ode(
    model: VDM,
    pixels: np.ndarray,
    *,
    seed: int,
    num_draws: int,
    num_probes: int,
    dequantisation: Dequantisation,
    batch_size: int,
    solve: Solve,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Return an upper bound of -log P(pixels) under the ODE for every image (N,C,H,W): (N,) bits/dim.

    With `labels` (N,) it is that of P(pixels | class).  The mean over `num_draws` draws is inside the logarithm.
    `num_probes` 0 takes the exact divergence.  Draws and probes depend on the seed and on the image's index alone.
    `batch_size` counts images times draws.

    The draws of an image share its Rademacher probes.  An error that is the same in all draws only adds to the
    logarithm, and is 0 on average.  The errors that differ make the mean inside the logarithm too large on average:
    many draws with few probes give slightly too few bits.

    Above 256 levels the network computes in float64: rounding z to float32 moves it by 1% of the noise at gamma_0 of
    16 bits, where the solver would take ever smaller steps.

    Raises TypeError unless the pixels are of an integer type, and ValueError unless they are images of the model, and
    for a model with dropout in training mode.
    """
    model.require_evaluation_mode()
    model = deepcopy(model).double() if model.num_levels > SUMMED else model
    like = next(model.parameters())  # the network has its device and dtype
    size = images_per_batch(batch_size, num_draws)
    results = []
    for first in range(0, len(pixels), size):
        indices = range(first, min(first + size, len(pixels)))
        images = np.array(pixels[first : indices.stop])
        model.require_images(images)
        batch = torch.from_numpy(images).repeat_interleave(num_draws, 0)
        given = model.given(None if labels is None else labels[first : indices.stop].repeat(num_draws))
        draws, probes = (
            torch.from_numpy(values).to(like.device)
            for values in dequantisation_draws(seed, indices, num_draws, num_probes, model.image_shape)
        )
        log_weights = log_weight(
            batch.to(like.device),
            draws,
            basis_probes(draws) if num_probes == 0 else probes,
            num_levels=model.num_levels,
            gamma_0=model.schedule.gamma_0.detach().double(),
            gamma_1=model.schedule.gamma_1.detach().double(),
            dequantisation=dequantisation,
            predict_noise=lambda z, gamma, given=given: given(z.to(like.dtype), gamma.to(like.dtype)).double(),  # type: ignore[misc]
            solve=solve,
            # A card is idle in passes of few images.  On a CPU one pass with 4 probes took 20% longer than 4 passes.
            probes_at_once=max(1, batch_size // len(batch)) if like.is_cuda else 1,
        )
        results.append(importance_weighted(log_weights.reshape(-1, num_draws).T))
    return bits_per_dim(-torch.cat(results), model.num_dims).cpu().numpy()


def dequantisation_draws(
    seed: int, indices: range, num_draws: int, num_probes: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return uniform draws in (0, 1), (N num_draws,C,H,W), and Rademacher probes (num_probes, N num_draws,C,H,W).

    Both are float64.  The draws of an image share its probes.
    """
    generators = image_generators(seed, indices)
    draws = np.concatenate([1 - generator.random((num_draws, *shape)) for generator in generators])
    signs = [generator.integers(0, 2, (num_probes, 1, *shape)) for generator in generators]
    probes = np.repeat(2.0 * np.concatenate(signs, axis=1) - 1, num_draws, axis=1)
    return draws.clip(max=1 - 1e-12), probes


def log_density(
    z_0: Tensor,
    gamma_0: Tensor,
    gamma_1: Tensor,
    probes: Tensor,
    *,
    predict_noise: PredictNoise,
    solve: Solve,
    probes_at_once: int = 1,
) -> Tensor:
    """Return log p(z_0) under the probability-flow ODE, (B,) nats; z_0 (B,C,H,W).

    The divergence is the mean of v' J v over `probes` v (P,B,C,H,W): unbiased for Rademacher probes (Hutchinson),
    exact for `basis_probes`.  One backward pass serves `probes_at_once` of them.
    """
    num_dims = z_0[0].numel()

    def derivative(gamma: Tensor, state: OdeState) -> OdeState:
        y = state[0].detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(y.device.type, enabled=False):
            eps_hat = predict_noise(sigma(gamma) * y, gamma.expand(len(y)))
            divergence = torch.zeros_like(state[1])
            for some in probes.split(probes_at_once):
                several = len(some) > 1
                along = some if several else some[0]
                (gradient,) = torch.autograd.grad(eps_hat, y, along, retain_graph=True, is_grads_batched=several)
                divergence += (gradient * some).flatten(2).sum(2).sum(0) / len(probes)
        return 0.5 * (eps_hat - y).detach(), 0.5 * (divergence / num_dims - 1)

    start = z_0 / sigma(gamma_0), torch.zeros_like(z_0[:, 0, 0, 0])
    y_1, gain = solve(derivative, start, torch.stack([gamma_0, gamma_1]))
    scaling = torch.log(sigma(gamma_1) / sigma(gamma_0))
    return standard_normal_log_density(sigma(gamma_1) * y_1) + num_dims * (gain + scaling)


def log_weight(
    pixels: Tensor,
    draws: Tensor,
    probes: Tensor,
    *,
    num_levels: int,
    gamma_0: Tensor,
    gamma_1: Tensor,
    dequantisation: Dequantisation,
    predict_noise: PredictNoise,
    solve: Solve,
    probes_at_once: int = 1,
) -> Tensor:
    """Return log p(z_0) - log q(z_0) at one dequantisation draw, (B,) nats: on average a lower bound of log P(pixels).

    `draws` (B,C,H,W) are uniform on (0, 1) and choose the point z_0 inside the cell; other arguments as in
    `log_density`.
    """
    x = pixels_to_x(pixels, num_levels, draws.dtype)
    half_cell = alpha(gamma_0) / num_levels
    match dequantisation:
        case "uniform":
            offset = half_cell * (2 * draws - 1)
            log_q = -torch.log(2 * half_cell).expand_as(draws)
        case "truncated_normal":
            # q(z_0 | x) cut off at the cell's edge: noise as the network met it in training (Zheng et al. 2023).
            edge = torch.special.ndtr(half_cell / sigma(gamma_0))
            eps = torch.special.ndtri(1 - edge + (2 * edge - 1) * draws)
            offset = sigma(gamma_0) * eps
            log_q = -0.5 * (eps.square() + math.log(2 * math.pi)) - torch.log(sigma(gamma_0) * (2 * edge - 1))
    z_0 = alpha(gamma_0) * x + offset
    options: dict[str, Any] = {"predict_noise": predict_noise, "solve": solve, "probes_at_once": probes_at_once}
    log_p = log_density(z_0, gamma_0, gamma_1, probes, **options)
    return log_p - log_q.flatten(1).sum(1)


def importance_weighted(log_weights: Tensor) -> Tensor:
    """Return the log of the mean weight over K draws, logsumexp - log K: (K,B) nats to (B,)."""
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))


def basis_probes(like: Tensor) -> Tensor:
    """Return one probe for each of the D dimensions of an image, (D,B,C,H,W): with them the divergence is exact."""
    num_dims = like[0].numel()
    basis = math.sqrt(num_dims) * torch.eye(num_dims, dtype=like.dtype, device=like.device)
    return basis.reshape(num_dims, 1, *like.shape[1:]).expand(-1, len(like), -1, -1, -1)


def standard_normal_log_density(z: Tensor) -> Tensor:
    """Return log N(z; 0, I), (B,) nats; z (B,C,H,W)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
