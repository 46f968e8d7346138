"""The probability-flow likelihood agrees with densities known in closed form."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from project import ROOT
from torch import Tensor
from torch.distributions import MultivariateNormal

from benchmarks.likelihood import exact_predictor, log_mixture
from flows.core.params_file import read_params
from flows.evaluation.ode import dopri5
from vdm.discretization import pixels_to_x
from vdm.model import VDM
from vdm.ode import (
    Derivative,
    OdeState,
    basis_probes,
    dequantisation_draws,
    evaluate_ode,
    importance_weighted,
    log_density,
    log_weight,
)
from vdm.schedule import alpha, sigma
from vdm.vlb import bits_per_dim

NUM_DIMS = 12
GAMMA_0, GAMMA_1 = torch.tensor(-7.0, dtype=torch.float64), torch.tensor(10.0, dtype=torch.float64)


@pytest.fixture
def covariance() -> Tensor:
    factor = torch.randn(NUM_DIMS, NUM_DIMS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return 0.05 * factor @ factor.T / NUM_DIMS + 0.02 * torch.eye(NUM_DIMS, dtype=torch.float64)


def marginal(covariance: Tensor, gamma: Tensor) -> Tensor:
    """Return the covariance of z at gamma when x ~ N(0, covariance)."""
    return alpha(gamma) ** 2 * covariance + sigma(gamma) ** 2 * torch.eye(NUM_DIMS, dtype=torch.float64)


def exact_noise(covariance: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def predict(z: Tensor, gamma: Tensor) -> Tensor:
        solved = torch.linalg.solve(marginal(covariance, gamma[0]), z.flatten(1).T).T
        return (sigma(gamma[0]) * solved).reshape(z.shape)

    return predict


def test_a_gaussian_model_has_its_exact_log_density(covariance: Tensor) -> None:
    exact = MultivariateNormal(torch.zeros(NUM_DIMS, dtype=torch.float64), marginal(covariance, GAMMA_0))
    torch.manual_seed(0)
    z_0 = exact.sample((5,)).reshape(5, 3, 2, 2)
    ours = log_density(
        z_0, GAMMA_0, GAMMA_1, basis_probes(z_0), predict_noise=exact_noise(covariance), solve=dopri5(1e-7)
    )
    error = bits_per_dim(ours - exact.log_prob(z_0.flatten(1)), NUM_DIMS).abs().max().item()
    # The remaining error is N(0, I) in place of the marginal at gamma_1.
    assert error < 1e-3


def test_a_finite_set_of_images_has_its_exact_log_density_at_the_default_tolerance(digits: np.ndarray) -> None:
    """The exact predictor is a softmax over the images, and z_0 has a mixture of Gaussians.

    A tolerance of 1e-4 for z, instead of z / sigma, gives 0.03 bits/dim too little.
    """
    x = pixels_to_x(torch.from_numpy(digits[:16, :, 2:6, 2:6]), 17, torch.float64)
    gamma_0, gamma_1 = torch.tensor([-13.3, 20.0], dtype=torch.float64)

    eps = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z_0 = alpha(gamma_0) * x[:2] + sigma(gamma_0) * eps
    exact, predict_noise = log_mixture(x, z_0, gamma_0), exact_predictor(x)
    solve = dopri5(read_params(ROOT / "params.yaml").ode.tolerance)
    ours = log_density(z_0, gamma_0, gamma_1, basis_probes(z_0), predict_noise=predict_noise, solve=solve)
    # The remaining error is the solver's: at gamma_1, N(0, I) is within 1e-5 bits/dim of the mixture.
    # With z instead of z / sigma as the state, it is above 2e-4.
    assert bits_per_dim(ours - exact, 16).abs().max().item() < 1e-4


def test_the_shares_of_the_way_add_up_to_all_of_it(covariance: Tensor) -> None:
    z_0, shares = torch.zeros(2, 1, 1, len(covariance), dtype=torch.float64), list[float]()
    solve = dopri5(1e-4, shares.append)
    log_density(z_0, GAMMA_0, GAMMA_1, basis_probes(z_0), predict_noise=exact_noise(covariance), solve=solve)
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(1)


def test_rademacher_probes_are_unbiased(covariance: Tensor) -> None:
    z_0 = 0.2 * torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z_0 = z_0.expand(2000, -1, -1, -1)
    probes = torch.randint(0, 2, (1, *z_0.shape), generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    predict_noise, solve = exact_noise(covariance), dopri5(1e-6)
    noisy = log_density(z_0, GAMMA_0, GAMMA_1, probes, predict_noise=predict_noise, solve=solve)
    exact = log_density(z_0[:1], GAMMA_0, GAMMA_1, basis_probes(z_0[:1]), predict_noise=predict_noise, solve=solve)
    assert abs(noisy.mean() - exact[0]).item() < 4 * noisy.std().item() / math.sqrt(len(noisy))
    assert noisy.std() > 0


@pytest.mark.parametrize("dequantisation", ["uniform", "truncated_normal"])
def test_the_weights_average_to_the_probability_of_the_pixels(dequantisation: str) -> None:
    """For a pixel of Gaussian data, E over q of p / q is the probability of its cell, known from the error function."""
    variance = 0.1
    num_levels = 8
    draws = 1000
    one = torch.eye(1, dtype=torch.float64)

    def predict_noise(z: Tensor, gamma: Tensor) -> Tensor:
        return sigma(gamma[0]) * z / (alpha(gamma[0]) ** 2 * variance + sigma(gamma[0]) ** 2)

    gamma_0 = torch.tensor(-4.5, dtype=torch.float64)
    scale = (alpha(gamma_0) ** 2 * variance + sigma(gamma_0) ** 2).sqrt()
    # The mean over evenly spread points integrates over the cell.
    places = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    weights = log_weight(
        torch.arange(num_levels).repeat_interleave(draws).reshape(-1, 1, 1, 1),
        places.repeat(num_levels).reshape(-1, 1, 1, 1),
        one.reshape(1, 1, 1, 1, 1).expand(1, num_levels * draws, 1, 1, 1),
        num_levels=num_levels,
        gamma_0=gamma_0,
        gamma_1=torch.tensor(12.0, dtype=torch.float64),
        dequantisation=dequantisation,
        predict_noise=predict_noise,
        solve=dopri5(1e-6),
    )
    edges = alpha(gamma_0) * torch.linspace(-1, 1, num_levels + 1, dtype=torch.float64)
    expected = torch.special.ndtr(edges / scale).diff()
    reached = importance_weighted(weights.reshape(num_levels, draws).T).exp()
    torch.testing.assert_close(reached, expected, rtol=2e-3, atol=0.0)
    assert reached.sum().item() == pytest.approx(1, abs=5e-3)


def test_importance_weighting_includes_the_logarithm_of_the_draws() -> None:
    same = torch.full((7, 2), -3.0)
    torch.testing.assert_close(importance_weighted(same), same[0])
    mixed = torch.tensor([[-1.0], [-5.0]])
    assert importance_weighted(mixed).item() == pytest.approx(math.log((math.exp(-1) + math.exp(-5)) / 2))
    assert importance_weighted(mixed) > mixed.mean()


@pytest.mark.slow
def test_results_do_not_depend_on_the_other_images(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    for many, few in zip(
        dequantisation_draws(0, range(5), 2, 3, (1, 8, 8)),
        dequantisation_draws(0, range(2), 2, 3, (1, 8, 8)),
        strict=True,
    ):
        assert np.array_equal(many[..., :4, :, :, :], few)
    settings = {"seed": 0, "num_draws": 2, "num_probes": 1, "dequantisation": "truncated_normal", "solve": dopri5(1e-3)}
    # Steps are chosen for a batch as a whole, so that the results differ by the solver's error.
    model = tiny_model(fourier_exponents=[]).double()
    many = evaluate_ode(model, digits[:5], batch_size=100, **settings)  # type: ignore[arg-type]
    few = evaluate_ode(model, digits[:2], batch_size=1, **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(many[:2], few, atol=5e-3)


@pytest.mark.parametrize("num_probes", [0, 1])
@pytest.mark.slow
def test_the_figure_of_an_untrained_model_is_that_of_its_closed_form(
    num_probes: int, tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    """With eps_hat = z one probe is exact, too."""
    model = tiny_model(image_shape=(1, 2, 2)).double()
    torch.nn.init.zeros_(model.network.conv_out.weight)
    torch.nn.init.zeros_(model.network.conv_out.bias)
    pixels, settings = digits[:2, :, 3:5, 3:5], {"seed": 0, "num_draws": 2, "dequantisation": "uniform"}
    ours = evaluate_ode(model, pixels, num_probes=num_probes, batch_size=4, solve=dopri5(1e-3), **settings)  # type: ignore[arg-type]
    gamma_0, gamma_1 = model.schedule.gamma_0.detach(), model.schedule.gamma_1.detach()
    draws, _ = dequantisation_draws(0, range(2), 2, 1, (1, 2, 2))
    x = pixels_to_x(torch.from_numpy(pixels), 17, torch.float64).repeat_interleave(2, 0)
    z_0 = alpha(gamma_0) * (x + (2 * torch.from_numpy(draws) - 1) / 17)
    gammas = torch.linspace(gamma_0.item(), gamma_1.item(), 20_001, dtype=torch.float64)
    growth = torch.trapezoid(0.5 * sigma(gammas) * (1 - sigma(gammas)), gammas)
    log_p = -0.5 * ((z_0 * growth.exp()).square() + math.log(2 * math.pi)).flatten(1).sum(1) + 4 * growth
    log_weights = (log_p + 4 * torch.log(2 * alpha(gamma_0) / 17)).reshape(2, 2)
    expected = bits_per_dim(math.log(2) - torch.logsumexp(log_weights, 1), 4)
    np.testing.assert_allclose(ours, expected, atol=2e-3)


@pytest.mark.slow
def test_the_gradients_and_the_precision_of_the_caller_do_not_reach_the_network(
    tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    settings = {"seed": 0, "num_draws": 1, "num_probes": 1, "batch_size": 4, "dequantisation": "uniform"}
    model = tiny_model(fourier_exponents=[])
    expected = evaluate_ode(model, digits[:2], solve=dopri5(1e-2), **settings)  # type: ignore[arg-type]
    for mode in (torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)):
        with mode():
            found = evaluate_ode(model, digits[:2], solve=dopri5(1e-2), **settings)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_the_figure_of_16_bits_does_not_hang_on_float32(tiny_model: Callable[..., VDM]) -> None:
    """In float32 the steps of the solver would be those of the rounding of z."""
    settings: dict[str, Any] = {"seed": 0, "num_draws": 1, "num_probes": 1, "batch_size": 4}
    changes = {"num_levels": 2**16, "gamma_0": -24.39, "image_shape": (1, 2, 2), "fourier_exponents": []}
    pixels = np.random.default_rng(0).integers(0, 2**16, (2, 1, 2, 2), dtype=np.uint16)
    model = tiny_model(**changes)
    found, exact = (
        evaluate_ode(each, pixels, solve=dopri5(1e-4), dequantisation="truncated_normal", **settings)
        for each in (model, tiny_model(**changes).double())
    )
    np.testing.assert_array_equal(found, exact)
    assert next(model.parameters()).dtype == torch.float32


def test_one_backward_pass_serves_several_probes_and_changes_nothing(
    tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passes = tiny_model(fourier_exponents=[]).double().requires_grad_(False), list[int]()
    plain, z = torch.autograd.grad, torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def counted(*given: Any, **options: Any) -> Any:
        passes[-1] += 1
        return plain(*given, **options)

    def one_step(derivative: Derivative, start: OdeState, times: Tensor) -> OdeState:
        slope, growth = derivative(times[0], start)
        return start[0] + slope, start[1] + growth

    monkeypatch.setattr(torch.autograd, "grad", counted)
    found = []
    for at_once in (1, 5, 64):
        passes.append(0)
        options: dict[str, Any] = {"predict_noise": model.network, "solve": one_step, "probes_at_once": at_once}
        found.append(log_density(z, GAMMA_0, GAMMA_1, basis_probes(z), **options))
    assert passes == [64, 13, 1]
    torch.testing.assert_close(found[1:], [found[0]] * 2)
