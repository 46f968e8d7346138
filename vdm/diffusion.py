"""The forward process q(z_t | x) and the generative step p(z_s | z_t), s < t (sections 3.1 and 3.3, appendix A).

q(z_t | x)   = N(alpha_t x, sigma_t^2 I)
p(z_s | z_t) = q(z_s | z_t, x = x_hat(z_t))      x_hat = (z_t - sigma_t eps_hat) / alpha_t
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vdm.schedule import alpha, sigma


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape `values`, (B,) or a scalar, to broadcast over `like` (B,C,H,W)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def diffuse(x: Tensor, gamma_t: Tensor, eps: Tensor) -> Tensor:
    """Return z_t = alpha_t x + sigma_t eps, a draw from q(z_t | x) (eq. 1).  x, eps (B,C,H,W); gamma_t (B,)."""
    gamma_t = per_image(gamma_t, x)
    return alpha(gamma_t) * x + sigma(gamma_t) * eps


def denoise(z_t: Tensor, eps_hat: Tensor, gamma_t: Tensor) -> Tensor:
    """Return x_hat = (z_t - sigma_t eps_hat) / alpha_t (section 3.4).  z_t, eps_hat (B,C,H,W); gamma_t (B,)."""
    gamma_t = per_image(gamma_t, z_t)
    return (z_t - sigma(gamma_t) * eps_hat) / alpha(gamma_t)


def forward_step(z_s: Tensor, eps: Tensor, gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
    """Return a draw of z_t from q(z_t | z_s) (appendix A.1).

    z_s, eps (B,C,H,W); gamma_s < gamma_t, (B,) or scalars.
    """
    gamma_s, gamma_t = per_image(gamma_s, z_s), per_image(gamma_t, z_s)
    return alpha(gamma_t) / alpha(gamma_s) * z_s + sigma(gamma_t) * (-torch.expm1(gamma_s - gamma_t)).sqrt() * eps


def reverse_step(
    z_t: Tensor, x_hat: Tensor, eps: Tensor, gamma_s: Tensor, gamma_t: Tensor, *, eta: float = 1.0
) -> Tensor:
    """Return a draw of z_s from p(z_s | z_t) = q(z_s | z_t, x = x_hat) (appendix A.4, eq. 34), or one with less noise.

    z_t, x_hat, eps (B,C,H,W); gamma_s < gamma_t, (B,) or scalars.  `eta` is the noise of the step, from 0 (none) to 1
    (that of p).  If x_hat is exact, every eta leads to the same marginals (Song et al. 2020).  With
    h = (gamma_t - gamma_s)/2:

        z_s = (sigma_s/sigma_t) e^(-eta h) z_t + alpha_s (1 - e^(-(1 + eta) h)) x_hat
              + sigma_s sqrt(1 - e^(-2 eta h)) eps
    """
    gamma_s, gamma_t = per_image(gamma_s, z_t), per_image(gamma_t, z_t)
    h = (gamma_t - gamma_s) / 2
    mean = sigma(gamma_s) / sigma(gamma_t) * torch.exp(-eta * h) * z_t
    mean = mean - alpha(gamma_s) * torch.expm1(-(1 + eta) * h) * x_hat
    return mean + sigma(gamma_s) * (-torch.expm1(-2 * eta * h)).sqrt() * eps


def image_generators(
    seed: int, indices: Iterable[int], start: Sequence[int] = (0, 0, 0, 0)
) -> list[np.random.Generator]:
    """Return a counter-based generator (Philox) per image index, so that other images do not change an image's noise.

    The counter begins at `start`: another one gives other noise.  Raises OverflowError unless 0 <= seed < 2^64.
    """
    # Numpy would make floats of a list of large and small integers, in which neighbouring seeds are equal.
    keys = (np.array([seed, index], np.uint64) for index in indices)
    return [np.random.Generator(np.random.Philox(key=key, counter=start)) for key in keys]
