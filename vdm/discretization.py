"""Discrete pixels and the continuous x (section 3.3): level k of K sits at the centre 2 (k + 0.5) / K - 1.

p(x | z_0) is proportional to q(z_0 | x), pixel by pixel, normalised over the K levels:
log p(level k | z_0) = l_k - logsumexp_j l_j,    l_j = -1/2 ((z_0 - alpha_0 x_j) / sigma_0)^2

Above 256 levels only those near z_0 matter.  With d = (level spacing) / sqrt(exp(gamma_0)), a level farther than
`REACH` noises, or REACH / d levels, has no share that float64 could hold.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vdm.diffusion import diffuse
from vdm.schedule import alpha

SUMMED = 256
"""Levels over which sums are taken as they are written."""
REACH = 18.0
"""Distance in standard deviations of the noise from which on a level does not matter: twice that of the nodes."""
STENCIL = -3, 5
"""The range of the places through which a polynomial interpolates between places 0 and 1."""


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
    """Return the mode of p(x | z_0), the most likely levels given z_0 (B,C,H,W); uint8 or uint16."""
    # The level centre nearest to z_0 / alpha_0 is the argmax over levels, without a tensor with an axis of levels.
    level = ((z_0 / alpha(gamma_0) + 1) * num_levels / 2 - 0.5).round().clamp(0, num_levels - 1)
    return level.to(torch.uint8 if num_levels <= 256 else torch.uint16)


def log_p_pixels(pixels: Tensor, z_0: Tensor, gamma_0: Tensor, num_levels: int) -> Tensor:
    """Return log p(x | z_0) summed over each image, (B,) nats; pixels and z_0 (B,C,H,W).

    The normaliser is added up level by level, which needs no tensor with an axis of levels.  Above `SUMMED` levels they
    are those that matter, around the nearest one.
    """
    z = z_0 / alpha(gamma_0)
    scale = torch.exp(-gamma_0 / 2)

    def logit(x: Tensor) -> Tensor:
        return -0.5 * ((z - x) * scale).square()

    count, first = num_levels, torch.zeros((), dtype=torch.long, device=z.device)
    if num_levels > SUMMED:
        reach = window(float(gamma_0), num_levels)
        count = min(2 * reach + 1, num_levels)
        first = (nearest_pixels(z_0, gamma_0, num_levels).long() - reach).clamp(0, num_levels - count)
    normaliser = logit(pixels_to_x(first, num_levels, z.dtype))
    for place in range(1, count):
        normaliser = torch.logaddexp(normaliser, logit(pixels_to_x(first + place, num_levels, z.dtype)))
    return (logit(pixels_to_x(pixels, num_levels, z.dtype)) - normaliser).flatten(1).sum(1)


def window(gamma_0: float, num_levels: int, reach: float = REACH) -> int:
    """Return how many levels on each side of the one nearest to z_0 are within `reach` standard deviations of it."""
    return min(num_levels, math.ceil(reach * num_levels / 2 * math.exp(gamma_0 / 2)) + 1)


def reconstruction_table(gamma_0: Tensor, num_levels: int) -> Tensor:
    """Return E over eps of -log p(k | z_0 = alpha_0 x_k + sigma_0 eps) for every level k, (num_levels,) float64 nats.

    The expected reconstruction loss of a pixel depends on its level and on gamma_0 alone, so a table replaces a draw.
    With d = (level spacing) / sqrt(exp(gamma_0)), the loss at eps is

        log sum_m exp(-d m eps - d^2 m^2 / 2),    m = k - j from k - K + 1 to k.

    The expectation is a trapezoid sum over eps, which converges exponentially for a smooth integrand times a Gaussian.
    Level k at eps has the loss of level K - 1 - k at -eps, so the nodes eps >= 0 suffice.

    Above `SUMMED` levels all that are more than REACH / d from both ends have the loss of one among `SUMMED`.  Where
    REACH / d is more than half of `SUMMED`, the sums are so close to integrals that these give it.  Both are computed,
    since a choice between them would wait for the device.
    """
    d = 2 / num_levels * torch.exp(-gamma_0.double() / 2)
    if num_levels <= SUMMED:
        return summed_table(d, num_levels)
    half, least = SUMMED // 2, 2 * REACH / SUMMED
    few = summed_table(d.clamp(min=least), SUMMED)
    wide = torch.cat([few[:half], few[half].expand(num_levels - SUMMED), few[half:]])
    return torch.where(d < least, integrated_table(d.clamp(max=least), num_levels, least), wide)


def nodes(half_width: float, step: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return nodes eps >= 0 and their weights, with which f(eps) + f(-eps) has the sum E f, (E,) float64 each."""
    eps = torch.linspace(0, half_width, round(half_width / step) + 1, dtype=torch.float64, device=device)
    weights = torch.exp(-0.5 * eps.square()) * (step / math.sqrt(2 * math.pi))
    weights[0] /= 2  # both signs of eps have the node 0
    return eps, weights


