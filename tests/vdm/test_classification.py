"""Classes: the row of "no class", guidance, dropout, and the likelihood of Gaussian classes against its closed form."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_codec import OneInteger
from torch import Tensor
from trainings import SETTINGS, start

from vdm.classification import class_losses, classify_alone, classify_draws
from vdm.codec import TOTAL, Codec
from vdm.diffusion import per_image
from vdm.discretization import pixels_to_x
from vdm.evaluation import BoundSettings, image_terms
from vdm.grids import Grid
from vdm.model import VDM
from vdm.ode import Derivative, OdeState, evaluate_ode
from vdm.sampling import Solver, fill_in, trajectory
from vdm.schedule import alpha, sigma
from vdm.training.validation import Validation

BOUND = BoundSettings(times_per_image=4, batch_size=64, seed=3)
ODE: dict[str, Any] = {"seed": 0, "num_draws": 1, "num_probes": 1, "dequantisation": "uniform", "batch_size": 64}
LABELS = np.arange(6) % 3


@pytest.fixture
def model(tiny_model: Callable[..., VDM]) -> VDM:
    """Return a model of three classes, of which the first has the embedding of "no class"."""
    model = tiny_model(classes=3)
    with torch.no_grad():
        model.network.class_embedding.weight[0] = model.network.class_embedding.weight[3]
    return model


def test_guidance_is_a_line_through_both_predictions(model: VDM) -> None:
    z, gamma = torch.randn(3, 1, 8, 8), torch.zeros(3)
    classes = torch.tensor([0, 1, 2])
    with torch.no_grad():
        without, given = model.given(None)(z, gamma), model.given(classes)(z, gamma)
        assert torch.equal(without, model.given(torch.full((3,), 3))(z, gamma))
        for guidance in (0.0, 1.0, 2.5):
            found = model.given(classes, guidance)(z, gamma)
            torch.testing.assert_close(found, without + guidance * (given - without))
    assert torch.equal(without[0], given[0])
    assert ((without - given)[1:].flatten(1).abs().amax(1) > 1e-3).all()


def of_bound(model: VDM, pixels: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    return image_terms(model, pixels, range(6), BOUND, labels=labels).sum((0, 2))


def of_steps(model: VDM, pixels: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    return image_terms(model, pixels, range(6), replace(BOUND, grid=Grid(5)), labels=labels).sum((0, 2))


def of_ode(model: VDM, pixels: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    return evaluate_ode(model, pixels, labels=labels, solve=four_steps, **ODE)


def four_steps(derivative: Derivative, state: OdeState, times: Tensor) -> OdeState:
    """Solve by Euler's method: the steps of an adaptive solver would depend on the other images."""
    for time in torch.linspace(*times.tolist(), 5, dtype=times.dtype)[:-1]:
        y, gain = derivative(time, state)
        step = (times[1] - times[0]) / 4
        state = (state[0] + step * y, state[1] + step * gain)
    return state


