"""Pixels, levels, and the exact reconstruction term."""

import math

import numpy as np
import pytest
import torch

from vdm.discretization import (
    log_p_pixels,
    nearest_pixels,
    pixels_to_x,
    reconstruction_draw,
    reconstruction_table,
)
from vdm.schedule import alpha


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_are_centres_of_equal_parts_of_the_interval(num_levels: int) -> None:
    x = pixels_to_x(torch.arange(num_levels), num_levels, torch.float64)
    assert x[0] == pytest.approx(-1 + 1 / num_levels)
    assert x[-1] == pytest.approx(1 - 1 / num_levels)
    torch.testing.assert_close(x.diff(), torch.full((num_levels - 1,), 2 / num_levels, dtype=torch.float64))


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_pixels_survive_the_round_trip(num_levels: int) -> None:
    pixels = torch.arange(num_levels, dtype=torch.uint8)
    gamma_0 = torch.tensor(-13.3)
    assert torch.equal(nearest_pixels(alpha(gamma_0) * pixels_to_x(pixels, num_levels), gamma_0, num_levels), pixels)


def brute_force_log_p(z_0: torch.Tensor, gamma_0: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Return log p over an axis of all levels, computed as in the paper."""
    centres = alpha(gamma_0) * pixels_to_x(torch.arange(num_levels), num_levels, z_0.dtype)
    variance = torch.sigmoid(gamma_0)
    return torch.log_softmax(-0.5 * (z_0.unsqueeze(-1) - centres) ** 2 / variance, dim=-1)


@pytest.mark.parametrize("gamma_0", [-7.0, -2.0, 1.0])
def test_decoding_and_log_p_agree_with_the_softmax_over_levels(gamma_0: float) -> None:
    gamma = torch.tensor(gamma_0, dtype=torch.float64)
    z_0 = 1.5 * torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_p = brute_force_log_p(z_0, gamma, 17)
    pixels = nearest_pixels(z_0, gamma, 17)
    assert torch.equal(pixels.long(), log_p.argmax(-1))
    expected = log_p.gather(-1, pixels.long().unsqueeze(-1)).squeeze(-1).flatten(1).sum(1)
    torch.testing.assert_close(log_p_pixels(pixels, z_0, gamma, 17), expected)


def test_the_papers_value_at_256_levels() -> None:
    bits = reconstruction_table(torch.tensor(-13.3), 256) / math.log(2)
    assert bits[128].item() == pytest.approx(0.01045, abs=5e-6)
    # The outermost levels have one neighbour where the others have two.
    assert bits[0].item() == pytest.approx(0.01045 / 2, abs=5e-6)
    torch.testing.assert_close(bits, bits.flip(0))


def test_the_table_is_exact_and_differentiable() -> None:
    """It agrees with Gauss-Hermite quadrature at a gamma where that converges too."""
    gamma, num_levels, level = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True), 8, 3
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    eps = torch.from_numpy(nodes).reshape(-1, 1, 1, 1)
    losses = reconstruction_draw(torch.full(eps.shape, level), eps, gamma.detach(), num_levels)
    expected = float(losses.numpy() @ weights) / math.sqrt(2 * math.pi)
    assert reconstruction_table(gamma, num_levels)[level].item() == pytest.approx(expected, rel=1e-10)
    assert torch.autograd.gradcheck(lambda g: reconstruction_table(g, 17), (gamma,))
    # At a very low gamma the reconstruction term is zero, and its gradient must be zero, not NaN.
    far = torch.tensor(-30.0, requires_grad=True)
    reconstruction_table(far, 256).sum().backward()
    assert far.grad == 0


@pytest.mark.parametrize("gamma_0", [-13.3, -7.0, -3.0, 0.0, 3.0])
@pytest.mark.parametrize("num_levels", [2, 17])
def test_the_table_is_the_mean_of_the_draws(gamma_0: float, num_levels: int) -> None:
    gamma, draws = torch.tensor(gamma_0, dtype=torch.float64), 200_000
    eps = torch.randn(draws, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = reconstruction_table(gamma, num_levels)
    for level in (0, num_levels // 2, num_levels - 1):
        losses = reconstruction_draw(torch.full((draws, 1, 1, 1), level), eps, gamma, num_levels)
        error = losses.std().item() / math.sqrt(draws)
        assert abs(losses.mean().item() - table[level].item()) <= 4 * error + 1e-12
