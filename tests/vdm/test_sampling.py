"""Ancestral sampling."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vdm.model import VDM
from vdm.sampling import sample
from vdm.schedule import alpha, sigma


def draw(model: VDM, seed: int = 0, num_images: int = 3, num_timesteps: int = 5, clip: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sample(model, num_images, num_timesteps=num_timesteps, clip=clip, generator=generator)


@pytest.mark.parametrize(("num_levels", "dtype"), [(2, torch.uint8), (17, torch.uint8), (1024, torch.int32)])
def test_samples_are_pixels(num_levels: int, dtype: torch.dtype, tiny_model: Callable[..., VDM]) -> None:
    pixels = draw(tiny_model(num_levels=num_levels, image_shape=(3, 5, 7)))
    assert pixels.shape == (3, 3, 5, 7)
    assert pixels.dtype == dtype
    assert pixels.max() < num_levels


def test_the_seed_decides_the_samples(tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model()
    assert torch.equal(draw(model, 1), draw(model, 1))
    assert not torch.equal(draw(model, 1), draw(model, 2))


def test_the_exact_predictor_samples_the_data_distribution(tiny_model: Callable[..., VDM]) -> None:
    """Gaussian data has a closed-form predictor.  With it, samples must have the data's mean and variance."""
    mean, variance = 0.2, 0.04

    def exact_noise(z_t: torch.Tensor, gamma_t: torch.Tensor) -> torch.Tensor:
        gamma = gamma_t.reshape(-1, 1, 1, 1)
        signal = alpha(gamma) ** 2 * variance + sigma(gamma) ** 2
        return sigma(gamma) / signal * (z_t - alpha(gamma) * mean)

    model = tiny_model(num_levels=256, gamma_0=-13.3)
    model.network.forward = exact_noise  # type: ignore[assignment]
    pixels = draw(model, num_images=400, num_timesteps=200, clip=False).double()
    x = 2 * (pixels + 0.5) / 256 - 1
    assert x.mean().item() == pytest.approx(mean, abs=4 * (variance / x.numel()) ** 0.5)
    # 4 standard errors of a variance, plus 1% for 200 steps and 256 levels.
    assert x.var().item() == pytest.approx(variance, rel=4 * (2 / x.numel()) ** 0.5 + 0.01)


def test_steps_run_from_noise_to_data(tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model()
    forward = model.network.forward
    seen = []

    def spy(z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        seen.append(gamma[0].item())
        return forward(z, gamma)

    model.network.forward = spy  # type: ignore[assignment]
    draw(model, num_timesteps=4)
    np.testing.assert_allclose(seen, [5.0, 2.0, -1.0, -4.0], atol=1e-5)
