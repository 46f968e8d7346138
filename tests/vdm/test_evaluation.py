"""The evaluated bound: unbiased, the same for any batch size, with a correct standard error."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from flows.evaluation.ode import dopri5
from vdm.discretization import pixels_to_x
from vdm.evaluation import (
    BoundSettings,
    Evaluation,
    evaluate,
    image_noise,
    image_terms,
    paired_difference,
    stratified_times,
    stratified_variance,
)
from vdm.grids import Grid
from vdm.model import VDM
from vdm.ode import evaluate_ode
from vdm.sampling import Solver, sample
from vdm.vlb import bits_per_dim, prior_loss, reconstruction_loss

SETTINGS = BoundSettings(times_per_image=4, batch_size=64, seed=3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda pixels: pixels / 16, TypeError, "pixels must be levels of an integer type, got float64"),
        (lambda pixels: pixels.astype(int) - 1, ValueError, "pixels must be 0 to 16, got -1 to 15"),
        (lambda pixels: pixels + 1, ValueError, "pixels must be 0 to 16, got 1 to 17"),
        (lambda pixels: pixels[..., :1], ValueError, r"images of the model are \(1, 8, 8\), got \(1, 8, 1\)"),
    ],
)
def test_pixels_that_are_no_images_of_the_model_are_refused(
    change: Callable[[np.ndarray], np.ndarray],
    error: type[Exception],
    message: str,
    tiny_model: Callable[..., VDM],
    digits: np.ndarray,
) -> None:
    """They would give a figure that looks like one."""
    pixels = change(digits[:4])
    with pytest.raises(error, match=message):
        evaluate(tiny_model(), pixels, SETTINGS)
    ode = {"seed": 0, "num_draws": 1, "num_probes": 1, "dequantisation": "uniform", "batch_size": 4}
    with pytest.raises(error, match=message):
        evaluate_ode(tiny_model(), pixels, solve=dopri5(1e-3), **ode)  # type: ignore[arg-type]


def test_dropout_in_training_mode_is_refused(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """A new model is in training mode."""
    model = tiny_model(dropout=0.1).train()
    with pytest.raises(ValueError, match=r"in training mode, with dropout; call its method eval\(\) first"):
        evaluate(model, digits[:2], SETTINGS)
    with pytest.raises(ValueError, match="in training mode"):
        sample(model, range(2), Solver(2), seed=0)
    assert np.isfinite(evaluate(tiny_model().train(), digits[:2], SETTINGS).bpd).all()


def test_float64_results_agree_for_any_batch_size(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """Batches of one and of three, one batch, and the model itself at the same times and noise agree to 1e-8."""
    model = tiny_model(schedule="learned_monotone").double()
    one, three, all_at_once = (evaluate(model, digits[:9], replace(SETTINGS, batch_size=size)) for size in (1, 3, 1000))
    np.testing.assert_allclose(one.bpd, all_at_once.bpd, rtol=1e-8)
    np.testing.assert_allclose(three.diffusion_draws, all_at_once.diffusion_draws, rtol=1e-8)
    t = torch.from_numpy(stratified_times(3, range(9), 4)).flatten()
    eps = torch.from_numpy(image_noise(3, range(9), 4, (1, 8, 8))).double()
    pixels = torch.from_numpy(digits[:9]).repeat_interleave(4, 0)
    direct = bits_per_dim(model(pixels, eps, t).total, model.num_dims).reshape(9, 4).mean(1)
    np.testing.assert_allclose(one.bpd, direct.detach().numpy(), rtol=1e-8)


@pytest.mark.parametrize(
    ("num_images", "count", "expected"),
    [
        (10, 1, [(0, 10)]),
        (10, 2, [(0, 6), (6, 10)]),  # whole batches of three images
        (10, 4, [(0, 3), (3, 6), (6, 9), (9, 10)]),
        (10, 9, [(0, 3), (3, 6), (6, 9), (9, 10)]),  # not more shares than batches
    ],
)
def test_shares_are_of_whole_batches(num_images: int, count: int, expected: list[tuple[int, int]]) -> None:
    found = replace(SETTINGS, batch_size=13).shares(num_images, count)
    assert [(share.start, share.stop) for share in found] == expected


def test_the_seed_alone_decides_times_and_noise() -> None:
    assert np.array_equal(stratified_times(1, range(5), 8), stratified_times(1, range(9), 8)[:5])
    assert np.array_equal(image_noise(1, range(3, 5), 2, (1, 2, 2)), image_noise(1, range(9), 2, (1, 2, 2))[6:10])
    assert not np.array_equal(stratified_times(1, range(5), 8), stratified_times(2, range(5), 8))
    for first, second in ((1, 2), (2**63, 2**63 + 1), (0, 2**64 - 1)):
        one, two = (image_noise(seed, range(2), 1, (1, 2, 2)) for seed in (first, second))
        assert not np.array_equal(one, two)


def test_no_batch_is_larger_than_asked_for(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """An image with more times than a batch has would need the memory of all."""
    model, sizes = tiny_model(classes=2), list[int]()
    model.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    image_terms(model, digits[:2], range(2), replace(SETTINGS, batch_size=3), labels=np.array([0, 1]))
    assert sizes == [3, 1, 3, 1]


def test_an_image_alone_has_the_same_terms_at_any_place(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    model = tiny_model(schedule="learned_monotone").double()
    (first,) = image_terms(model, digits[3:4], range(1), SETTINGS).transpose(1, 0, 2)
    third = image_terms(model, digits[1:5], range(4), replace(SETTINGS, alone=True))[:, 2]
    np.testing.assert_allclose(third, first, rtol=1e-8)


def test_each_image_has_one_time_in_every_stratum() -> None:
    times = stratified_times(0, range(100), 8)
    assert np.array_equal(np.floor(times * 8), np.tile(np.arange(8), (100, 1)))
    # Together the images cover each stratum evenly too.
    places = np.sort((times * 8)[:, 0])
    assert np.diff(places).max() < 0.03


@pytest.mark.slow
def test_agrees_with_the_plain_average_of_the_bound(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """The average has independent uniform times and another noise, and is computed in one call of the model."""
    model, images = tiny_model(), digits[:4]
    ours = evaluate(model, images, replace(SETTINGS, times_per_image=128))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(images).repeat_interleave(512, 0)
    with torch.no_grad():
        t, eps = torch.rand(len(pixels), generator=generator), torch.randn(pixels.shape, generator=generator)
        plain = bits_per_dim(model(pixels, eps, t).total, model.num_dims).reshape(4, -1).double()
    error = (plain.std() / math.sqrt(plain.numel())).item()
    assert abs(plain.mean().item() - ours.bpd.mean()) < 4 * math.hypot(error, ours.monte_carlo_standard_error)


def test_standard_errors() -> None:
    diffusion = np.array([1.0, 2.0, 3.0, 6.0])
    # Two draws each, `diffusion` -+ 0.1: a variance of 0.01, and of 4/3 of that once the common trend is subtracted.
    draws = diffusion[:, None] + 0.1 * np.outer([1, -1, 1, -1], [1, -1])
    result = Evaluation(np.zeros(4), np.zeros(4), draws)
    assert result.standard_error == pytest.approx(diffusion.std(ddof=1) / 2)
    assert result.monte_carlo_standard_error == pytest.approx(math.sqrt(4 / 3 * 0.01) / 2)
    assert math.isnan(Evaluation(np.zeros(1), np.zeros(1), np.ones((1, 2))).standard_error)


def test_the_noise_levels_average_to_the_diffusion_term() -> None:
    draws = np.random.default_rng(0).gamma(2, size=(30, 4))
    result = Evaluation(np.zeros(30), np.zeros(30), draws)
    levels = result.noise_levels(seed=0, num_timesteps=None)
    np.testing.assert_allclose(levels.t, [0.125, 0.375, 0.625, 0.875])
    assert levels.diffusion.mean() == pytest.approx(result.diffusion.mean())
    np.testing.assert_allclose(levels.standard_error, draws.std(axis=0, ddof=1) / math.sqrt(30))


def test_two_times_per_image_show_the_loss_at_many_noise_levels() -> None:
    """Draws that are their own time lie in their level, and a level has the draws of some 20 images."""
    draws = stratified_times(7, range(320), 2)
    levels = Evaluation(np.zeros(320), np.zeros(320), draws).noise_levels(seed=7, num_timesteps=None)
    np.testing.assert_allclose(levels.t, (np.arange(32) + 0.5) / 32)
    np.testing.assert_allclose(levels.diffusion, levels.t, atol=1 / 64)
    assert levels.diffusion.mean() == pytest.approx(draws.mean(), rel=0.01)
    np.testing.assert_allclose(levels.standard_error, 1 / 32 / math.sqrt(12) / math.sqrt(20), rtol=0.15)


def test_a_model_of_two_steps_has_two_noise_levels(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """With eps_hat = 0 the loss at each is the weight of its step, expm1(gamma_t - gamma_s) / ln 2 bits/dim."""
    model = tiny_model(schedule="learned_monotone")
    model.network.forward = lambda z_t, gamma_t: torch.zeros_like(z_t)  # type: ignore[assignment]
    with torch.no_grad():
        model.schedule.bias.add_(3)  # type: ignore[union-attr, operator]
        model.schedule.outer.mul_(500)  # type: ignore[union-attr, operator]
        gammas = model.schedule(torch.tensor([0, 0.5, 1])).double().numpy()
    result = evaluate(model, digits[:50], replace(SETTINGS, times_per_image=8, grid=Grid(2)))
    levels = result.noise_levels(seed=3, num_timesteps=2)
    assert levels.t.tolist() == [0.5, 1]
    np.testing.assert_allclose(levels.diffusion, np.expm1(np.diff(gammas)) / math.log(2), rtol=0.1)
    assert levels.diffusion.mean() == pytest.approx(result.diffusion.mean())
    assert (levels.standard_error > 0).all()
    assert (levels.standard_error < 0.05 * levels.diffusion).all()


@pytest.mark.parametrize("num_timesteps", [1, 3, 7, 8, 9, 1000])
def test_the_noise_levels_of_steps_are_those_of_the_draws(num_timesteps: int) -> None:
    """Draws that are their own time have the mean t at the level t, whether a level is a time or a stratum."""
    times = stratified_times(5, range(60), 8)
    draws = np.ceil(times * num_timesteps) / num_timesteps
    levels = Evaluation(np.zeros(60), np.zeros(60), draws).noise_levels(seed=5, num_timesteps=num_timesteps)
    assert len(levels.t) == min(num_timesteps, 8)
    np.testing.assert_allclose(levels.diffusion, levels.t)
    assert levels.t[-1] == pytest.approx(1, abs=1 / 8)
    assert (levels.standard_error >= 0).all()


def test_the_paired_difference_has_the_interval_of_the_mean_of_three() -> None:
    """Common terms of both evaluations cancel; 95% of Student's t of 2 degrees of freedom lie within 4.30265."""
    common, change = np.array([1.0, 5.0, 9.0]), np.array([0.1, 0.2, 0.3])
    paired = paired_difference(common, common + change, confidence=0.95)
    error = 0.1 / math.sqrt(3)
    assert paired.difference == pytest.approx(0.2)
    assert paired.standard_error == pytest.approx(error)
    assert paired.interval == pytest.approx((0.2 - 4.30265 * error, 0.2 + 4.30265 * error), rel=1e-5)
    assert (paired.confidence, paired.num_images) == (0.95, 3)


