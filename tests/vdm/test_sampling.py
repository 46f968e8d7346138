"""Samplers: their order of convergence, their noise, and filling in missing pixels."""

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch

from vdm import evaluation, sampling
from vdm.diffusion import reverse_step
from vdm.model import VDM
from vdm.samplers import SAMPLERS, SamplerName, sampler_name
from vdm.sampling import Solver, Step, fill_in, noise_levels, sample, trajectory
from vdm.schedule import alpha, sigma

MEAN, VARIANCE = 0.2, 0.04
SOLVERS = [(sampler.order, sampler.eta) for sampler in SAMPLERS.values()]


def test_every_name_of_a_sampler_has_its_settings() -> None:
    assert set(get_args(SamplerName)) == SAMPLERS.keys()
    names = {(1, 1.0): "ancestral", (1, 0.0): "ddim", (2, 0.0): "dpm-solver++", (2, 1.0): "sde-dpm-solver++"}
    assert {settings: sampler_name(*settings) for settings in names} == names
    assert sampler_name(1, 0.5) is None


def solver(**changes: Any) -> Solver:
    return Solver(**{"num_timesteps": 5, **changes})


def gaussian_model(tiny_model: Callable[..., VDM], **changes: Any) -> VDM:
    """Return a model with the exact predictor for independent pixels x ~ N(MEAN, VARIANCE)."""

    def exact_noise(z_t: torch.Tensor, gamma_t: torch.Tensor) -> torch.Tensor:
        gamma = gamma_t.reshape(-1, 1, 1, 1)
        signal = alpha(gamma) ** 2 * VARIANCE + sigma(gamma) ** 2
        return sigma(gamma) / signal * (z_t - alpha(gamma) * MEAN)

    model = tiny_model(num_levels=256, gamma_0=-13.3, **changes)
    model.network.forward = exact_noise  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(("num_levels", "dtype"), [(17, torch.uint8), (256, torch.uint8), (1024, torch.uint16)])
def test_samples_are_pixels(num_levels: int, dtype: torch.dtype, tiny_model: Callable[..., VDM]) -> None:
    pixels = sample(tiny_model(num_levels=num_levels, image_shape=(3, 5, 7)), range(3), solver(), seed=0)
    assert pixels.shape == (3, 3, 5, 7)
    assert pixels.dtype == dtype
    assert pixels.int().max().item() < num_levels


@pytest.mark.parametrize(
    ("order", "eta", "precision"), [*((*each, "float32") for each in SOLVERS), (2, 1.0, "bfloat16")]
)
def test_an_image_depends_on_its_index_and_the_seed_alone(
    order: int, eta: float, precision: str, tiny_model: Callable[..., VDM]
) -> None:
    """In float32 convolutions of other batch sizes may round differently, so a pixel may move to the next level."""
    model, settings = tiny_model(), solver(order=order, eta=eta, precision=precision)
    images = sample(model, range(20), settings, seed=1)
    parts = [sample(model, part, settings, seed=1) for part in (range(9), range(9, 20))]
    for again, expected in ((torch.cat(parts), images), (sample(model, [7, 2], settings, seed=1), images[[7, 2]])):
        moved = (again.int() - expected.int()).abs()
        assert moved.max() <= (precision == "float32")
        assert moved.float().mean() < 0.002
    assert not torch.equal(sample(model, [7, 2], settings, seed=2), images[[7, 2]])
    assert len(images.unique(dim=0)) == 20


@pytest.mark.parametrize(("order", "eta"), SOLVERS)
def test_the_exact_predictor_samples_the_data_distribution(
    order: int, eta: float, tiny_model: Callable[..., VDM]
) -> None:
    model = gaussian_model(tiny_model)
    pixels = sample(model, range(400), solver(num_timesteps=200, order=order, eta=eta, clip=False), seed=0).double()
    x = 2 * (pixels + 0.5) / 256 - 1
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * (VARIANCE / x.numel()) ** 0.5)
    # 4 standard errors of a variance, plus 1% for 200 steps and 256 levels.
    assert x.var().item() == pytest.approx(VARIANCE, rel=4 * (2 / x.numel()) ** 0.5 + 0.01)


