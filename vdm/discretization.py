"""Discrete pixels and the continuous x (section 3.3): level k of K sits at the centre 2 (k + 0.5) / K - 1.

p(x | z_0) is proportional to q(z_0 | x), pixel by pixel, normalised over the K levels:
log p(level k | z_0) = l_k - logsumexp_j l_j,    l_j = -1/2 ((z_0 - alpha_0 x_j) / sigma_0)^2
"""

import math

import numpy as np
import torch
from torch import Tensor

from vdm.diffusion import diffuse
from vdm.schedule import alpha


def pixels_to_x(pixels: Tensor, num_levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the level centres in (-1, 1) of pixels 0..num_levels-1 of an integer type, in the shape of the pixels.

    Raises TypeError for pixels of another type.
    """
    if pixels.is_floating_point():
        raise TypeError(f"pixels must be levels of an integer type, got {pixels.dtype}")
    return 2 * (pixels.to(dtype) + 0.5) / num_levels - 1


def require_levels(pixels: np.ndarray, num_levels: int) -> None:
    """Raise TypeError unless the pixels are of an integer type, and ValueError unless they are 0..num_levels-1."""
    if not np.issubdtype(pixels.dtype, np.integer):
        raise TypeError(f"pixels must be levels of an integer type, got {pixels.dtype}")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() < num_levels):
        raise ValueError(f"pixels must be 0 to {num_levels - 1}, got {pixels.min()} to {pixels.max()}")


def nearest_pixels(z_0: Tensor, gamma_0: Tensor, num_levels: int) -> Tensor:
    """Return the mode of p(x | z_0), the most likely levels given z_0 (B,C,H,W); uint8 up to 256 levels."""
    # The level centre nearest to z_0 / alpha_0 is the argmax over levels, without a tensor with an axis of levels.
    level = ((z_0 / alpha(gamma_0) + 1) * num_levels / 2 - 0.5).round().clamp(0, num_levels - 1)
    return level.to(torch.uint8 if num_levels <= 256 else torch.int32)


def log_p_pixels(pixels: Tensor, z_0: Tensor, gamma_0: Tensor, num_levels: int) -> Tensor:
    """Return log p(x | z_0) summed over each image, (B,) nats; pixels and z_0 (B,C,H,W).

    The normaliser is added up level by level, which needs no tensor with an axis of levels.
    """
    z = z_0 / alpha(gamma_0)
    scale = torch.exp(-gamma_0 / 2)

    def logit(x: Tensor) -> Tensor:
        return -0.5 * ((z - x) * scale).square()

    levels = pixels_to_x(torch.arange(num_levels, device=z.device), num_levels, z.dtype)
    normaliser = logit(levels[0])
    for x in levels[1:]:
        normaliser = torch.logaddexp(normaliser, logit(x))
    return (logit(pixels_to_x(pixels, num_levels, z.dtype)) - normaliser).flatten(1).sum(1)


def reconstruction_table(gamma_0: Tensor, num_levels: int) -> Tensor:
    """Return E over eps of -log p(k | z_0 = alpha_0 x_k + sigma_0 eps) for every level k, (num_levels,) float64 nats.

    The expected reconstruction loss of a pixel depends on its level and on gamma_0 alone, so a table replaces a draw.
    With d = (level spacing) / sqrt(exp(gamma_0)), the loss at eps is

        log sum_m exp(-d m eps - d^2 m^2 / 2),    m = k - j from k - K + 1 to k.

    All levels share two running sums, from m = 0 upwards and downwards.  A trapezoid sum over eps gives the
    expectation: it converges exponentially for a smooth integrand times a Gaussian.  Level k at eps has the loss of
    level K - 1 - k at -eps, so the nodes eps >= 0 suffice.
    """
    half_width, step = 9.0, 0.04  # beyond 9 standard deviations lies 1e-19 of the mass
    num_nodes = round(half_width / step) + 1
    eps = torch.linspace(0, half_width, num_nodes, dtype=torch.float64, device=gamma_0.device)
    weights = torch.exp(-0.5 * eps.square()) * (step / math.sqrt(2 * math.pi))
    weights[0] /= 2  # both sums below have the node 0

    d = 2 / num_levels * torch.exp(-gamma_0.double() / 2)
    m = torch.arange(num_levels, dtype=torch.float64, device=gamma_0.device)[:, None]
    upwards = torch.logcumsumexp(-d * m * eps - (d * m).square() / 2, dim=0)
    downwards = torch.logcumsumexp(d * m[1:] * eps - (d * m[1:]).square() / 2, dim=0)
    # Level k has k levels below it (m = 1..k, and itself at m = 0) and K - 1 - k above it.
    loss = torch.cat([torch.logaddexp(upwards[:-1], downwards.flip(0)), upwards[-1:]])
    half = loss @ weights
    return half + half.flip(0)


def reconstruction_draw(pixels: Tensor, eps: Tensor, gamma_0: Tensor, num_levels: int) -> Tensor:
    """Return -log p(x | z_0) at one z_0 drawn with eps (B,C,H,W), an unbiased, noisy reconstruction term, (B,) nats."""
    x = pixels_to_x(pixels, num_levels, eps.dtype)
    return -log_p_pixels(pixels, diffuse(x, gamma_0, eps), gamma_0, num_levels)
