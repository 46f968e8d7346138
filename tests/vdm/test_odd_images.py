"""Surprise: features against closed forms, scores and p-values against their definitions."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from vdm.discretization import pixels_to_x
from vdm.evaluation import BoundSettings, evaluate, image_noise
from vdm.model import VDM
from vdm.schedule import alpha, sigma
from vdm.surprise import (
    STATISTICS,
    bound_of,
    expected_count,
    image_features,
    level_entropy,
    middle_levels,
    p_of_batch,
    pixel_statistics,
    reference,
)

SETTINGS = {"levels": 4, "seed": 3, "batch_size": 5}


class OfGaussian(nn.Module):
    """The exact noise predictor of x ~ N(0, deviation^2 I)."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = nn.Parameter(torch.tensor(deviation))

    def forward(self, z: Tensor, gamma: Tensor) -> Tensor:
        gamma = gamma[:, None, None, None]
        return sigma(gamma) * z / (alpha(gamma).square() * self.deviation.square() + sigma(gamma).square())


@pytest.fixture
def model() -> VDM:
    """Return a model with random weights."""
    torch.manual_seed(0)
    return VDM(**TINY).eval()


@pytest.fixture
def gaussian() -> VDM:
    """Return a model with the exact noise predictor of a Gaussian."""
    model = VDM(**TINY).eval()
    model.network = OfGaussian(0.3)  # type: ignore[assignment]
    return model


def test_features_are_losses_with_the_noise_of_all_images_and_norms_without_noise(
    gaussian: VDM, digits: np.ndarray
) -> None:
    features = image_features(gaussian, digits[:7], **SETTINGS)
    gammas = middle_levels(gaussian, 4).numpy().astype(float)
    ends = gaussian.schedule.gamma_0.item(), gaussian.schedule.gamma_1.item()
    np.testing.assert_allclose(gammas, ends[0] + (ends[1] - ends[0]) * np.array([1, 3, 5, 7]) / 8, rtol=1e-6)
    x = pixels_to_x(torch.from_numpy(digits[:7]), gaussian.num_levels).numpy().astype(float)
    noise = image_noise(3, range(1), 4, gaussian.image_shape).astype(float)
    for level, gamma in enumerate(gammas):
        of_noise = 1 / (1 + math.exp(-gamma))  # sigma^2
        slope = math.sqrt(of_noise) / ((1 - of_noise) * 0.09 + of_noise)
        rest = noise[level] - slope * (math.sqrt(1 - of_noise) * x + math.sqrt(of_noise) * noise[level])
        np.testing.assert_allclose(features[:, level], np.log(np.square(rest).sum((1, 2, 3))), rtol=1e-4)
        norm = np.log(np.square(slope * math.sqrt(1 - of_noise) * x).sum((1, 2, 3)))
        np.testing.assert_allclose(features[:, 4 + level], norm, rtol=1e-4)


def test_the_other_features_are_statistics_of_the_pixels(gaussian: VDM, digits: np.ndarray) -> None:
    images = np.concatenate([digits[:3], np.zeros_like(digits[:1])])
    found = image_features(gaussian, images, **SETTINGS)[:, 8:]
    for image, row in zip(images[:, 0].astype(float), found, strict=True):
        shares = np.unique(image, return_counts=True)[1] / 64
        centre = [3.5, 3.5]
        if image.any():
            centre = [(image.sum(1 - axis) * np.arange(8)).sum() / image.sum() for axis in (0, 1)]
        steps = [np.abs(np.diff(image, axis=axis)).sum() / 64 for axis in (0, 1)]
        entropy = -(shares * np.log(shares)).sum()
        np.testing.assert_allclose(row, [image.mean(), image.std(), entropy, *steps, *centre], atol=1e-6)


def test_features_of_an_image_depend_on_no_other_image_and_on_no_batch(model: VDM, digits: np.ndarray) -> None:
    features = image_features(model, digits[:7], **SETTINGS)
    alone = image_features(model, digits[6:7], **SETTINGS)
    np.testing.assert_allclose(features[6:], alone, atol=1e-5)  # rounding of float32
    np.testing.assert_allclose(features, image_features(model, digits[:7], **SETTINGS | {"batch_size": 2}), atol=1e-5)
    assert image_features(model, digits[:0], **SETTINGS).shape == (0, 8 + len(STATISTICS))
    with pytest.raises(ValueError, match="images of the model are"):
        image_features(model, digits[:1, :, 1:], **SETTINGS)


def test_the_bound_of_many_levels_is_that_of_evaluate(gaussian: VDM, digits: np.ndarray) -> None:
    features = image_features(gaussian, digits[:4], levels=400, seed=0, batch_size=4)
    settings = BoundSettings(times_per_image=400, batch_size=400, seed=1)
    exact = evaluate(gaussian, digits[:4], settings)
    error = np.hypot(*2 * [np.sqrt(exact.diffusion_variance)])
    assert (np.abs(bound_of(gaussian, digits[:4], features) - exact.bpd) < 5 * error).all()


