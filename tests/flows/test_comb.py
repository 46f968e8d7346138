"""The comb test: real 8-bit pixels pass, and each way to fake them is detected."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from project import ROOT
from sklearn.datasets import load_sample_images

from benchmarks import contract as change
from flows.contract.checks import measure_shares
from flows.contract.facts import measure_facts
from flows.contract.limits import is_beyond
from flows.contract.traces import Comb, comb, heights, unjudged_fields
from flows.core.params import Contract
from flows.core.params_file import parse_params, read_params, read_preset

PRESETS = ROOT / "presets"
CONTRACT = read_params(PRESETS / "digits.yaml").contract


def shares(pixels: np.ndarray, num_levels: int = 256) -> tuple[float, ...]:
    """Return the shares of the levels that are gaps, peaks and skipped."""
    histogram = np.bincount(np.rint(pixels).astype(int).ravel(), minlength=num_levels)
    teeth = comb(histogram, histogram)
    return tuple(float(flags.mean()) for flags in teeth)


def broken(found: tuple[float, ...], contract: Contract = CONTRACT) -> bool:
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
        bells((128, 8)),
        bells((140, 5)),
        bells((10, 2), (128, 40)),
        bells((230, 1.5), (128, 40)),
        np.append(bells((5, 4)), np.linspace(0, 255, 8000).round()),
        bells((60, 6), (120, 6)),
        bells((60, 3), (200, 3)),
        bells((30, 2), (80, 2), (130, 2), (180, 2), (230, 2)),
    ],
    ids=["low", "lower contrast", "dark", "bright background", "stars", "valley", "ink and paper", "five tones"],
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


def drawings(scale: int, way: Image.Resampling, colours: int = 3, side: int = 16, count: int = 300) -> np.ndarray:
    """Return circles, squares and triangles (N,3,side,side) of flat colours, drawn `scale` times as large."""
    generator, images = np.random.default_rng(0), []
    palette = [tuple(colour) for colour in generator.integers(0, 256, (colours, 3)).tolist()]
    for number in range(count):
        picture = Image.new("RGB", (side * scale, side * scale), "white")
        radius = generator.uniform(0.15, 0.4) * side
        place = scale * np.append(generator.uniform(radius, side - 1 - radius, 2), radius)
        sides, colour = (4, 3, 50)[number % 3], palette[generator.integers(colours)]
        ImageDraw.Draw(picture).regular_polygon(tuple(place), sides, fill=colour)
        images.append(np.asarray(picture.resize((side, side), way)).transpose(2, 0, 1))
    return np.stack(images)


def found(images: np.ndarray) -> tuple[set[str], list[str], float]:
    """Return what the contract finds in the levels, what it does not judge, and the share without detail."""
    facts = measure_facts(np.ascontiguousarray(images), 256)
    teeth, ignored = comb(facts.histogram, facts.textured)._asdict(), unjudged_fields(facts.histogram, facts.textured)
    beyond = {kind for kind, flags in teeth.items() if is_beyond(flags.mean(), getattr(CONTRACT, f"max_{kind}"))}
    return beyond - {*ignored}, ignored, facts.lost_detail


@pytest.mark.parametrize(
    ("images", "judged"),
    [
        (lambda: drawings(1, Image.Resampling.NEAREST), False),
        (lambda: drawings(1, Image.Resampling.NEAREST, colours=1000), False),
        (lambda: drawings(1, Image.Resampling.NEAREST, side=32), False),
        (lambda: drawings(1, Image.Resampling.NEAREST)[:, :1] // 128 * 255, False),
        (lambda: drawings(8, Image.Resampling.BOX), False),
        (lambda: drawings(2, Image.Resampling.BILINEAR, side=12), False),
        (lambda: drawings(8, Image.Resampling.LANCZOS, side=32, count=1200), False),
        (lambda: drawings(8, Image.Resampling.LANCZOS, colours=30), True),
    ],
    ids=["three colours", "many colours", "larger", "two levels", "box", "small", "lanczos", "lanczos, many colours"],
)
def test_drawings_of_flat_colours_pass(images: Callable[[], np.ndarray], *, judged: bool) -> None:
    flags, unjudged, lost_detail = found(images())
    assert (flags, unjudged) == (set(), [] if judged else [*Comb._fields])
    assert lost_detail <= CONTRACT.max_lost_detail


@pytest.mark.parametrize(
    ("factor", "flags"), [(1, set()), (0.97, {"peaks"}), (1.03, {"gaps"}), (1.5, {"gaps", "skipped"})]
)
def test_photographs_are_judged(factor: float, flags: set[str]) -> None:
    images = change.contrast(change.photograph_patches(side=32, step=16), factor)
    assert found(images)[:2] == (flags, [])


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    """Return 2,000 images (N,400) of 32 levels, each of four plain areas with a little noise."""
    generator = np.random.default_rng(0)
    areas = generator.uniform(-4, 36, size=(2000, 4)).repeat(100, axis=1)
    return np.asarray(np.clip(np.rint(areas + 0.7 * generator.normal(size=areas.shape)), 0, 31))


def test_plain_areas_of_a_few_images_are_no_peaks_and_squeezed_levels_are(plain: np.ndarray) -> None:
    for count in (50, 100, 200):
        generator = np.random.default_rng(count)
        subsets = [generator.choice(plain, count, replace=False) for _ in range(40)]
        assert sum(broken(shares(images, 32)) for images in subsets) <= 1
    for first in range(0, 2000, 200):
        assert broken(shares(np.rint(0.95 * plain[first : first + 200]), 32))


def test_few_levels_and_few_pixels_are_not_judged(digits: np.ndarray) -> None:
    assert shares(digits, 17) == (0, 0, 0)
    assert shares(np.array([0, 255, 7])) == (0, 0, 0)
    assert shares(np.zeros(10**6), 2) == (0, 0, 0)
    assert shares(np.array([]), 256) == (0, 0, 0)


def test_levels_are_flagged_only_beyond_the_limit_of_their_split_or_of_the_set() -> None:
    """Of 100 levels, 3 are gaps in the split, and another one in the set."""
    none, levels = np.zeros(100, dtype=bool), np.arange(100)
    known: Any = SimpleNamespace(combs={"train": Comb(levels < 3, none, none), None: Comb(levels == 50, none, none)})
    values = measure_shares("gaps")(known, "train")
    for limit, flagged in ((0.0, [0, 1, 2, 50]), (0.01, [0, 1, 2]), (0.02, [0, 1, 2]), (0.03, [])):
        assert np.flatnonzero(is_beyond(values, limit)).tolist() == flagged
    assert not measure_shares("peaks")(known, "train").any()


def test_heights_are_above_neighbours_with_the_error_of_groups() -> None:
    generator = np.random.default_rng(0)
    density = 1000 + 500 * np.sin(np.arange(64) / 9)
    density[30] *= 1.2
    drawn = np.array([heights(generator.poisson(density, (20, 64))) for _ in range(200)])
    height, error = drawn[:, 0, 2:-2], drawn[:, 1, 2:-2]
    assert height.mean(axis=0)[28] == pytest.approx(0.2, abs=0.01)
    assert error.mean() == pytest.approx(height.std(axis=0).mean(), rel=0.05)


MNIST = """
6328781 3832 5756 6100 6371 6635 6236 6587 4952 6412 6055 5832 4956 6808 4436 4707 4789 4477 4584 5911 5113 6097 4774
3685 4239 4993 4051 3884 4098 5828 3818 4281 4805 2634 3214 3441 3655 4109 4480 2985 3269 4555 3623 3546 3102 3441 2883
4012 3330 2834 4107 4016 2319 3276 2997 3033 3795 4958 2333 2945 2874 2925 3198 3856 8188 2528 2910 2665 2724 2852 3335
3020 2873 3113 2308 2605 2910 2326 3090 2973 2421 2929 3664 2439 4267 4117 3955 2161 2734 2895 2032 2924 3089 2891 2739
2809 2813 2314 2723 2931 2548 2348 3876 2451 2738 2411 3011 2687 3021 2943 2655 2625 2999 3422 3762 2509 3192 2482 2661
2584 2672 2938 2772 3078 2279 2681 2822 2579 13266 2796 3021 3211 3234 2508 2556 2793 2720 3012 2749 3306 2756 4258 3134
2658 3115 2968 2722 2755 2840 2548 2845 3678 3063 2621 2980 3156 3153 2438 2571 2580 3060 2912 3023 3138 2509 2655 2265
2386 4171 4245 4589 2852 3123 3219 2766 2706 2870 2820 2856 2931 2849 2811 2538 3492 2936 3035 2900 2843 2814 3110 3182
9017 3345 3131 2899 3266 3766 3690 4104 3061 2887 2943 3192 5086 2920 3157 3582 3586 2932 3256 3631 3773 3864 4344 4317
3972 3739 4112 3714 3192 3426 3961 4200 4402 3908 4496 5589 4225 4877 3834 4652 5136 5081 6390 5666 4806 5238 4906 4455
4477 5481 5853 5275 6208 6174 5771 5556 6229 5667 6551 6686 13593 118612 261831 136217 56835
"""
"""Pixels of MNIST's 10,000 test images by level."""


def test_the_preset_of_mnist_allows_the_peaks_that_mnist_has() -> None:
    """Its digits seem to be smoothed binary ones, so levels such as 64, 128 and 191 are frequent."""
    histogram = np.array(MNIST.split(), dtype=int)
    assert histogram.sum() == 10_000 * 28 * 28
    of_mnist = tuple(float(flags.mean()) for flags in comb(histogram, histogram))
    assert of_mnist == (0, 7 / 256, 0)
    assert broken(of_mnist)  # images of unknown origin with so many peaks are refused
    assert not broken(of_mnist, parse_params(read_preset("mnist", PRESETS), "mnist").contract)
