"""The exact likelihood of the probability-flow ODE, the deterministic process with the diffusion's own marginals.

With gamma itself as the time (Song et al. 2021, arXiv 2011.13456, eq. 13 and 39, for alpha and sigma as in
`vdm.schedule`):

    dz/dgamma = 1/2 sigma (eps_hat(z, gamma) - sigma z)
    log p(z_0) = log N(z_1; 0, I) + integral over gamma of div(dz/dgamma)

Neither depends on the schedule between its end points.  Pixels get a probability by dequantisation: level k owns the
cell of width 2 alpha_0 / K around alpha_0 x_k, and for any density q on the cell

    log P(pixels) >= E over q of [log p(z_0) - log q(z_0)],

tighter with the mean over several draws inside the logarithm (importance weighting, -log of their number included).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdm.choices import Dequantisation
from vdm.discretization import pixels_to_x
from vdm.schedule import alpha, sigma
from vdm.vlb import PredictNoise

State = tuple[Tensor, Tensor]
Solve = Callable[[Callable[[Tensor, State], State], State, Tensor], State]
"""Integrates (derivative, state at the first time, times) and returns the state at the last time."""


def log_density(
    z_0: Tensor, gamma_0: Tensor, gamma_1: Tensor, probes: Tensor, *, predict_noise: PredictNoise, solve: Solve
) -> Tensor:
    """log p(z_0) under the probability-flow ODE, (B,) nats; z_0 (B,C,H,W).

    The divergence is the mean of v' J v over `probes` v (P,B,C,H,W): unbiased for Rademacher probes (Hutchinson),
    exact for `basis_probes`.
    """

    def derivative(gamma: Tensor, state: State) -> State:
        z = state[0].detach().requires_grad_()
        noise_scale = sigma(gamma)
        with torch.enable_grad():
            eps_hat = predict_noise(z, gamma.expand(len(z)))
            divergence = torch.zeros_like(state[1])
            for probe in probes:
                gradient = torch.autograd.grad(eps_hat, z, probe, retain_graph=True)[0]
                divergence += (gradient * probe).flatten(1).sum(1) / len(probes)
        num_dims = z[0].numel()
        velocity = 0.5 * noise_scale * (eps_hat - noise_scale * z)
        return velocity.detach(), 0.5 * noise_scale * (divergence - noise_scale * num_dims)

    z_1, change = solve(derivative, (z_0, torch.zeros_like(z_0[:, 0, 0, 0])), torch.stack([gamma_0, gamma_1]))
    return standard_normal_log_density(z_1) + change


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
) -> Tensor:
    """log p(z_0) - log q(z_0) at one dequantisation draw, (B,) nats: a lower bound of log P(pixels) on average.

    `draws` (B,C,H,W) are uniform on (0, 1) and decide the place inside the cell.
    """
    x = pixels_to_x(pixels, num_levels, draws.dtype)
    half_cell = alpha(gamma_0) / num_levels
    match dequantisation:
        case "uniform":
            offset = half_cell * (2 * draws - 1)
            log_q = -torch.log(2 * half_cell).expand_as(draws)
        case "truncated_normal":
            # q(z_0 | x) cut off at the cell's edge: what the network saw in training (Zheng et al. 2023).
            edge = torch.special.ndtr(half_cell / sigma(gamma_0))
            eps = torch.special.ndtri(1 - edge + (2 * edge - 1) * draws)
            offset = sigma(gamma_0) * eps
            log_q = -0.5 * (eps.square() + math.log(2 * math.pi)) - torch.log(sigma(gamma_0) * (2 * edge - 1))
    z_0 = alpha(gamma_0) * x + offset
    log_p = log_density(z_0, gamma_0, gamma_1, probes, predict_noise=predict_noise, solve=solve)
    return log_p - log_q.flatten(1).sum(1)


def importance_weighted(log_weights: Tensor) -> Tensor:
    """log of the mean weight over K draws, (K,B) nats to (B,): logsumexp - log K."""
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))


def basis_probes(like: Tensor) -> Tensor:
    """As many probes as an image has dimensions, (D,B,C,H,W), for which the divergence is exact."""
    num_dims = like[0].numel()
    basis = math.sqrt(num_dims) * torch.eye(num_dims, dtype=like.dtype, device=like.device)
    return basis.reshape(num_dims, 1, *like.shape[1:]).expand(-1, len(like), -1, -1, -1)


def standard_normal_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I), (B,) nats; z (B,C,H,W)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
