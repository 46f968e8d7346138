"""The variational lower bound (section 3.5, eq. 11): -VLB(x) = prior + reconstruction + diffusion, in nats per image.

    prior           KL(q(z_1 | x) || N(0, I)), closed form
    reconstruction  E over q(z_0 | x) of -log p(x | z_0), exact by quadrature
    diffusion       continuous time (eq. 17):  1/2 E over t, eps of gamma'(t) |eps - eps_hat|^2
                    T steps (section 4):       T/2 E over i, eps of expm1(gamma_t - gamma_s) |eps - eps_hat|^2

The T steps may have another variance, too: see `own_variance_loss`.  Noise and times are arguments: the caller draws
them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vdm.diffusion import diffuse, per_image
from vdm.discretization import reconstruction_table
from vdm.schedule import alpha

PredictNoise = Callable[[Tensor, Tensor], Tensor]
"""Returns eps_hat (B,C,H,W) for z_t (B,C,H,W) and gamma_t (B,)."""


class Terms(NamedTuple):
    """The three terms of -VLB, each (B,) nats per image (eq. 11)."""

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """-VLB, (B,) nats per image."""
        return self.prior + self.reconstruction + self.diffusion


def bits_per_dim(nats: Tensor, num_dims: int) -> Tensor:
    """Return bits per dimension from nats per image: nats / (num_dims ln 2)."""
    return nats / (num_dims * math.log(2))


def prior_loss(x: Tensor, gamma_1: Tensor) -> Tensor:
    """Return KL(q(z_1 | x) || N(0, I)), (B,) nats (eq. 11).

    It is 1/2 sum [sigma_1^2 + alpha_1^2 x^2 - 1 - log sigma_1^2] over the dimensions.
    """
    # sigma^2 - 1 = -alpha^2: a difference of numbers near 1 would lose the digits of a small KL.
    kl = 0.5 * (alpha(gamma_1).square() * (x.square() - 1) - logsigmoid(gamma_1))
    return kl.flatten(1).sum(1)


def reconstruction_loss(pixels: Tensor, gamma_0: Tensor, num_levels: int) -> Tensor:
    """Return the exact mean over q(z_0 | x) of -log p(x | z_0), (B,) nats (eq. 11).

    pixels (B,C,H,W) of an integer type.
    """
    table = reconstruction_table(gamma_0, num_levels).to(gamma_0.dtype)
    return table[pixels.long()].flatten(1).sum(1)


def squared_error(x: Tensor, eps: Tensor, gamma_t: Tensor, predict_noise: PredictNoise) -> Tensor:
    """Return |eps - eps_hat(z_t)|^2 per image, (B,)."""
    return squared_errors(x, eps, gamma_t, predict_noise).flatten(1).sum(1)


def squared_errors(x: Tensor, eps: Tensor, gamma_t: Tensor, predict_noise: PredictNoise) -> Tensor:
    """Return (eps - eps_hat(z_t))^2 of every dimension, (B,C,H,W)."""
    return (eps - predict_noise(diffuse(x, gamma_t, eps), gamma_t)).square()


def diffusion_loss(x: Tensor, eps: Tensor, gamma_t: Tensor, dgamma_dt: Tensor, predict_noise: PredictNoise) -> Tensor:
    """Return 1/2 gamma'(t) |eps - eps_hat|^2: a draw of the continuous-time loss at t ~ U[0, 1) (eq. 17), (B,) nats.

    gamma_t and its derivative dgamma_dt (B,) come from `vdm.schedule.LinearSchedule.gamma_and_slope`.
    """
    return 0.5 * dgamma_dt * squared_error(x, eps, gamma_t, predict_noise)


def finite_diffusion_loss(
    x: Tensor, eps: Tensor, gamma_s: Tensor, gamma_t: Tensor, num_timesteps: int, predict_noise: PredictNoise
) -> Tensor:
    """Return T/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2: a draw of the T-step loss (section 4), (B,) nats.

    t = i/T with i uniform over 1..T (see `grid_times`), s = t - 1/T.  gamma_s, gamma_t (B,) should be float64, since
    for a large T they are almost equal; the network gets gamma_t with the dtype of x.
    """
    error = squared_error(x, eps, gamma_t.to(x.dtype), predict_noise)
    return num_timesteps / 2 * torch.expm1(gamma_t - gamma_s) * error


def own_variance_loss(
    x: Tensor,
    eps: Tensor,
    gamma_s: Tensor,
    gamma_t: Tensor,
    variance: Tensor,
    num_timesteps: int,
    predict_noise: PredictNoise,
) -> Tensor:
    """Return T/2 sum [ln u + (1 + rho)/u - 1], a draw of the T-step loss if p(z_s | z_t) has u times the variance.

    With rho = expm1(gamma_t - gamma_s) (eps - eps_hat)^2 that is T KL(q(z_s | z_t, x) || N(mu_hat, u sigma_Q^2)), (B,)
    nats.  `variance` u, (B,) or (B,C,H,W), and gamma_s, gamma_t (B,) should be float64.  With u = 1 it is
    `finite_diffusion_loss`.
    """
    errors = squared_errors(x, eps, gamma_t.to(x.dtype), predict_noise)
    rho = per_image(torch.expm1(gamma_t - gamma_s), x) * errors
    u = per_image(variance, x) if variance.ndim == 1 else variance
    return num_timesteps / 2 * (u.log() + (1 + rho) / u - 1).flatten(1).sum(1)


def low_discrepancy_times(offset: Tensor, num_times: int) -> Tensor:
    """Return times spread evenly from a uniform offset: (offset + i / num_times) mod 1, (num_times,) (appendix I.1)."""
    # arange over integers: a float step 1/n yields n + 1 values for some n.
    grid = torch.arange(num_times, device=offset.device, dtype=offset.dtype) / num_times
    # In float32 the remainder of a value just below 1 can round to 1 itself, which is not in [0, 1).
    return torch.remainder(offset + grid, 1).clamp(max=1 - torch.finfo(offset.dtype).eps)


def grid_times(t: Tensor, num_timesteps: int) -> Tensor:
    """Round uniform t in [0, 1) up to the grid of T steps: i/T with i uniform over 1..T."""
    return (torch.floor(t * num_timesteps) + 1) / num_timesteps