def test_a_score_is_the_distance_to_the_fifth_nearest_of_one_half_and_p_its_rank_in_the_other() -> None:
    rng = np.random.default_rng(0)
    features, others = rng.normal(3, [1, 10, 0.1], (60, 3)), rng.normal(3, [1, 12, 0.1], (20, 3))
    first = rng.permutation(60) < 30
    made = reference(features, first)
    mean, deviation = features[first].mean(0), features[first].std(0)

    def brute(some: np.ndarray) -> np.ndarray:
        apart = (some[:, None] - features[first]) / deviation
        return np.sort(np.sqrt(np.square(apart).sum(2)), 1)[:, 4]

    scores = made.score(others)
    np.testing.assert_allclose(scores, brute(others))
    np.testing.assert_allclose(made.scores, np.sort(brute(features[~first])))
    np.testing.assert_allclose(made.standardised(others), (others - mean) / deviation)
    counts = (brute(features[~first])[None] >= scores[:, None]).sum(1)
    np.testing.assert_allclose(made.p_values(scores), (1 + counts) / 31)
    assert made.p_values(made.scores[-1:]) == 2 / 31  # a score that is equal counts
    assert made.p_values(np.array([np.inf])) == 1 / 31


def test_halves_without_images_and_losses_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="both halves need images, got 4 of 4"):
        reference(np.zeros((4, 2)), np.ones(4, bool))
    with pytest.raises(ValueError, match="not finite"):
        reference(np.array([[0.0], [np.nan]]), np.array([True, False]))
    few = reference(np.array([[0.0], [1.0], [5.0]]), np.array([True, True, False]))
    np.testing.assert_allclose(few.scores, [10])  # of two, the farther one counts: (5 - 0) / 0.5


@pytest.mark.parametrize("shared", [0.1, 3.5, -87.3366, 30000.3])
def test_a_feature_that_all_held_out_images_share_makes_no_image_odd_by_its_rounding(shared: float) -> None:
    rng = np.random.default_rng(0)
    others, first = rng.normal(size=(80, 2)), np.arange(60) < 30
    sixth_digit = 10.0 ** (np.floor(np.log10(abs(shared))) - 5)
    either_way = rng.choice([shared, shared + sixth_digit], 80)  # a value between two that are kept
    with_shared = np.column_stack([others, np.full(80, shared), either_way])
    with_shared[60:, 2:] = shared * (1 + 3e-16)
    alone, made = reference(others[:60], first), reference(with_shared[:60], first)
    scores = made.score(with_shared[60:])
    np.testing.assert_allclose(scores, alone.score(others[60:]), atol=0.1)  # the last digit of 30000.3
    np.testing.assert_allclose(made.p_values(scores), alone.p_values(alone.score(others[60:])), atol=1 / 31)
    assert made.score(with_shared[60:] + np.array([0, 0, 0, 30]))[0] > 29  # a difference that is none of rounding


def test_the_number_of_small_p_values_has_the_distribution_of_random_ranks() -> None:
    """All orders of 5 scores are equally likely: 3 are those of held-out images, 2 those of others."""
    level, counts = 0.5, []
    for order in permutations(range(5)):
        calibrated, scores = np.array(order[:3]), np.array(order[3:])
        p_values = (1 + (calibrated[None] >= scores[:, None]).sum(1)) / 4
        counts.append(int((p_values <= level).sum()))
    found = expected_count(2, 3, level, chance=0.5)
    assert found.mean == pytest.approx(np.mean(counts))
    shares = np.cumsum(np.bincount(counts, minlength=3)) / len(counts)
    assert (found.low, found.high) == (int((shares < 0.25).sum()), int((shares < 0.75).sum()))
    assert expected_count(900, 99, 0.01, 0.05).mean == pytest.approx(9)
    assert expected_count(900, 98, 0.01, 0.05) == (0, 0, 0)  # the lowest p is 1/99
    assert expected_count(900, 99, 1.0, 0.05) == (900, 900, 900)


def test_a_batch_of_images_that_are_each_a_little_odd_is_found() -> None:
    rng = np.random.default_rng(0)
    calibrated = np.sort(rng.normal(0, 1, 500))
    assert p_of_batch(rng.normal(0.5, 1, 200), calibrated) < 1e-6
    assert p_of_batch(rng.normal(0, 1, 200), calibrated) > 0.01
    assert p_of_batch(rng.normal(-1, 1, 200), calibrated) > 0.9


def test_statistics_of_many_levels_take_the_memory_of_few() -> None:
    """The entropy of all images at once is the oracle: it needs a number for each image and level, 64 MiB here."""
    pixels = torch.randint(0, 2**16, (128, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    with torch.profiler.profile(profile_memory=True) as seen:
        found = pixel_statistics(pixels, 2**16)
    assert max(event.self_cpu_memory_usage for event in seen.events()) <= 2**24
    at_once = level_entropy(pixels, 2**16)
    assert torch.allclose(found[:, STATISTICS.index("variety")], at_once, rtol=0, atol=1e-12)
