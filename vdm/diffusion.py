"""The forward process q(z_t | x) and the generative step p(z_s | z_t), s < t (sections 3.1 and 3.3, appendix A).

q(z_t | x)   = N(alpha_t x, sigma_t^2 I)
p(z_s | z_t) = q(z_s | z_t, x = x_hat(z_t))      x_hat = (z_t - sigma_t eps_hat) / alpha_t
"""

import torch
from torch import Tensor

from vdm.schedule import alpha, sigma


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape `values`, (B,) or a scalar, to broadcast over `like` (B,C,H,W)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def diffuse(x: Tensor, gamma_t: Tensor, eps: Tensor) -> Tensor:
    """z_t = alpha_t x + sigma_t eps, a draw from q(z_t | x) (eq. 1).  x, eps (B,C,H,W); gamma_t (B,)."""
    gamma_t = per_image(gamma_t, x)
    return alpha(gamma_t) * x + sigma(gamma_t) * eps


def denoise(z_t: Tensor, eps_hat: Tensor, gamma_t: Tensor) -> Tensor:
    """x_hat = (z_t - sigma_t eps_hat) / alpha_t (section 3.4).  z_t, eps_hat (B,C,H,W); gamma_t (B,)."""
    gamma_t = per_image(gamma_t, z_t)
    return (z_t - sigma(gamma_t) * eps_hat) / alpha(gamma_t)


def reverse_step(
    z_t: Tensor, eps_hat: Tensor, eps: Tensor, gamma_s: Tensor, gamma_t: Tensor, *, clip: bool = False
) -> Tensor:
    """z_s, a draw from p(z_s | z_t) (appendix A.4, eq. 34).  z_t, eps_hat, eps (B,C,H,W); gamma_s < gamma_t (B,).

    `clip` limits x_hat to [-1, 1], where all images lie.  It changes samples, never the likelihood.
    """
    c = per_image(-torch.expm1(gamma_s - gamma_t), z_t)
    x_hat = denoise(z_t, eps_hat, gamma_t)
    if clip:
        x_hat = x_hat.clamp(-1, 1)
    gamma_s, gamma_t = per_image(gamma_s, z_t), per_image(gamma_t, z_t)
    # With x_hat unclipped this mean is alpha_s/alpha_t (z_t - sigma_t c eps_hat), the paper's last form.
    mean = alpha(gamma_s) * ((1 - c) / alpha(gamma_t) * z_t + c * x_hat)
    return mean + sigma(gamma_s) * c.sqrt() * eps