def of_samples(model: VDM, pixels: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    solver = Solver(4, classes=None if labels is None else labels.tolist())
    return [*trajectory(model, range(6), solver, seed=0)][-1].z.double().numpy().sum((1, 2, 3))  # type: ignore[no-any-return]


def of_filling(model: VDM, pixels: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    solver = Solver(3, classes=None if labels is None else labels.tolist())
    known, missing = torch.from_numpy(pixels[0]), torch.ones(8, 8, dtype=torch.bool)
    steps = fill_in(model, known, missing, range(6), solver, seed=0, repeats=2)
    return [*steps][-1].z.double().numpy().sum((1, 2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("figure", [of_bound, of_steps, of_ode, of_samples, of_filling])
def test_every_computation_sees_the_class_of_each_image(
    figure: Callable[..., np.ndarray], model: VDM, digits: np.ndarray
) -> None:
    """An image of the class that is as "no class" keeps its figure, and any other gets another."""
    without, given = (figure(model, digits[:6], labels) for labels in (None, LABELS))
    np.testing.assert_allclose(given[LABELS == 0], without[LABELS == 0], rtol=1e-5)
    assert (np.abs(given - without)[LABELS != 0] > 1e-4 * np.abs(without[LABELS != 0])).all()


def test_images_and_their_classes_come_out_of_the_codec(model: VDM, digits: np.ndarray) -> None:
    tested, start = Codec(model.double(), Grid(3), 4), 7**12000
    with_classes, without = OneInteger(start), OneInteger(start)
    tested.encode(with_classes, digits[:6], classes=LABELS)
    assert (tested.decode(with_classes, 6, classed=True) == digits[:6]).all()
    assert with_classes.state == start
    # Of "no class", six classes cost what six plain symbols of three do.
    tested.encode(with_classes, digits[:6], classes=np.zeros(6, int))
    tested.encode(without, digits[:6])
    assert with_classes.state / without.state == pytest.approx(3**6, rel=12 / TOTAL)


@pytest.mark.parametrize(
    ("labels", "dropout", "trained"),
    [
        (True, 0.0, [True, True, True, False]),
        (True, 0.5, [True, True, True, True]),
        (True, 1.0, [False, False, False, True]),
        (False, 0.0, [False, False, False, True]),
    ],
)
def test_training_replaces_classes_by_no_class(
    labels: bool, dropout: float, trained: list[bool], model: VDM, digits: np.ndarray
) -> None:
    before = model.network.class_embedding.weight.detach().clone()
    trainer = start(model, digits[:64], **SETTINGS | {"class_dropout": dropout, "weight_decay": 0.0})
    plain = trainer.draw()
    trainer.labels = torch.arange(64) % 3 if labels else None
    for name in ("pixels", "t", "eps"):
        assert torch.equal(getattr(plain, name), getattr(trainer.draw(), name)), name
    trainer.step()
    trainer.step()  # the learning rate of the first is 0
    assert (model.network.class_embedding.weight != before).any(1).tolist() == trained


def test_a_class_that_tells_something_is_learned_and_validated(
    tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    """Black and white images are easier if the model knows which."""
    pixels = np.repeat(np.array([0, 16], np.uint8), 32)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    labels = np.repeat([0, 1], 32)
    model = tiny_model(classes=2)
    trainer = start(model, pixels, **SETTINGS | {"steps": 60, "class_dropout": 0.2})
    trainer.labels = torch.from_numpy(labels)
    for _ in range(60):
        trainer.step()
    figures = []
    for given in (labels, 1 - labels):
        options = {"every_steps": 1, "times_per_image": 8, "batch_size": 64, "seed": 0, "patience": None}
        validation = Validation(pixels, labels=given, keep="last", **options)  # type: ignore[arg-type]
        figures.append(validation.validate(trainer.averaged, 1, lambda: False)[0])  # type: ignore[index]
    assert figures[0] < 0.9 * figures[1]
    losses = class_losses(trainer.averaged, pixels, range(64), BOUND)
    assert (classify_draws(losses).best == labels).all()


def test_gaussian_classes_have_their_exact_log_ratio(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """With p(x | c) = N(mean_c, s^2), z_t given c is Gaussian too, and its best predictor has a closed form.

    The diffusion term is then the mean of -log p(z_0 | c) over q(z_0 | x) without that at z_1, up to a constant.
    """
    model, s2 = tiny_model(classes=3, schedule="fixed_linear").double(), 0.3
    means = torch.linspace(-0.3, 0.3, 3, dtype=torch.float64)[:, None, None, None] * torch.ones(3, 1, 8, 8)

    def exact(z: Tensor, gamma: Tensor, *, classes: Tensor) -> Tensor:
        gamma = per_image(gamma, z)
        variance = alpha(gamma) ** 2 * s2 + sigma(gamma) ** 2
        return sigma(gamma) * (z - alpha(gamma) * means[classes]) / variance

    model.network.forward = exact  # type: ignore[assignment]
    x = pixels_to_x(torch.from_numpy(digits[:40]), 17, torch.float64)
    known = []
    for mean in means:
        # E |z_t - alpha_t mean|^2 over q(z_t | x), over twice the variance: the normalisers are the same for all.
        away = (x - mean).square().flatten(1).sum(1)
        ends = (model.schedule.gamma_0, model.schedule.gamma_1)
        at_0, at_1 = (alpha(g) ** 2 * away / (2 * (alpha(g) ** 2 * s2 + sigma(g) ** 2)) for g in ends)
        known.append((at_0 - at_1).numpy())
    found = classify_draws(class_losses(model, digits[:40], range(40), replace(BOUND, times_per_image=64)))
    order = np.argsort(known, axis=0)
    assert (found.best == order[0]).all()
    ratio = np.take_along_axis(np.array(known), order[1:2], 0)[0] - np.min(known, axis=0)
    assert (np.abs(found.margin - ratio) < 4 * found.margin_standard_error).all()
    assert (found.margin_standard_error < 0.2 * ratio.mean()).all()
    # -log p(x) of equally likely classes, up to what all classes share.
    shared = -found.log_likelihoods[:, 1] - known[1]
    mixture = -np.log(np.exp(-np.array(known)).mean(0)) + shared
    assert np.abs(found.mixture - mixture).max() < 4 * found.margin_standard_error.max()


def test_classes_are_told_apart_at_times_even_in_gamma(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """The bound of a number of steps is that of the model's own schedule."""
    bent = tiny_model(classes=3, schedule="learned_monotone")
    line = tiny_model(classes=3, schedule="fixed_linear")
    line.network.load_state_dict(bent.network.state_dict())
    for steps, same in ((None, True), (Grid(5), False)):
        settings = replace(BOUND, grid=steps)
        first, second = (class_losses(model, digits[:6], range(6), settings) for model in (bent, line))
        assert np.array_equal(first, second) == same


def test_a_model_keeps_its_schedule_while_it_classifies(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """Another thread may show it meanwhile."""
    model, seen = tiny_model(classes=3, schedule="learned_monotone"), list[object]()

    def watched(batches: range) -> Iterator[int]:
        for number in batches:
            yield number
            seen.append(model.schedule)

    own = model.schedule
    class_losses(model, digits[:2], range(2), BOUND, progress=watched)
    assert [*map(id, seen)] == [id(own)] * 3


def test_each_image_is_classified_as_if_it_were_alone() -> None:
    losses = np.random.default_rng(0).normal(0, 1, (3, 4, 8)) + np.arange(8)
    several, one = classify_alone(losses), classify_draws(losses[:, [2]])
    for ours, theirs in zip(several, one, strict=True):
        np.testing.assert_array_equal(ours[2], theirs[0])


def test_the_bias_of_the_mixture_is_that_of_many_repeats() -> None:
    exact, random = np.array([3.0, 3.4, 5.0]), np.random.default_rng(0)
    losses = exact[:, None, None] + random.normal(0, 0.8, (3, 20_000, 16))
    found = classify_draws(losses)
    unbiased = -np.log(np.exp(-exact).mean())
    error = found.mixture.std() / 20_000**0.5
    assert found.mixture.mean() < unbiased - 4 * error
    # The next order in the variance, 0.04, is a tenth of the bias at most.
    assert found.mixture.mean() - unbiased == pytest.approx(found.mixture_bias.mean(), abs=4 * error + 1e-3)
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    # Images of classes that are plain have none, however the other classes vary over time.
    plain = 50 * np.eye(3)[:, random.integers(0, 3, 100), None] * np.linspace(-2, 1, 16) + random.normal(
        0, 3, (100, 16)
    )
    assert np.abs(classify_draws(plain).mixture_bias).max() < 1e-3