def test_the_interval_is_longer_on_the_side_of_the_longer_tail() -> None:
    """The skewness is scipy's; equal differences have none."""
    tail = np.random.default_rng(0).lognormal(size=30)
    error, quantile = tail.std(ddof=1) / math.sqrt(30), stats.t.ppf(0.975, 29)
    more = 4 * stats.skew(tail, bias=False) * (1 + 2 * quantile**2) / (6 * math.sqrt(30))
    right, left = (paired_difference(np.zeros(30), sign * tail, confidence=0.95).interval for sign in (1, -1))
    ends = tail.mean() - quantile * error, tail.mean() + (quantile + more) * error
    assert right == pytest.approx(ends)
    assert left == pytest.approx((-ends[1], -ends[0]))
    assert more > 1
    assert paired_difference(np.zeros(30), np.full(30, 0.25), confidence=0.95).interval == (0.25, 0.25)


@pytest.mark.parametrize(
    ("draw", "most", "power"),
    [
        (lambda rng, shape: rng.normal(size=shape), 0.025, 0.8),
        (lambda rng, shape: (rng.lognormal(size=shape) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e), 0.035, 0.4),
    ],
    ids=["normal", "lognormal"],
)
def test_an_equal_model_seldom_seems_better(
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray], most: float, power: float
) -> None:
    """Of 4000 comparisons by 30 images, Student's t alone would be wrong in 0.12 if the differences are lognormal.

    The rates are known to 0.003.  By how much the better model is better, Student's t alone finds in 0.88.
    """
    differences = draw(np.random.default_rng(0), (4000, 30))
    better = [
        np.mean([paired_difference(np.zeros(30), row - less, confidence=0.95).interval[1] < 0 for row in differences])
        for less in (0, 3.24 / math.sqrt(30))
    ]
    assert better[0] < most
    assert better[1] > power


