"""Pixels, levels, and the exact reconstruction term."""

import math

import numpy as np
import pytest
import torch
from torch.profiler import profile

from vdm.discretization import (
    log_p_pixels,
    nearest_pixels,
    pixels_to_x,
    reconstruction_draw,
    reconstruction_table,
    summed_table,
)
from vdm.schedule import alpha, sigma
from vdm.vlb import PredictNoise, Terms, diffusion_loss, prior_loss, reconstruction_loss


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


def gamma_of(noises: float, num_levels: int) -> torch.Tensor:
    """Return the gamma_0 at which levels are so many standard deviations of the noise apart."""
    return torch.tensor(-2 * math.log(noises * num_levels / 2), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("num_levels", [257, 1024])
@pytest.mark.parametrize("noises", [6.0, 1.4, 0.3, 0.1407, 0.1405, 0.05, 0.02, 1e-3, 1e-5])
def test_the_table_of_many_levels_is_the_sum_over_all(noises: float, num_levels: int) -> None:
    """With 1e-10: the polynomials between the values of the integrals have eight of them."""
    gamma_0, exact_gamma_0 = gamma_of(noises, num_levels), gamma_of(noises, num_levels)
    table = reconstruction_table(gamma_0, num_levels)
    exact = summed_table(2 / num_levels * torch.exp(-exact_gamma_0 / 2), num_levels)
    torch.testing.assert_close(table, exact, atol=1e-10, rtol=0)
    weights = torch.linspace(0, 1, num_levels, dtype=torch.float64)
    slope, exact_slope = (
        torch.autograd.grad(each @ weights, to)[0] for each, to in ((table, gamma_0), (exact, exact_gamma_0))
    )
    torch.testing.assert_close(slope, exact_slope, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("noises", [6.0, 0.7, 0.05])
def test_log_p_of_many_levels_is_the_softmax_over_all(noises: float) -> None:
    gamma_0 = gamma_of(noises, 1000).detach()
    x = torch.linspace(-1.5, 1.5, 501, dtype=torch.float64)
    z_0 = (alpha(gamma_0) * x).reshape(1, 1, 1, -1)
    pixels = nearest_pixels(z_0, gamma_0, 1000)
    assert pixels.dtype == torch.uint16
    expected = brute_force_log_p(z_0, gamma_0, 1000).gather(-1, pixels.long().unsqueeze(-1)).sum()
    torch.testing.assert_close(log_p_pixels(pixels, z_0, gamma_0, 1000)[0], expected)


def test_sixteen_bits_take_little_memory() -> None:
    gamma_0 = gamma_of(6, 2**16).detach().float().requires_grad_()
    pixels = torch.randint(2**16, (64, 1, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    with profile(profile_memory=True) as profiled:
        reconstruction_loss(pixels, gamma_0, 2**16).sum().backward()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event.nbytes() for event in sorted(events, key=lambda it: it.start_ns()) if event.name() == "[memory]"]
    assert 1e6 < np.cumsum(changes).max() < 50e6


def bound_of_all(
    x: torch.Tensor,
    pixels: torch.Tensor,
    gammas: tuple[torch.Tensor, float],
    num_levels: int,
    predict_noise: PredictNoise,
) -> torch.Tensor:
    """Return -VLB of every image, exact for a linear predictor: the loss is quadratic in eps, so eps = +-1 suffice."""
    gamma_0, gamma_1 = gammas
    nodes, weights = np.polynomial.legendre.leggauss(40)
    span = gamma_1 - gamma_0
    diffusion = torch.zeros(len(x), dtype=torch.float64)
    signs = [torch.tensor(signs, dtype=torch.float64).reshape(x.shape[1:]) for signs in np.ndindex(*[2] * x[0].numel())]
    for node, weight in zip(nodes, weights, strict=True):
        gamma_t = (gamma_0 + span * (node + 1) / 2).expand(len(x))
        for sign in signs:
            eps = (2 * sign - 1).expand_as(x)
            diffusion += weight / 2 / len(signs) * diffusion_loss(x, eps, gamma_t, span.expand(len(x)), predict_noise)
    prior = prior_loss(x, torch.tensor(gamma_1, dtype=torch.float64))
    return Terms(prior, reconstruction_loss(pixels, gamma_0, num_levels), diffusion).total


@pytest.mark.parametrize(
    ("num_levels", "noises", "least"), [(1024, 3.0, 0.2), (1024, 0.5, 0.97), (1024, 0.1, 0.97), (1024, 0.02, 0.9)]
)
def test_the_probabilities_of_all_pixels_add_up_to_one_at_most(num_levels: int, noises: float, least: float) -> None:
    """The predictor is that of Gaussian pixels: with coarse noise nearly exact, so that hardly anything is lost."""
    variance, gamma_0 = 0.05, gamma_of(noises, num_levels).detach()

    def predict_noise(z_t: torch.Tensor, gamma_t: torch.Tensor) -> torch.Tensor:
        a, s = alpha(gamma_t[0]), sigma(gamma_t[0])
        return s * z_t / (a**2 * variance + s**2)

    pixels = torch.arange(num_levels).reshape(-1, 1, 1, 1)
    x = pixels_to_x(pixels, num_levels, torch.float64)
    total = torch.exp(-bound_of_all(x, pixels, (gamma_0, 8.0), num_levels, predict_noise)).sum()
    assert least < total <= 1


def test_the_probabilities_of_all_pairs_of_pixels_add_up_to_one_at_most() -> None:
    covariance = torch.tensor([[0.05, 0.03], [0.03, 0.05]], dtype=torch.float64)

    def predict_noise(z_t: torch.Tensor, gamma_t: torch.Tensor) -> torch.Tensor:
        a, s = alpha(gamma_t[0]), sigma(gamma_t[0])
        of_z = a**2 * covariance + s**2 * torch.eye(2, dtype=torch.float64)
        return s * torch.linalg.solve(of_z, z_t.flatten(1).T).T.reshape(z_t.shape)

    pixels = torch.cartesian_prod(torch.arange(32), torch.arange(32)).reshape(-1, 1, 1, 2)
    x = pixels_to_x(pixels, 32, torch.float64)
    total = torch.exp(-bound_of_all(x, pixels, (gamma_of(1.3, 32).detach(), 8.0), 32, predict_noise)).sum()
    assert 0.9 < total <= 1
