"""Models and data that many tests share: real ones, small."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vdm.model import VDM

TINY = {
    "image_shape": (1, 8, 8),
    "num_levels": 17,
    "schedule": "learned_linear",
    "gamma_0": -7.0,
    "gamma_1": 5.0,
    "width": 8,
    "blocks": 1,
    "attention_everywhere": False,
    "fourier_exponents": [2, 3],
    "norm_groups": 4,
    "norm_eps": 1e-6,
    "dropout": 0.0,
    "augmentation_input": False,
}


@pytest.fixture
def tiny_model() -> Callable[..., VDM]:
    """Builds a small VDM whose every parameter is random, so that zero-initialised layers take part."""

    def build(**changes: Any) -> VDM:
        torch.manual_seed(0)
        model = VDM(**{**TINY, **changes})
        for parameter in model.network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """scikit-learn's digits, (1797,1,8,8) uint8 with levels 0..16."""
    from sklearn.datasets import load_digits

    return load_digits().images.astype(np.uint8)[:, None]
