"""The forward process and the generative step agree with Gaussian algebra by another route."""

import pytest
import torch
from torch import Tensor

from vdm.diffusion import denoise, diffuse, forward_step, reverse_step
from vdm.schedule import alpha, sigma


def full(value: float, batch: int = 3) -> Tensor:
    return torch.full((batch,), value, dtype=torch.float64)


def random(seed: int) -> Tensor:
    return torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_diffuse_then_denoise_with_the_true_noise_returns_x() -> None:
    x, eps = random(0), random(1)
    gamma_t = torch.tensor([-13.3, 0.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(denoise(diffuse(x, gamma_t, eps), eps, gamma_t), x)


@pytest.mark.parametrize(("gamma_s", "gamma_t"), [(-13.3, -13.2), (-3.0, -1.0), (0.0, 5.0), (-13.3, 5.0)])
def test_a_step_samples_the_posterior_of_the_forward_process(gamma_s: float, gamma_t: float) -> None:
    """p(z_s | z_t) = q(z_s | z_t, x = x_hat): Bayes' rule on q(z_s | x) and q(z_t | z_s), both Gaussian."""
    z_t, eps_hat = random(0), random(1)
    g_s, g_t = full(gamma_s), full(gamma_t)
    x_hat = denoise(z_t, eps_hat, g_t)
    a_s, a_t = alpha(g_s)[0], alpha(g_t)[0]
    v_s, v_t = sigma(g_s)[0] ** 2, sigma(g_t)[0] ** 2
    a_ts = a_t / a_s
    v_ts = v_t - a_ts**2 * v_s
    precision = 1 / v_s + a_ts**2 / v_ts
    mean = (a_s * x_hat / v_s + a_ts * z_t / v_ts) / precision

    zero = torch.zeros_like(z_t)
    torch.testing.assert_close(reverse_step(z_t, x_hat, zero, g_s, g_t), mean, rtol=1e-6, atol=1e-8)
    noise = reverse_step(z_t, x_hat, zero + 1, g_s, g_t) - reverse_step(z_t, x_hat, zero, g_s, g_t)
    torch.testing.assert_close(noise, (zero + 1) * precision**-0.5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_with_the_true_image_a_step_of_any_eta_leads_to_the_right_marginal(eta: float) -> None:
    """From z_t ~ q(z_t | x), the step with x_hat = x gives z_s ~ q(z_s | x)."""
    x, g_s, g_t = random(0), full(-2.0), full(1.0)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    mean = reverse_step(alpha(g_t)[0] * x, x, zero, g_s, g_t, eta=eta)
    torch.testing.assert_close(mean, alpha(g_s)[0] * x)
    from_z = reverse_step(sigma(g_t)[0] * one, zero, zero, g_s, g_t, eta=eta)
    drawn = reverse_step(zero, zero, one, g_s, g_t, eta=eta)
    torch.testing.assert_close(from_z**2 + drawn**2, sigma(g_s)[0] ** 2 * one)


def test_two_forward_steps_are_one() -> None:
    z_r, g_r, g_s, g_t = random(0), full(-4.0), full(-2.0), full(1.0)
    zero, one = torch.zeros_like(z_r), torch.ones_like(z_r)

    def parts(gamma_s: Tensor, gamma_t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor of z_s and the variance of z_t."""
        return forward_step(one, zero, gamma_s, gamma_t), forward_step(zero, one, gamma_s, gamma_t) ** 2

    (first, variance), (second, more) = parts(g_r, g_s), parts(g_s, g_t)
    factor, whole = parts(g_r, g_t)
    torch.testing.assert_close(first * second, factor)
    torch.testing.assert_close(second**2 * variance + more, whole)
    torch.testing.assert_close(alpha(g_r)[0] * factor, alpha(g_t)[0] * one)


def variance_error(num_timesteps: int, data_variance: float) -> float:
    """Return |variance of z_0 from the sampler - exact|, for data N(0, data_variance) and the exact predictor."""

    def variance(gamma: Tensor) -> Tensor:
        return alpha(gamma) ** 2 * data_variance + sigma(gamma) ** 2

    gammas = torch.linspace(-7, 5, num_timesteps + 1, dtype=torch.float64)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    reached = torch.ones(1, 1, dtype=torch.float64)
    for gamma_s, gamma_t in zip(gammas[:-1].flip(0), gammas[1:].flip(0), strict=True):
        eps_hat = sigma(gamma_t) / variance(gamma_t) * one
        x_hat = denoise(one, eps_hat, gamma_t)
        factor = reverse_step(one, x_hat, zero, gamma_s, gamma_t)
        noise = reverse_step(zero, zero, one, gamma_s, gamma_t)
        reached = factor**2 * reached + noise**2
    return abs(reached.item() - variance(gammas[0]).item())


def test_the_samplers_variance_error_falls_as_one_over_t() -> None:
    errors = [variance_error(steps, 0.3) for steps in (100, 200, 400)]
    # The start, N(0, 1) instead of q(z_1), adds an error that does not fall; at gamma_1 = 5 it is far below these.
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)
