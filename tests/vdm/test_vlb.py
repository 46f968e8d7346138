"""The bound agrees with closed forms, and its times and weights are right."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdm.grids import Grid
from vdm.model import VDM
from vdm.schedule import LinearSchedule, MonotoneSchedule, alpha, sigma
from vdm.vlb import (
    bits_per_dim,
    diffusion_loss,
    finite_diffusion_loss,
    grid_times,
    low_discrepancy_times,
    prior_loss,
    reconstruction_loss,
)

DATA_VARIANCE, NUM_DIMS = 0.3, 12


def exact_noise(z_t: Tensor, gamma_t: Tensor) -> Tensor:
    """Return E[eps | z_t] for x ~ N(0, DATA_VARIANCE I)."""
    gamma = gamma_t.reshape(-1, 1, 1, 1)
    return sigma(gamma) / (alpha(gamma) ** 2 * DATA_VARIANCE + sigma(gamma) ** 2) * z_t


def information(gamma: Tensor) -> Tensor:
    """Return the mutual information of x ~ N(0, DATA_VARIANCE I) and z at gamma, in nats per image."""
    return NUM_DIMS / 2 * torch.log1p(DATA_VARIANCE * torch.exp(-gamma))


def gaussian_batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, size, 3, 2, 2, dtype=torch.float64, generator=generator)
    t = low_discrepancy_times(torch.rand((), dtype=torch.float64, generator=generator), size)
    return math.sqrt(DATA_VARIANCE) * x, eps, t


def schedules() -> list[LinearSchedule]:
    torch.manual_seed(0)
    bent = MonotoneSchedule(-7.0, 5.0, num_features=32)
    torch.nn.init.normal_(bent.outer, std=50.0)
    torch.nn.init.normal_(bent.inner, std=20.0)
    # The bend is off the middle: a symmetric one would hide a wrong slope, as the loss is symmetric about log 0.3.
    torch.nn.init.constant_(bent.bias, 8.0)
    return [LinearSchedule(-7.0, 5.0, learned=False).double(), bent.double()]


@pytest.mark.parametrize("schedule", schedules())
def test_the_continuous_loss_of_gaussian_data_is_an_information_difference(schedule: LinearSchedule) -> None:
    """1/2 int gamma' E|eps - eps_hat|^2 dt = I(x; z_0) - I(x; z_1), for any schedule between the ends."""
    size = 40_000
    x, eps, t = gaussian_batch(size)
    losses = diffusion_loss(x, eps, *schedule.gamma_and_slope(t), exact_noise).detach()
    expected = (information(schedule.gamma_0) - information(schedule.gamma_1)).item()
    error = losses.std().item() / math.sqrt(size)
    assert abs(losses.mean().item() - expected) < 4 * error
    assert error < expected / 50  # small enough to show a wrong factor of 2


@pytest.mark.parametrize("num_timesteps", [1, 10, 100])
@pytest.mark.parametrize("schedule", schedules())
def test_the_finite_loss_of_gaussian_data_is_its_sum_over_steps(schedule: LinearSchedule, num_timesteps: int) -> None:
    size = 40_000
    x, eps, t = gaussian_batch(size)
    t = grid_times(t, num_timesteps)
    gamma_s, gamma_t = schedule(t - 1 / num_timesteps).detach(), schedule(t).detach()
    losses = finite_diffusion_loss(x, eps, gamma_s, gamma_t, num_timesteps, exact_noise)
    ends = schedule(torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps).detach()
    signal = DATA_VARIANCE * torch.exp(-ends[1:])
    expected = (torch.expm1(ends.diff()) / 2 * NUM_DIMS * signal / (1 + signal)).sum().item()
    error = losses.std().item() / math.sqrt(size)
    assert abs(losses.mean().item() - expected) < 4 * error


@pytest.mark.parametrize("gamma_1", [-2.0, 0.0, 5.0, 12.0])
def test_the_prior_is_the_kl_divergence(gamma_1: float) -> None:
    x = torch.rand(4, 3, 5, 5, dtype=torch.float64) * 2 - 1
    gamma = torch.tensor(gamma_1, dtype=torch.float64)
    posterior = Normal(alpha(gamma) * x, sigma(gamma).expand_as(x))
    expected = kl_divergence(posterior, Normal(torch.zeros_like(x), torch.ones_like(x))).flatten(1).sum(1)
    torch.testing.assert_close(prior_loss(x, gamma), expected, rtol=1e-9, atol=1e-12)


def test_the_prior_keeps_its_digits_in_float32() -> None:
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    exact = prior_loss(x.double(), torch.tensor(5.0, dtype=torch.float64))
    torch.testing.assert_close(prior_loss(x, torch.tensor(5.0)).double(), exact, rtol=1e-5, atol=0)


def test_reconstruction_adds_the_table_up_over_an_image() -> None:
    pixels = torch.tensor([[[[0, 1], [8, 16]]], [[[3, 3], [3, 3]]]], dtype=torch.uint8)
    from vdm.discretization import reconstruction_table

    gamma_0 = torch.tensor(-4.0, dtype=torch.float64)
    table = reconstruction_table(gamma_0, 17)
    expected = torch.stack([table[0] + table[1] + table[8] + table[16], 4 * table[3]])
    torch.testing.assert_close(reconstruction_loss(pixels, gamma_0, 17), expected)


def test_bits_per_dim_of_a_uniform_guess_is_the_logarithm_of_the_levels() -> None:
    nats = torch.tensor([3 * 32 * 32 * math.log(256)], dtype=torch.float64)
    assert bits_per_dim(nats, 3 * 32 * 32).item() == pytest.approx(8)


def test_many_steps_keep_their_weights_in_float32(tiny_model: Callable[..., VDM]) -> None:
    """With |eps - eps_hat|^2 = 1 the mean loss over all steps is T/2 times the mean of expm1(gamma_t - gamma_s)."""
    model, num_timesteps = tiny_model(image_shape=(1, 1, 1)), 100_000
    model.network.forward = lambda z_t, gamma_t: torch.zeros_like(z_t)  # type: ignore[assignment]
    t = (torch.arange(num_timesteps) + 0.5) / num_timesteps
    pixels, eps = torch.zeros(num_timesteps, 1, 1, 1, dtype=torch.uint8), torch.ones(num_timesteps, 1, 1, 1)
    mean = model(pixels, eps, t, grid=Grid(num_timesteps)).diffusion.double().mean().item()
    assert mean == pytest.approx(num_timesteps / 2 * math.expm1(12 / num_timesteps), rel=1e-7)


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True, width=32))
def test_low_discrepancy_times_are_one_per_stratum(num_times: int, offset: float) -> None:
    t = low_discrepancy_times(torch.tensor(offset), num_times)
    assert t.shape == (num_times,)
    assert t.min() >= 0
    assert t.max() < 1
    # Sorted, the num_times points are a step apart, up to float32's epsilon.
    spacing = t.double().sort().values.diff()
    assert num_times == 1 or torch.allclose(spacing, torch.full_like(spacing, 1 / num_times), atol=1e-6)


def test_grid_times_are_uniform_over_one_to_t() -> None:
    t = grid_times(torch.arange(1000, dtype=torch.float64) / 1000, 10)
    values, counts = torch.unique(t, return_counts=True)
    torch.testing.assert_close(values, torch.arange(1, 11, dtype=torch.float64) / 10)
    assert (counts == 100).all()
