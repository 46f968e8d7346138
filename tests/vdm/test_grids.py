"""Grids and variances: bounds of a normalised model, the paper's at u = 1, exact for Gaussian data, and the best."""

import math
from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdm.codec import Codec
from vdm.diffusion import denoise, diffuse, per_image, reverse_step
from vdm.discretization import pixels_to_x
from vdm.evaluation import BoundSettings, evaluate, image_noise
from vdm.fitted_grids import ErrorCurve, Variances, best_ends, error_curve, fit_grid, fit_variances, step_costs
from vdm.grids import LARGEST_VARIANCE, Grid, even_in_gamma
from vdm.model import VDM
from vdm.sampling import Solver, fill_in, noise_levels, sample, trajectory
from vdm.schedule import LinearSchedule, alpha, sigma
from vdm.vlb import PredictNoise, finite_diffusion_loss, own_variance_loss, prior_loss, reconstruction_loss

DATA_VARIANCE = 0.3
SCHEDULE = LinearSchedule(-7.0, 5.0, learned=False).double()
KINDS: list[Variances] = ["paper", "step", "dimension"]


def exact_noise(z_t: Tensor, gamma_t: Tensor) -> Tensor:
    """Return E[eps | z_t] for x ~ N(0, DATA_VARIANCE I)."""
    gamma = per_image(gamma_t, z_t)
    return sigma(gamma) / (alpha(gamma) ** 2 * DATA_VARIANCE + sigma(gamma) ** 2) * z_t


def exact_error(gamma: np.ndarray) -> np.ndarray:
    """Return E (eps - eps_hat)^2 of that predictor."""
    signal = DATA_VARIANCE * np.exp(-gamma)
    return np.asarray(signal / (1 + signal))


def gaussian_curve(levels: int = 160, num_images: int = 10**9) -> ErrorCurve:
    errors = exact_error(np.linspace(-7, 5, levels + 1))
    return ErrorCurve(errors[:, None, None, None] * np.ones((1, 2, 2)), 12.0, num_images)


def random_curve(levels: int, num_images: int = 30) -> ErrorCurve:
    return ErrorCurve(np.random.default_rng(0).gamma(1, 0.2, (levels + 1, 1, 2, 2)), 9.0, num_images)


def information() -> float:
    """Return I(x; z_0) - I(x; z_1) in nats of a dimension."""
    at_0, at_1 = (0.5 * math.log1p(DATA_VARIANCE * math.exp(-gamma)) for gamma in (-7, 5))
    return at_0 - at_1


# --- the terms ---


@pytest.mark.parametrize("each_dimension", [False, True])
def test_a_term_is_the_kl_divergence_from_the_step_that_samples_take(each_dimension: bool) -> None:
    torch.manual_seed(0)
    x, eps = torch.rand(3, 2, 2, 2, dtype=torch.float64) * 2 - 1, torch.randn(3, 2, 2, 2, dtype=torch.float64)
    gamma_s, gamma_t = torch.tensor([[-6.0, -1.0, 2.0], [-5.0, 3.0, 2.5]], dtype=torch.float64)
    u = 1 + torch.rand(3, 2, 2, 2, dtype=torch.float64) * 3
    u = u if each_dimension else u[:, 0, 0, 0]
    z_t, none = diffuse(x, gamma_t, eps), torch.zeros_like(x)
    x_hat = denoise(z_t, exact_noise(z_t, gamma_t), gamma_t)
    means = [reverse_step(z_t, known, none, gamma_s, gamma_t) for known in (x, x_hat)]
    width = reverse_step(none, none, torch.ones_like(x), gamma_s, gamma_t)
    factor = u if each_dimension else per_image(u, x)
    q, p = Normal(means[0], width), Normal(means[1], width * factor.sqrt())
    expected = 7 * kl_divergence(q, p).flatten(1).sum(1)
    found = own_variance_loss(x, eps, gamma_s, gamma_t, u, 7, exact_noise)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["fixed_linear", "learned_monotone"])