@pytest.mark.parametrize("grid", ["gamma", "t"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_error_without_noise_falls_with_the_order(order: int, grid: str, tiny_model: Callable[..., VDM]) -> None:
    """The exact path of Gaussian data keeps a pixel's distance from the mean in standard deviations."""
    model = gaussian_model(tiny_model, schedule="learned_monotone").double()

    def standardised(z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return (z - alpha(gamma) * MEAN) / (alpha(gamma) ** 2 * VARIANCE + sigma(gamma) ** 2).sqrt()

    def error(num_timesteps: int) -> float:
        settings = solver(num_timesteps=num_timesteps, order=order, eta=0.0, clip=False, grid=grid)
        steps = list(trajectory(model, range(4), settings, seed=0))
        gammas = noise_levels(model.schedule, settings).detach()
        first, last = standardised(steps[0].z, gammas[1]), standardised(steps[-1].z, gammas[-1])
        # Leave out the first step, which is of first order, and shorter with more steps.
        assert len(steps) == num_timesteps
        return (last - first).abs().max().item()

    assert error(100) / error(200) == pytest.approx(2**order, rel=0.15)


def bent_model(tiny_model: Callable[..., VDM]) -> VDM:
    """Return a model whose schedule is far from a straight line."""
    model = tiny_model(schedule="learned_monotone")
    with torch.no_grad():
        model.schedule.bias.add_(3)  # type: ignore[union-attr, operator]
        model.schedule.outer.mul_(500)  # type: ignore[union-attr, operator]
    return model


def test_steps_of_unequal_length_extrapolate_to_their_middle(tiny_model: Callable[..., VDM]) -> None:
    """The second order is exact for an x_hat that is linear in gamma, here gamma itself."""
    model = bent_model(tiny_model).double()

    def gives_gamma(z_t: torch.Tensor, gamma_t: torch.Tensor) -> torch.Tensor:
        gamma = gamma_t.reshape(-1, 1, 1, 1)
        return (z_t - alpha(gamma) * gamma) / sigma(gamma)

    model.network.forward = gives_gamma  # type: ignore[assignment]
    settings = solver(order=2, eta=0.0, grid="t", clip=False)
    z = [step.z for step in trajectory(model, range(2), settings, seed=0)]
    gammas = noise_levels(model.schedule, settings).detach()
    for i in (1, 2, 3):
        middle = (gammas[i] + gammas[i + 1]).expand_as(z[0]) / 2
        expected = reverse_step(z[i - 1], middle, torch.zeros_like(middle), gammas[i + 1], gammas[i], eta=0.0)
        torch.testing.assert_close(z[i], expected)


def test_the_noise_levels_run_from_noise_to_data(tiny_model: Callable[..., VDM]) -> None:
    model = bent_model(tiny_model)
    levels = noise_levels(model.schedule, solver(num_timesteps=4)).detach()
    np.testing.assert_allclose(levels, [5.0, 2.0, -1.0, -4.0, -7.0], atol=1e-5)
    bent = noise_levels(model.schedule, solver(num_timesteps=4, grid="t")).detach()
    np.testing.assert_allclose(bent, model.schedule(torch.tensor([1, 0.75, 0.5, 0.25, 0])).detach(), atol=1e-5)
    assert (bent - levels).abs().max() > 0.1


def test_equal_noise_levels_are_left_out(tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model(schedule="learned_monotone")
    with torch.no_grad():  # a schedule that rises in the middle alone
        model.schedule.linear.zero_()  # type: ignore[union-attr, operator]
        model.schedule.inner.fill_(1e4)  # type: ignore[union-attr, operator]
        model.schedule.bias.zero_()  # type: ignore[union-attr, operator]
    pixels = sample(model, range(2), solver(num_timesteps=50, order=2, eta=0.0, grid="t"), seed=0)
    assert pixels.unique().numel() > 2


@pytest.mark.parametrize("span", [0.0, 1e-7])
@pytest.mark.parametrize("grid", ["gamma", "t"])
def test_a_schedule_that_stands_still_is_an_error(span: float, grid: str, tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.schedule.span.fill_(span)  # type: ignore[union-attr, operator]
    with pytest.raises(ArithmeticError, match="the noise schedule does not increase"):
        sample(model, range(2), solver(grid=grid), seed=0)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("weight", [1e38, math.nan])
def test_a_model_that_predicts_no_numbers_is_an_error(
    weight: float, clip: bool, tiny_model: Callable[..., VDM]
) -> None:
    """The weights may be finite, and clipping hides neither infinity nor NaN."""
    model = tiny_model()
    torch.nn.init.constant_(model.network.conv_out.weight, weight)
    with pytest.raises(ArithmeticError, match="the network's output is not finite"):
        sample(model, range(2), solver(clip=clip), seed=0)
    missing = torch.ones(8, 8, dtype=torch.bool)
    known = torch.zeros(1, 8, 8, dtype=torch.int64)
    with pytest.raises(ArithmeticError, match="the network's output is not finite"):
        list(fill_in(model, known, missing, range(2), solver(clip=clip), seed=0, repeats=1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_alone_computes_in_the_chosen_precision(precision: str, tiny_model: Callable[..., VDM]) -> None:
    model, found = tiny_model(), set[torch.dtype]()
    model.network.middle_1.conv_1.register_forward_hook(lambda *given: found.add(given[-1].dtype))  # type: ignore[union-attr]
    *_, last = trajectory(model, range(2), solver(precision=precision), seed=0)
    assert found == {getattr(torch, precision)}
    assert last.z.dtype == torch.float32


def filled(model: VDM, known: torch.Tensor, missing: torch.Tensor, **changes: Any) -> Step:
    settings = solver(num_timesteps=100, clip=False)
    *_, last = fill_in(model, known, missing, range(300), settings, seed=0, **{"repeats": 3, **changes})
    return last


def test_an_image_that_is_filled_in_depends_on_its_index_and_the_seed(tiny_model: Callable[..., VDM]) -> None:
    model, known = tiny_model().double(), torch.zeros(1, 8, 8, dtype=torch.uint8)
    missing = torch.ones(8, 8, dtype=torch.bool)

    def last(indices: list[int], seed: int) -> torch.Tensor:
        *_, step = fill_in(model, known, missing, indices, solver(), seed=seed, repeats=2)
        return step.z

    images = last([0, 1, 2], 0)
    torch.testing.assert_close(last([2], 0), images[2:])
    assert not torch.allclose(last([2], 1), images[2:])
    assert not torch.allclose(images[1], images[2])


def test_filling_in_keeps_known_pixels_and_draws_the_others(tiny_model: Callable[..., VDM]) -> None:
    """Pixels that are independent have the same distribution, whatever the known pixels are."""
    model = gaussian_model(tiny_model)
    known = torch.full((1, 8, 8), 200, dtype=torch.uint8)
    missing = torch.zeros(8, 8, dtype=torch.bool)
    missing[2:5, 3:] = True
    z = filled(model, known, missing).z
    x = 2 * 200.5 / 256 - 1
    assert (z[..., ~missing] - x).abs().max() < 6 * sigma(model.schedule.gamma_0)
    drawn = z[..., missing].double()
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * (VARIANCE / drawn.numel()) ** 0.5)
    assert drawn.var().item() == pytest.approx(VARIANCE, rel=4 * (2 / drawn.numel()) ** 0.5 + 0.02)


@pytest.mark.slow
def test_repeated_steps_make_missing_pixels_agree_with_known_ones(tiny_model: Callable[..., VDM]) -> None:
    """All pixels of an image are one number, N(0, 0.25), so a missing one must equal the known ones."""
    model = tiny_model(image_shape=(1, 1, 2), num_levels=256, gamma_0=-13.3)

    def exact_noise(z_t: torch.Tensor, gamma_t: torch.Tensor) -> torch.Tensor:
        gamma = gamma_t.reshape(-1, 1, 1, 1)
        gain = alpha(gamma) * 0.25 / (2 * alpha(gamma) ** 2 * 0.25 + sigma(gamma) ** 2)
        return (z_t - alpha(gamma) * gain * z_t.sum(-1, keepdim=True)) / sigma(gamma)

    model.network.forward = exact_noise  # type: ignore[assignment]
    known, missing = torch.full((1, 1, 2), 200, dtype=torch.uint8), torch.tensor([[False, True]])

    def disagreement(repeats: int) -> float:
        return (filled(model, known, missing, repeats=repeats).z.diff().square().mean()).item()

    once, often = disagreement(1), disagreement(10)
    assert often < once / 2


def test_the_first_and_the_last_step_are_of_first_order(tiny_model: Callable[..., VDM]) -> None:
    first, second = (
        list(trajectory(tiny_model(), range(2), solver(num_timesteps=2, order=order, eta=0.0), seed=0))
        for order in (1, 2)
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.z, other.z)


def test_samples_are_of_other_noise_than_an_evaluation_with_the_same_seed(tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model()
    drawn = next(sampling.image_noise(model, range(4), 3, 1)).numpy()
    assert not np.isin(drawn, evaluation.image_noise(3, range(4), 1, model.image_shape)).any()
