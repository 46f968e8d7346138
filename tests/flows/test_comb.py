"""The comb test: real 8-bit pixels pass, and each way to fake them is detected."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from flows.core.params import Contract
from flows.core.params_file import read_params
from flows.validation import tables
from flows.validation.comb import Comb, comb

CONTRACT = read_params(Path(__file__).parents[2] / "presets" / "digits.yaml").contract


class Shares(NamedTuple):
    """The shares of the levels that look wrong."""

    gaps: float
    peaks: float
    skipped: float


def shares(pixels: np.ndarray, num_levels: int = 256) -> Shares:
    teeth = comb(np.bincount(np.rint(pixels).astype(int).ravel(), minlength=num_levels))
    return Shares(*(float(flags.mean()) for flags in teeth))


def broken(found: Shares, contract: Contract = CONTRACT) -> bool:
    limits = (contract.max_gaps, contract.max_peaks, contract.max_skipped)
    return any(share > limit for share, limit in zip(found, limits, strict=True))


@pytest.fixture(scope="module", params=[0, 1], ids=["temple", "flower"])
def photograph(request: pytest.FixtureRequest) -> np.ndarray:
    """Return a photograph of 427x640 in colour that comes with scikit-learn, as floats 0..255."""
    return load_sample_images().images[request.param].astype(float)  # type: ignore[no-any-return]


def test_photographs_pass(photograph: np.ndarray) -> None:
    assert not broken(shares(photograph))
    assert not broken(shares(photograph[::2, ::2]))


def bells(*peaks: tuple[float, float], count: int = 400_000) -> np.ndarray:
    """Return normally distributed pixels, `count` around each (mean, standard deviation)."""
    generator = np.random.default_rng(0)
    pixels = np.concatenate([generator.normal(*peak, count) for peak in peaks])
    return np.clip(np.rint(pixels), 0, 255)


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(bells((128, 8)), id="low contrast"),
        pytest.param(bells((140, 5)), id="lower contrast"),
        pytest.param(bells((10, 2), (128, 40)), id="dark background"),
        pytest.param(bells((230, 1.5), (128, 40)), id="bright background"),
        pytest.param(np.append(bells((5, 4)), np.linspace(0, 255, 8000).round()), id="stars"),
        pytest.param(bells((60, 6), (120, 6)), id="valley"),
        pytest.param(bells((60, 3), (200, 3)), id="ink and paper"),
        pytest.param(bells((30, 2), (80, 2), (130, 2), (180, 2), (230, 2)), id="five tones"),
    ],
)
def test_steep_but_smooth_histograms_pass(pixels: np.ndarray) -> None:
    assert max(shares(pixels)) <= 0.004


def stretched(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: np.clip(np.rint(pixels * factor), 0, 255)


def quantised(bits: int, *, spread: bool) -> Callable[[np.ndarray], np.ndarray]:
    def quantise(pixels: np.ndarray) -> np.ndarray:
        levels = pixels.astype(int) >> (8 - bits)
        return levels * 255 / (2**bits - 1) if spread else levels << (8 - bits)

    return quantise


@pytest.mark.parametrize(
    "fake",
    [
        *(pytest.param(stretched(factor), id=f"x{factor}") for factor in (0.7, 0.9, 0.95, 0.98, 1.02, 1.05, 1.3)),
        *(pytest.param(quantised(bits, spread=False), id=f"{bits} bits") for bits in range(1, 8)),
        *(pytest.param(quantised(bits, spread=True), id=f"{bits} bits spread") for bits in range(1, 8)),
        pytest.param(lambda pixels: np.rint(255 * (pixels / 255) ** (1 / 1.2)), id="gamma"),
        pytest.param(lambda pixels: np.rint(16 + pixels * 219 / 255), id="video range"),
    ],
)
def test_fakes_are_detected(fake: Callable[[np.ndarray], np.ndarray], photograph: np.ndarray) -> None:
    assert broken(shares(fake(photograph)))


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    """Return 2,000 images (N,400) of 32 levels, each of four plain areas with a little noise."""
    generator = np.random.default_rng(0)
    areas = generator.uniform(-4, 36, size=(2000, 4)).repeat(100, axis=1)
    return np.asarray(np.clip(np.rint(areas + 0.7 * generator.normal(size=areas.shape)), 0, 31))


@pytest.mark.parametrize("count", [50, 100, 200])
def test_plain_areas_of_a_few_images_are_no_peaks(count: int, plain: np.ndarray) -> None:
    generator = np.random.default_rng(count)
    subsets = [generator.choice(plain, count, replace=False) for _ in range(40)]
    assert sum(broken(shares(images, 32)) for images in subsets) <= 1


def test_squeezed_levels_of_a_few_hundred_images_are_peaks(plain: np.ndarray) -> None:
    for first in range(0, 2000, 200):
        assert broken(shares(np.rint(0.95 * plain[first : first + 200]), 32))


def test_few_levels_and_few_pixels_are_not_judged(digits: np.ndarray) -> None:
    assert shares(digits, 17) == (0, 0, 0)
    assert shares(np.array([0, 255, 7])) == (0, 0, 0)
    assert shares(np.zeros(10**6), 2) == (0, 0, 0)
    assert shares(np.array([]), 256) == (0, 0, 0)


def test_each_limit_is_that_of_its_flag() -> None:
    limits = {"max_gaps": 0.01, "max_peaks": 0.02, "max_skipped": 0.03}
    flags = Comb(*(np.arange(100) < 100 * limit for limit in limits.values()))
    allowed: Any = SimpleNamespace(**limits)
    assert not np.any(tables.broken(flags, allowed))
    for name, limit in limits.items():
        stricter: Any = SimpleNamespace(**limits | {name: limit - 0.005})
        found = [bool(each.any()) for each in tables.broken(flags, stricter)]
        assert dict(zip(limits, found, strict=True)) == {key: key == name for key in limits}