@pytest.mark.parametrize("num_timesteps", [1, 7, 50])
def test_the_even_grid_is_the_papers_to_the_bit(
    kind: str, num_timesteps: int, tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    model, grid = tiny_model(schedule=kind), Grid(num_timesteps)
    pixels, t = torch.from_numpy(digits[:40]), torch.rand(40, dtype=torch.float64)
    eps, x = torch.randn(40, 1, 8, 8), pixels_to_x(pixels, 17)
    ends = (torch.floor(t * num_timesteps) + 1) / num_timesteps
    gammas = model.schedule(ends - 1 / num_timesteps), model.schedule(ends)
    with torch.no_grad():
        expected = finite_diffusion_loss(x, eps, *gammas, num_timesteps, model.network)
        assert torch.equal(model(pixels, eps, t, grid=grid).diffusion, expected)
        ones = Grid(num_timesteps, variances=np.ones(num_timesteps))
        torch.testing.assert_close(model(pixels, eps, t, grid=ones).diffusion, expected, rtol=1e-6, atol=0)
    for named, same in (("t", grid), ("gamma", even_in_gamma(num_timesteps))):
        levels = [noise_levels(model.schedule, Solver(num_timesteps, grid=each)) for each in (named, same)]  # type: ignore[arg-type]
        assert torch.equal(*levels)
    drawn = [sample(model, range(3), Solver(num_timesteps, grid=each), seed=0) for each in ("t", grid, ones)]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def of_levels(z_t: Tensor, gamma_t: Tensor) -> Tensor:
    """Return E[eps | z_t] if all of four levels are equally likely."""
    gamma = per_image(gamma_t, z_t)
    x = pixels_to_x(torch.arange(4), 4, torch.float64)
    weights = torch.softmax(-0.5 * ((z_t[..., None] - alpha(gamma)[..., None] * x) / sigma(gamma)[..., None]) ** 2, -1)
    return (z_t - alpha(gamma) * (weights @ x)[..., :]) / sigma(gamma)


def wrong(z_t: Tensor, gamma_t: Tensor) -> Tensor:
    return 0.9 * of_levels(z_t, gamma_t) + 0.05 * torch.sin(3 * z_t)


def sum_of_likelihoods(grid: Grid, predict_noise: PredictNoise) -> float:
    """Return the sum over all images, of one pixel of four levels, of exp(-bound), by quadrature over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    eps = torch.from_numpy(nodes).reshape(-1, 1, 1, 1)
    total, count = 0.0, len(nodes)
    for level in range(4):
        pixels = torch.full((1, 1, 1, 1), level)
        x = pixels_to_x(pixels, 4, torch.float64)
        bound = prior_loss(x, SCHEDULE.gamma_1) + reconstruction_loss(pixels, SCHEDULE.gamma_0, 4)
        for step in range(grid.num_timesteps):
            t = torch.full((count,), (step + 0.5) / grid.num_timesteps, dtype=torch.float64)
            (gamma_s, gamma_t), u = grid.steps_at(SCHEDULE, t), grid.variance_at(t)
            u = torch.ones_like(t) if u is None else u
            terms = own_variance_loss(x.expand_as(eps), eps, gamma_s, gamma_t, u, 1, predict_noise)
            bound = bound + (terms @ torch.from_numpy(weights)) / weights.sum()
        total += math.exp(-float(bound))
    return total


def toy_curve(predict_noise: PredictNoise, levels: int = 40) -> ErrorCurve:
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    eps, errors = torch.from_numpy(nodes).reshape(-1, 1, 1, 1), []
    for gamma in torch.linspace(-7, 5, levels + 1, dtype=torch.float64):
        of_level = []
        for x in pixels_to_x(torch.arange(4), 4, torch.float64):
            gammas = gamma.expand(len(eps))
            eps_hat = predict_noise(diffuse(x.expand_as(eps), gammas, eps), gammas)
            of_level.append((eps - eps_hat).square().flatten().numpy() @ weights / weights.sum())
        errors.append(np.mean(of_level))
    return ErrorCurve(np.array(errors).reshape(-1, 1, 1, 1), 12.0, 4)


@pytest.mark.parametrize("num_timesteps", [1, 3, 10, 60])
@pytest.mark.parametrize("predict_noise", [of_levels, wrong])
def test_the_likelihoods_of_all_images_sum_to_at_most_one(num_timesteps: int, predict_noise: PredictNoise) -> None:
    """With the exact predictor and fitted variances the sum comes close to 1."""
    curve, random = toy_curve(predict_noise), np.random.default_rng(num_timesteps)
    uneven = np.concatenate([[0], np.sort(random.random(num_timesteps - 1)), [1]])
    grids = {
        "paper": Grid(num_timesteps),
        "uneven": Grid(num_timesteps, uneven, 1 + random.gamma(1, 3, num_timesteps)),
        "fitted variances": fit_variances(Grid(num_timesteps), curve, SCHEDULE, "step"),
    } | {f"best, {kind}": fit_grid(curve, num_timesteps, kind) for kind in KINDS}
    sums = {name: sum_of_likelihoods(grid, predict_noise) for name, grid in grids.items()}
    assert all(total <= 1 + 1e-9 for total in sums.values()), sums
    assert sums["best, step"] >= sums["paper"]
    if predict_noise is of_levels and num_timesteps == 60:
        assert sums["best, step"] > 0.95


# --- the fit ---


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 40])
@pytest.mark.parametrize("kind", ["step", "dimension"])
def test_gaussian_data_has_the_same_bound_in_any_number_of_steps(kind: Variances, num_timesteps: int) -> None:
    """p(z_s | z_t) is then exact, so the terms are I(x; z_s) - I(x; z_t), which add up to the continuous bound."""
    grid = fit_grid(gaussian_curve(), num_timesteps, kind)
    assert grid.variances is not None
    terms = 0.5 * np.log(grid.variances.reshape(num_timesteps, -1)).mean(1)
    assert terms.sum() == pytest.approx(information(), rel=1e-6)
    papers = fit_grid(gaussian_curve(), num_timesteps, "paper")
    assert papers.shares is not None
    gammas = -7 + 12 * papers.shares
    assert 0.5 * (np.expm1(np.diff(gammas)) * exact_error(gammas[1:])).sum() > 1.02 * information()


@pytest.mark.parametrize("kind", KINDS)
def test_many_steps_give_the_continuous_bound(kind: Variances) -> None:
    """Between the levels of the curve, too: T is far above their number."""
    found = []
    for num_timesteps in (60, 600, 6000):
        grid = fit_grid(gaussian_curve(), num_timesteps, kind)
        assert grid.shares is not None
        gammas = -7 + 12 * grid.shares
        rho = np.expm1(np.diff(gammas)) * exact_error(gammas[1:])
        u = np.ones(num_timesteps) if grid.variances is None else grid.variances.reshape(num_timesteps, -1)[:, 0]
        found.append(0.5 * (np.log(u) + (1 + rho) / u - 1).sum())
    assert found[2] == pytest.approx(information(), rel=2e-3)
    assert abs(found[2] - information()) <= abs(found[0] - information()) + 1e-9


def test_the_model_has_the_bound_that_the_curve_foretells(tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model(image_shape=(1, 2, 2), schedule="fixed_linear", num_levels=2**12).double()
    model.network.forward = exact_noise  # type: ignore[assignment]
    levels = np.random.default_rng(0).normal(0, math.sqrt(DATA_VARIANCE) * 2**11, (4000, 1, 2, 2)) + 2**11
    pixels = levels.clip(0, 2**12 - 1).astype(np.uint16)
    curve = error_curve(model, pixels[2000:], levels=20, seed=0, batch_size=42_000)
    kinds: list[Variances] = ["step", "dimension"]
    for grid in (fit_grid(curve, 4, kind) for kind in kinds):
        result = evaluate(model, pixels[:2000], BoundSettings(times_per_image=16, batch_size=32_000, seed=0, grid=grid))
        error = math.sqrt(2) * result.diffusion.std() / math.sqrt(2000)
        assert grid.variances is not None
        foretold = 0.5 * np.log2(grid.variances.reshape(4, -1)).mean(1).sum()
        assert abs(result.diffusion.mean() - foretold) < 4 * error
        assert error < 0.01 * foretold


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 8])
def test_the_ends_are_the_best_of_all(kind: Variances, num_timesteps: int) -> None:
    costs = step_costs(random_curve(4), 8, kind)

    def cost(ends: tuple[int, ...]) -> float:
        return float(sum(costs[s, t] for s, t in pairwise(ends)))

    every = [(0, *middle, 8) for middle in combinations(range(1, 8), num_timesteps - 1)]
    found = best_ends(costs, num_timesteps)
    assert cost(tuple(found)) == pytest.approx(min(map(cost, every)), rel=1e-12)
    assert (np.diff(found) > 0).all()


def test_a_fitted_variance_is_the_best_for_its_step() -> None:
    curve, grid = random_curve(12, num_images=10**9), fit_grid(random_curve(12, num_images=10**9), 3)
    assert grid.shares is not None
    assert grid.variances is not None
    ends = np.rint(12 * grid.shares).astype(int)
    rho = np.expm1(9.0 * np.diff(grid.shares))[:, None, None, None] * curve.errors[ends[1:]]

    def term(u: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(u) + (1 + rho) / u - 1)

    for factor in (0.9, 1.1):
        assert (term(grid.variances) < term(grid.variances * factor)).all()


def test_errors_of_few_images_are_shrunk_to_the_mean_of_their_level() -> None:
    one, many = (random_curve(4, num_images=count) for count in (1, 10**12))
    flat = one.errors.reshape(5, -1)
    np.testing.assert_allclose(one.shrunk(), (flat + 20 * flat.mean(1, keepdims=True)) / 21)
    np.testing.assert_allclose(many.shrunk(), flat, rtol=1e-6)


def test_the_curve_has_the_errors_of_every_level(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """The predictor answers with the level, so each error says at which level it was made."""
    model, seen = tiny_model(schedule="learned_monotone"), list[int]()
    model.network.forward = lambda z, gamma: per_image(gamma, z).expand_as(z)  # type: ignore[assignment]
    curves = [
        error_curve(model, digits[:5], levels=3, seed=2, batch_size=size, progress=lambda r: map(noted(seen), r))
        for size in (1000, 8)
    ]
    eps = image_noise(2, range(5), 4, (1, 8, 8)).reshape(5, 4, 1, 8, 8)
    ends = model.schedule.gamma_0.item(), model.schedule.gamma_1.item()
    expected = np.square(eps - np.linspace(*ends, 4)[:, None, None, None]).mean(0)
    for curve in curves:
        np.testing.assert_allclose(curve.errors, expected, rtol=1e-4)
        assert curve.span == pytest.approx(ends[1] - ends[0])
        assert curve.num_images == 5
    assert seen == [0, 0, 2, 4]


def noted(seen: list[int]) -> Callable[[int], int]:
    def note(number: int) -> int:
        seen.append(number)
        return number

    return note


# --- samples and codes ---


def gaussian_model(tiny_model: Callable[..., VDM]) -> VDM:
    model = tiny_model(image_shape=(1, 2, 2), schedule="fixed_linear").double()
    model.network.forward = exact_noise  # type: ignore[assignment]
    return model


def test_samples_of_gaussian_data_have_its_variance_in_few_steps(tiny_model: Callable[..., VDM]) -> None:
    model, count = gaussian_model(tiny_model), 20_000
    fitted = fit_grid(gaussian_curve(), 3, "step")
    expected = DATA_VARIANCE / (1 + math.exp(-7)) + 1 / (1 + math.exp(7))
    found = []
    for grid in (fitted, fit_grid(gaussian_curve(), 3, "dimension"), Grid(3, fitted.shares)):
        steps = trajectory(model, range(count), Solver(3, grid=grid, clip=False), seed=0)
        found.append([*steps][-1].z.var().item())
    error = expected * math.sqrt(2 / (4 * count))
    assert abs(found[0] - expected) < 4 * error
    assert abs(found[1] - expected) < 4 * error
    assert found[2] < expected - 20 * error


def test_filling_in_draws_with_the_variance_where_pixels_are_missing(tiny_model: Callable[..., VDM]) -> None:
    """Known pixels are those of the paper's step to the last bit."""
    model, known = gaussian_model(tiny_model), torch.full((1, 2, 2), 8, dtype=torch.uint8)
    missing = torch.tensor([[True, False], [False, False]])
    fitted = fit_grid(gaussian_curve(), 3, "dimension")
    ends = [
        [*fill_in(model, known, missing, range(4), Solver(3, grid=grid, clip=False), seed=0, repeats=2)][-1].z
        for grid in (fitted, Grid(3, fitted.shares))
    ]
    same = (ends[0] == ends[1])[:, 0]
    assert same[:, ~missing].all()
    assert not same[:, missing].any()


def test_variances_are_those_of_ancestral_sampling(tiny_model: Callable[..., VDM]) -> None:
    model, grid = tiny_model(), Grid(4, variances=np.ones(4))
    for settings in ({"order": 2}, {"eta": 0.5}):
        with pytest.raises(ValueError, match="order 1 and eta 1"):
            sample(model, range(1), Solver(4, grid=grid, **settings), seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the grid has 4 steps, and the solver 5"):
        sample(model, range(1), Solver(5, grid=grid), seed=0)


@pytest.mark.parametrize("num_timesteps", [3, 12])
def test_a_code_is_shorter_with_fitted_variances_and_comes_back(
    num_timesteps: int, tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    from test_codec import CountsBits, OneInteger

    model = tiny_model(schedule="fixed_linear").double()
    model.network.forward = exact_noise  # type: ignore[assignment]
    curve = error_curve(model, digits[100:200], levels=40, seed=0, batch_size=1000)
    bits = []
    for grid in (Grid(num_timesteps), fit_grid(curve, num_timesteps, "step")):
        coder = CountsBits()
        Codec(model, grid).encode(coder, digits[:50])
        bits.append(coder.bits / digits[:50].size)
        stack = OneInteger(7**30000)
        Codec(model, grid).encode(stack, digits[:4])
        assert (Codec(model, grid).decode(stack, 4) == digits[:4]).all()
        assert stack.state == 7**30000
    assert bits[1] < bits[0] - 0.1
    settings = BoundSettings(times_per_image=10 * num_timesteps, batch_size=50_000, seed=0, grid=grid)
    bound = evaluate(model, digits[:50], settings).bpd.mean()
    # log q - log p of Gaussians with a divergence of k nats has variance 2 k.
    assert abs(bits[1] - bound) < 4 * math.sqrt(2 * bound / math.log(2) / digits[:50].size)
    with pytest.raises(ValueError, match="one variance a step"):
        Codec(model, fit_grid(curve, num_timesteps, "dimension"))


# --- hostile grids and curves ---

RISING = np.array([0, 0.5, 1])


@pytest.mark.parametrize(
    ("shares", "variances", "message"),
    [
        (np.array([0, 1.0]), None, r"a grid of 2 steps has 3 ends, got \(2,\)"),
        (RISING[:, None], None, r"has 3 ends, got \(3, 1\)"),
        (np.array([0, 0, 1.0]), None, "must rise from 0 to 1"),
        (np.array([0, 1.5, 1]), None, "must rise from 0 to 1"),
        (np.array([0, np.nan, 1]), None, "must rise from 0 to 1"),
        (np.array([-np.inf, 0.5, 1]), None, "must rise from 0 to 1"),
        (np.array([0, 0.5, 0.9]), None, "must rise from 0 to 1"),
        (None, np.ones(3), r"2 steps have as many variances, .* got \(3,\)"),
        (RISING, np.ones((2, 8)), r"got \(2, 8\)"),
        (None, np.array([1, np.nan]), r"variances must be 1 to 2\^60"),
        (None, np.array([1, np.inf]), r"variances must be 1 to 2\^60"),
        (None, np.array([1, 0.999]), r"variances must be 1 to 2\^60"),
        (None, np.array([1, 2 * LARGEST_VARIANCE]), r"variances must be 1 to 2\^60"),
    ],
)
def test_a_grid_that_is_none_is_refused(shares: np.ndarray | None, variances: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(2, shares, variances)


def test_a_grid_has_a_step() -> None:
    with pytest.raises(ValueError, match="at least one step, got 0"):
        Grid(0)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (random_curve(4)._replace(errors=np.ones((5, 4))), r"a curve needs errors .* got \(5, 4\)"),
        (random_curve(4)._replace(errors=np.ones((1, 1, 2, 2))), "a curve needs errors"),
        (random_curve(4)._replace(num_images=0), "a curve needs errors"),
        (random_curve(4)._replace(errors=np.full((5, 1, 2, 2), np.nan)), "must be finite"),
        (random_curve(4)._replace(errors=-np.ones((5, 1, 2, 2))), "not negative"),
        (random_curve(4)._replace(span=math.inf), "span above 0"),
        (random_curve(4)._replace(span=0.0), "span above 0"),
    ],
)
def test_a_curve_that_is_none_is_refused(curve: ErrorCurve, message: str) -> None:
    for fit in (lambda: fit_grid(curve, 2), lambda: fit_variances(Grid(2), curve, SCHEDULE)):
        with pytest.raises(ValueError, match=message):
            fit()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("levels", "num_timesteps"), [(1, 1), (1, 5), (2, 3), (7, 1000)])
def test_a_curve_of_one_image_and_few_levels_has_a_grid_of_any_number_of_steps(
    kind: Variances, levels: int, num_timesteps: int
) -> None:
    curve = random_curve(levels, num_images=1)
    grid = fit_grid(curve._replace(errors=np.where(curve.errors < 0.1, 0, curve.errors)), num_timesteps, kind)
    assert grid.num_timesteps == num_timesteps
    assert (grid.variances is None) == (kind == "paper")


def test_images_of_16_bits_whose_schedule_is_steep_have_a_grid(tiny_model: Callable[..., VDM]) -> None:
    """gamma rises by half of its way in 1% of the time at t = 0: there an even grid has no steps."""
    model = tiny_model(num_levels=2**16, gamma_0=-24.39, schedule="learned_monotone")
    with torch.no_grad():
        model.schedule.inner.fill_(200)  # type: ignore[union-attr, operator]
        model.schedule.bias.fill_(200)  # type: ignore[union-attr, operator]
        model.schedule.outer.fill_(1)  # type: ignore[union-attr, operator]
        share = (model.schedule(torch.tensor([0.01])) - model.schedule.gamma_0) / model.schedule.span
    assert share.item() > 0.45
    pixels = np.random.default_rng(0).integers(0, 2**16, (6, 1, 8, 8), dtype=np.uint16)
    curve = error_curve(model, pixels, levels=30, seed=0, batch_size=200)
    even, best = fit_variances(Grid(8), curve, model.schedule), fit_grid(curve, 8)
    bpd = [
        evaluate(model, pixels, BoundSettings(times_per_image=64, batch_size=999, seed=0, grid=grid)).bpd.mean()
        for grid in (Grid(8), even, best)
    ]
    assert np.isfinite(bpd).all()
    assert bpd[2] < bpd[1] < bpd[0]


def test_no_images_and_infinite_outputs_have_no_curve(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    model, options = tiny_model(), {"levels": 3, "seed": 0, "batch_size": 8}
    with pytest.raises(ValueError, match="needs images and levels, got 0 and 3"):
        error_curve(model, digits[:0], **options)
    with pytest.raises(ValueError, match="in training mode"):
        error_curve(tiny_model(dropout=0.1).train(), digits[:2], **options)
    with torch.no_grad():
        model.network.conv_out.bias.fill_(math.inf)
    with pytest.raises(ArithmeticError, match="not finite"):
        error_curve(model, digits[:2], **options)