@pytest.mark.slow
@pytest.mark.parametrize("times_per_image", [2, 8])
def test_the_monte_carlo_error_matches_repeated_evaluations(
    times_per_image: int, digits: np.ndarray, tiny_model: Callable[..., VDM]
) -> None:
    model, settings = tiny_model(), replace(SETTINGS, times_per_image=times_per_image)
    runs = [evaluate(model, digits[:16], replace(settings, seed=seed)) for seed in range(40)]
    spread = np.std([run.bpd.mean() for run in runs], ddof=1)
    claimed = np.mean([run.monte_carlo_standard_error for run in runs])
    # The spread of forty repeats is known to 11%.  The estimate may be too large, as it ignores some stratification.
    assert 0.75 * spread < claimed < 1.6 * spread


def test_the_monte_carlo_error_is_at_most_the_whole_error() -> None:
    """The images have other trends over time, which two draws do not tell from noise."""
    draws = np.array([[0.0, 2.0], [2.0, 0.1], [0.2, 2.1], [2.2, 0.0]])
    result = Evaluation(np.zeros(4), np.zeros(4), draws)
    assert math.sqrt(stratified_variance(draws).sum()) / 4 > result.standard_error
    assert result.monte_carlo_standard_error == result.standard_error


def test_noise_at_one_end_of_time_is_in_the_monte_carlo_error() -> None:
    deviations = np.exp(-6 * (np.arange(8) + 0.5) / 8)
    draws = np.random.default_rng(0).normal(0, deviations, (20_000, 8))
    ratio = np.sqrt(stratified_variance(draws).mean() / np.square(deviations / 8).sum())
    assert 0.9 < ratio < 1.1


def test_every_term_has_its_name(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    model, pixels = tiny_model(), torch.from_numpy(digits[:5])
    found = evaluate(model, digits[:5], SETTINGS)
    prior = prior_loss(pixels_to_x(pixels, 17), model.schedule.gamma_1)
    reconstruction = reconstruction_loss(pixels, model.schedule.gamma_0, 17)
    for values, nats in ((found.prior, prior), (found.reconstruction, reconstruction)):
        np.testing.assert_allclose(values, bits_per_dim(nats, 64).detach(), rtol=1e-5)
