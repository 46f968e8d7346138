"""Images that were enlarged, blurred or compressed are distinguished from those that were not."""

from collections.abc import Callable

import numpy as np
import pytest
from project import ROOT

from benchmarks import contract as change
from flows.contract.facts import measure_facts
from flows.contract.traces import jpeg_grid, lost_detail
from flows.core.params_file import read_params

CONTRACT = read_params(ROOT / "presets" / "digits.yaml").contract
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """Return 120 patches (N,3,32,32) of two photographs, halved by averaging, that do not overlap."""
    return change.photograph_patches(side=32, step=32)


def judged(images: np.ndarray, num_levels: int = 256) -> tuple[float, float]:
    """Return the share of directions without detail, and how much the coefficients lie on a grid."""
    return lost_detail(images, num_levels), jpeg_grid(images, num_levels)


@pytest.mark.slow
def test_unprocessed_images_have_detail_and_no_grid(patches: np.ndarray, digits: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 1, 40, 40), dtype=np.uint8)
    for images in (patches, patches[:, :1, :28, :28], noise, change.contrast(patches, 0.5), patches >> 3 << 3):
        assert judged(images)[0] == 0
        assert judged(images)[1] < 0.15
    assert judged(digits, 17) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "bicubic"])
def test_enlarged_images_lack_detail(kernel: str, patches: np.ndarray, digits: np.ndarray) -> None:
    for factor in (1.5, 2, 3):
        assert judged(change.enlarged(patches, kernel, factor))[0] > CONTRACT.max_lost_detail
    assert judged(change.enlarged(digits[:300], kernel), 17)[0] > CONTRACT.max_lost_detail
    if kernel != "nearest":
        assert judged(change.halved(patches, kernel))[0] > CONTRACT.max_lost_detail


def test_detail_is_judged_along_rows_and_along_columns(patches: np.ndarray) -> None:
    for axis in (2, 3):
        assert judged(patches.repeat(2, axis))[0] == 0.5


@pytest.mark.parametrize("quality", [75, 85, 90, 95])
def test_jpeg_leaves_a_grid(quality: int, patches: np.ndarray) -> None:
    compressed = change.jpeg(patches, quality)
    for images in (compressed, change.jpeg(patches[:, :1], quality), compressed[:, :, 8:, :24]):
        assert judged(images)[1] > 2 * CONTRACT.max_jpeg_grid
    assert judged(compressed[:, :, 3:, 3:])[1] < 0.15, "data/README.md says that this is missed"


def test_what_is_too_little_is_not_judged(patches: np.ndarray) -> None:
    enlarged = change.jpeg(change.enlarged(patches[:1], "nearest"), 75)
    assert judged(enlarged[:, :, :15]) == (0, 0)
    assert judged(np.zeros((1000, 1, 32, 32), dtype=np.uint8)) == (0, 0)
    assert judged(change.jpeg(patches, 75) // 2, 128)[1] == 0
    assert judged(enlarged[:0]) == (0, 0)


def test_borders_that_never_vary_are_not_lost_detail(patches: np.ndarray) -> None:
    framed = np.pad(patches, [(0, 0), (0, 0), (4, 4), (4, 4)])
    assert judged(framed)[0] == 0


def test_what_is_measured_does_not_depend_on_the_chunks(patches: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure_facts(patches, 256)
    monkeypatch.setattr("flows.contract.facts.ROWS", 7)
    parts = measure_facts(patches, 256)
    np.testing.assert_array_equal(parts.histograms, whole.histograms)
    np.testing.assert_array_equal(parts.digest, whole.digest)
    np.testing.assert_allclose(parts.thumbnails, whole.thumbnails)