def summed_table(d: Tensor, num_levels: int) -> Tensor:
    """Return the `reconstruction_table` (num_levels,) of levels that are d noises apart.

    All levels share two running sums, of m from 1 upwards and from -1 downwards.  They do not overflow, since no term
    is above exp(eps^2 / 2).
    """
    eps, weights = nodes(9.0, 0.04, d.device)  # beyond 9 standard deviations lies 1e-19 of the mass
    distance = d * torch.arange(1, num_levels, dtype=torch.float64, device=d.device)[:, None]
    density = -distance.square() / 2
    above = torch.exp(density - distance * eps).cumsum(0)
    below = torch.exp(density + distance * eps).cumsum(0)
    # Level k has k levels below it and K - 1 - k above it.
    none = torch.zeros_like(above[:1])
    half = torch.log1p(torch.cat([above.flip(0), none]) + torch.cat([none, below])) @ weights
    return half + half.flip(0)


def integrated_table(d: Tensor, num_levels: int, spacing: float) -> Tensor:
    """Return the `reconstruction_table` (num_levels,) of levels that are d < `spacing` noises apart.

    With the ends of all levels a = (k + 1/2) d below and b = K d - a above level k, and u = m d - eps, the sum is

        sqrt(2 pi) / d exp(eps^2 / 2) (Phi(a + eps) - Phi(eps - b) + a correction for the ends)

    where the correction is that of Euler and Maclaurin for the midpoint rule, up to d^6.  The loss is a smooth function
    of a, and polynomials interpolate between its values, `spacing` apart.
    """
    eps, weights = nodes(9.0, 0.2, d.device)

    def correction(u: Tensor) -> Tensor:
        """Return what an end at u, which lies on the side of larger u, adds to the sum."""
        slope, third, fifth = -u, 3 * u - u**3, -15 * u + 10 * u**3 - u**5  # of exp(-u^2 / 2), in units of it
        series = -d.square() / 24 * slope + 7 * d**4 / 5760 * third - 31 * d**6 / 967680 * fifth
        return series * torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)

    def mean_log(upper: Tensor, lower: Tensor) -> Tensor:
        """Return the part of the mean log of the sum in which eps has the sign that moves away from the lower end."""
        inner, outer = upper[:, None] + eps, lower[:, None] - eps
        share = 0.5 * (torch.erfc(-outer / math.sqrt(2)) - torch.erfc(inner / math.sqrt(2)))
        return torch.log(share + correction(inner) + correction(outer)) @ weights

    most = num_levels * d / 2  # in the middle
    first, end = STENCIL
    places = torch.arange(first, round(REACH / spacing) + end, dtype=torch.float64, device=d.device)
    a = torch.minimum(places * spacing, most + end * spacing)
    b = 2 * most - a
    values = mean_log(b, a) + mean_log(a, b) + 0.5 + 0.5 * math.log(2 * math.pi) - torch.log(d)
    # Each row has the coefficients of the polynomial from a place to the next.
    stencil = torch.arange(*STENCIL, dtype=torch.float64, device=d.device)
    inverse = torch.linalg.inv_ex(torch.vander(stencil, increasing=True)).inverse  # `inv` would wait for the device
    pieces = values.unfold(0, len(stencil), 1) @ inverse.T
    k = torch.arange((num_levels + 1) // 2, dtype=torch.float64, device=d.device)
    place = ((k + 0.5) * d).clamp(max=REACH) / spacing
    piece = place.detach().long().clamp(max=len(pieces) - 1)
    coefficients, share = pieces[piece].T, place - piece
    half = coefficients[-1]
    for coefficient in coefficients.flip(0)[1:]:
        half = half * share + coefficient
    return torch.cat([half, half[: num_levels // 2].flip(0)])


def reconstruction_draw(pixels: Tensor, eps: Tensor, gamma_0: Tensor, num_levels: int) -> Tensor:
    """Return -log p(x | z_0) at one z_0 drawn with eps (B,C,H,W), an unbiased, noisy reconstruction term, (B,) nats."""
    x = pixels_to_x(pixels, num_levels, eps.dtype)
    return -log_p_pixels(pixels, diffuse(x, gamma_0, eps), gamma_0, num_levels)
