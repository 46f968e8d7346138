"""The codec: tables, round trips with an oracle of a coder, and code lengths at the bound."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vdm import codec
from vdm.codec import FRACTION, TOTAL, Codec, decode_plainly, encode_plainly, gaussian_tables, normal_cdf
from vdm.diffusion import diffuse
from vdm.discretization import log_p_pixels, pixels_to_x
from vdm.grids import Grid
from vdm.model import VDM
from vdm.schedule import LinearSchedule, alpha, sigma
from vdm.vlb import bits_per_dim, finite_diffusion_loss, prior_loss, reconstruction_loss

SCATTER = 0x2545F491


class OneInteger:
    """An entropy coder whose state is one integer of any size: slow, and plainly right."""

    def __init__(self, state: int) -> None:
        self.state = state
        self.num_plain = 0

    def push(self, starts: np.ndarray, frequencies: np.ndarray, *, scattered: bool = False) -> None:
        for start, frequency in reversed(list(zip(starts.tolist(), frequencies.tolist(), strict=True))):
            place = start + self.state % frequency
            if scattered:
                place = place * pow(SCATTER, -1, TOTAL) % TOTAL
            self.state = self.state // frequency * TOTAL + place

    def pop(self, tables: np.ndarray, rows: np.ndarray, *, scattered: bool = False) -> np.ndarray:
        symbols = []
        for row in rows:
            place = self.state % TOTAL
            if scattered:
                place = place * SCATTER % TOTAL
            symbol = int(np.searchsorted(tables[row], place, side="right")) - 1
            start, end = tables[row, symbol : symbol + 2].tolist()
            self.state = (end - start) * (self.state // TOTAL) + place - start
            symbols.append(symbol)
        return np.array(symbols, np.int64)

    def pop_plain(self, count: int) -> np.ndarray:
        self.num_plain += count
        values = []
        for _ in range(count):
            values.append(self.state % TOTAL)
            self.state //= TOTAL
        return np.array(values, np.int64)


class CountsBits:
    """A coder that measures code lengths: it pops random symbols, and what is pushed is gone."""

    def __init__(self) -> None:
        self.bits = 0.0
        self.random = np.random.default_rng(0)

    def push(self, starts: np.ndarray, frequencies: np.ndarray, *, scattered: bool = False) -> None:
        self.bits += float((32 - np.log2(frequencies)).sum())

    def pop(self, tables: np.ndarray, rows: np.ndarray, *, scattered: bool = False) -> np.ndarray:
        places, symbols = self.random.integers(0, TOTAL, len(rows)), np.empty(len(rows), np.int64)
        for row in range(len(tables)):
            symbols[rows == row] = np.searchsorted(tables[row], places[rows == row], side="right") - 1
        self.bits -= float((32 - np.log2(tables[rows, symbols + 1] - tables[rows, symbols])).sum())
        return symbols

    def pop_plain(self, count: int) -> np.ndarray:
        return np.zeros(count, np.int64)


def some_pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 17, (count, 1, 8, 8), dtype=np.uint8)


def test_the_normal_distribution_function_is_that_of_the_library() -> None:
    x = np.linspace(-8.5, 8.5, 1001)
    assert np.abs(normal_cdf(x) - [0.5 * math.erfc(-value / 2**0.5) for value in x]).max() < 1e-14
    assert normal_cdf(np.array([-40.0, 40.0])).tolist() == normal_cdf(np.array([-8.5, 8.5])).tolist()


@pytest.mark.parametrize("open_ended", [True, False])
@pytest.mark.parametrize(("width", "places"), [(2.1, 32), (4.0, 32), (37.0, 2)])
def test_a_table_is_exact_in_integers(width: float, places: int, open_ended: bool) -> None:
    tables = gaussian_tables(round(width * FRACTION), places, open_ended=open_ended)
    assert tables.dtype == np.int64
    assert tables.shape[0] == places
    assert (tables[:, 0] == 0).all()
    assert (tables[:, -1] == TOTAL).all()
    masses = np.diff(tables)
    assert masses.min() >= 1
    cells = np.arange(tables.shape[1] - 1 - open_ended) - (tables.shape[1] - 2 - open_ended) // 2
    means = (masses[:, : len(cells)] / TOTAL) @ cells
    # Every cell gets one of 2^32 at least: at the ends of the table that moves the mean a little.
    assert means == pytest.approx(np.arange(places) / places, abs=1e-5)
    variances = (masses[:, : len(cells)] / TOTAL) @ np.square(cells) - means**2
    assert variances == pytest.approx(width**2 + 1 / 12, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "learned_monotone"},
        {"image_shape": (3, 5, 4), "num_levels": 256},
        {"num_levels": 2**16, "gamma_0": -24.39},
        {"num_levels": 1000, "gamma_0": -8.0},
    ],
)
def test_images_come_back_and_the_stack_too(changes: dict[str, Any], tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model(**changes).double()
    shape = (5, *model.image_shape)
    dtype = np.uint8 if model.num_levels <= 256 else np.uint16
    pixels = np.random.default_rng(1).integers(0, model.num_levels, shape, dtype=dtype)
    pixels[:, :, 0, :2] = 0, model.num_levels - 1
    tested = Codec(model, Grid(3), 4)
    coder = OneInteger(7**12000)
    before, steps = coder.state, list[int]()
    tested.encode(coder, pixels[2:], steps.append)
    tested.encode(coder, pixels[:2])
    assert steps == [3, 3, 3]
    first = tested.decode(coder, 2)
    assert (first == pixels[:2]).all()
    assert first.dtype == dtype
    assert (tested.decode(coder, 3, steps.append) == pixels[2:]).all()
    assert coder.state == before
    assert steps == [3] * 6
    assert coder.num_plain > 0  # random weights predict values beyond the tables


def test_coding_pixels_in_parts_changes_no_bit(tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().double()
    tested = Codec(model, Grid(2), 4)
    pixels = np.random.default_rng(1).integers(0, model.num_levels, (3, *model.image_shape), dtype=np.uint8)
    z = tested.first_mean(pixels)
    coders = [OneInteger(7**12000) for _ in range(2)]
    for coder, most in zip(coders, (codec.PIXELS_AT_ONCE, 50), strict=True):
        monkeypatch.setattr(codec, "PIXELS_AT_ONCE", most)
        tested.push_pixels(coder, pixels, z)
    assert coders[0].state == coders[1].state
    assert (tested.pop_pixels(coders[0], z) == pixels).all()
    assert coders[0].state == 7**12000


def test_pixels_are_coded_under_p_of_x_given_z_0(tiny_model: Callable[..., VDM]) -> None:
    """At a gamma_0 at which alpha_0 is not near 1 and z_0 leaves several levels possible."""
    model = tiny_model(gamma_0=-2.0).double()
    tested, gamma_0 = Codec(model, Grid(3)), torch.tensor(-2.0, dtype=torch.float64)
    z_0 = tested.first_mean(some_pixels(2))
    x = pixels_to_x(torch.from_numpy(some_pixels(2)), 17, torch.float64)
    torch.testing.assert_close(z_0, diffuse(x, gamma_0, torch.zeros_like(x)))
    z = z_0.reshape(-1, 1, 1, 1)
    log_p = torch.stack([log_p_pixels(torch.full_like(z, level).long(), z, gamma_0, 17) for level in range(17)], dim=1)
    tables, lowest = tested.pixel_tables(z_0.flatten())
    np.testing.assert_allclose(np.diff(tables) / TOTAL, log_p.exp(), atol=1e-8)
    assert not lowest.any()


@pytest.mark.parametrize("noises", [0.02, 0.3, 6.0])
def test_the_table_of_a_pixel_has_all_levels_that_q_can_have_drawn_from(
    noises: float, tiny_model: Callable[..., VDM]
) -> None:
    """Their shares are those of p among all levels, which are so many noises apart."""
    model = tiny_model(num_levels=4096, gamma_0=-2 * math.log(2048 * noises), image_shape=(1, 1, 6)).double()
    tested, gamma_0 = Codec(model, Grid(3)), model.schedule.gamma_0.detach()
    pixels = np.array([0, 1, 700, 2048, 4094, 4095], np.uint16)
    reach = (codec.REACH + 1 / 64) * torch.exp(gamma_0 / 2) * alpha(gamma_0)
    for sign in (-1, 0, 1):
        z = tested.first_mean(pixels) + sign * reach
        tables, lowest = tested.pixel_tables(z)
        assert (lowest <= pixels).all()
        assert (pixels < lowest + tables.shape[1] - 1).all()
        places = np.arange(tables.shape[1] - 1)
        levels = torch.from_numpy(lowest[:, None] + places)
        log_p = [log_p_pixels(levels[:, [i]].reshape(-1, 1, 1, 1), z.reshape(-1, 1, 1, 1), gamma_0, 4096)
                 for i in range(0, len(places), 97)]  # fmt: skip
        shares = np.diff(tables)[:, ::97] / TOTAL
        np.testing.assert_allclose(shares, torch.stack(log_p, dim=1).exp(), atol=1e-6)


def test_a_pixel_beyond_its_table_is_damage(tiny_model: Callable[..., VDM]) -> None:
    tested = Codec(tiny_model(num_levels=2**16, gamma_0=-24.39, image_shape=(1, 1, 1)).double(), Grid(3))
    z_0 = tested.first_mean(np.array([[[[1000]]]], np.uint16))
    for level in (900, 1100):
        with pytest.raises(ArithmeticError, match="beyond the table"):
            tested.push_pixels(OneInteger(7**100), np.array([[[[level]]]], np.uint16), z_0)


def test_an_image_of_16_bits_is_compressed_in_little_memory(tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model(num_levels=2**16, gamma_0=-24.39, image_shape=(1, 32, 32)).double()
    pixels = np.random.default_rng(0).integers(0, 2**16, (1, 1, 32, 32), dtype=np.uint16)
    gaussian_tables.cache_clear()
    tracemalloc.start()
    try:
        tested, coder = Codec(model, Grid(3)), CountsBits()
        z_0 = tested.q(0).pop(coder, tested.first_mean(pixels))
        tested.push_pixels(coder, pixels, z_0)
        found = tested.pixel_tables(z_0.flatten())[0]
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert found.shape == (1024, 8)


def test_noise_is_drawn_from_scattered_bits_and_nothing_else_is(tiny_model: Callable[..., VDM]) -> None:
    """Noise drawn from bits as they are would follow the errors of the network: the code would be longer."""

    class Notes(OneInteger):
        popped, pushed = list[bool](), list[bool]()

        def push(self, starts: np.ndarray, frequencies: np.ndarray, *, scattered: bool = False) -> None:
            self.pushed.append(scattered)
            super().push(starts, frequencies, scattered=scattered)

        def pop(self, tables: np.ndarray, rows: np.ndarray, *, scattered: bool = False) -> np.ndarray:
            self.popped.append(scattered)
            return super().pop(tables, rows, scattered=scattered)

    coder = Notes(7**3000)
    Codec(tiny_model().double(), Grid(2), 4).encode(coder, some_pixels(1))
    assert coder.popped == [True] * 3
    assert set(coder.pushed) == {False}


def test_plain_images_come_back() -> None:
    before = 7**100
    coder, pixels = OneInteger(before), some_pixels(2)
    encode_plainly(coder, pixels, 17)
    assert math.log2(coder.state) - math.log2(before) == pytest.approx(pixels.size * math.log2(17), abs=1e-3)
    assert (decode_plainly(coder, pixels.shape, 17) == pixels).all()
    assert coder.state == before


VARIANCE = 0.15


class KnowsTheData:
    """Stands for a VDM of pixels that are independent and Gaussian: its noise predictor is exact."""

    def __init__(self, num_dims: int, num_levels: int, gamma_0: float) -> None:
        self.image_shape, self.num_levels = (1, 1, num_dims), num_levels
        self.schedule = LinearSchedule(gamma_0, 5.0, learned=False).double()

    def require_evaluation_mode(self) -> None:
        """It has no dropout."""

    def require_images(self, pixels: np.ndarray) -> None:
        assert pixels.shape[1:] == self.image_shape

    def parameters(self) -> Any:
        return self.schedule.parameters()

    def given(self, classes: None) -> Any:
        return self.network

    def network(self, z_t: Tensor, gamma_t: Tensor) -> Tensor:
        a, s = alpha(gamma_t[0]), sigma(gamma_t[0])
        return s * z_t / (a**2 * VARIANCE + s**2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_timesteps", "num_levels", "gamma_0"),
    [(10, 17, -9.0), (50, 17, -9.0), (50, 2**16, -24.39), (50, 2**16, -18.0)],
)
def test_the_code_is_as_long_as_the_bound(num_timesteps: int, num_levels: int, gamma_0: float) -> None:
    num_dims = 60_000
    model: Any = KnowsTheData(num_dims, num_levels, gamma_0)
    random = np.random.default_rng(0)
    levels = np.round((random.normal(0, VARIANCE**0.5, num_dims) + 1) * num_levels / 2 - 0.5).clip(0, num_levels - 1)
    pixels = levels.astype(np.uint8 if num_levels <= 256 else np.uint16).reshape(1, 1, 1, -1)
    coder = CountsBits()
    Codec(model, Grid(num_timesteps)).encode(coder, pixels)
    x = pixels_to_x(torch.from_numpy(pixels), num_levels, torch.float64)
    ends = model.schedule.gamma_0, model.schedule.gamma_1
    bound = prior_loss(x, ends[1]) + reconstruction_loss(torch.from_numpy(pixels), ends[0], num_levels)
    for step in range(1, num_timesteps + 1):
        eps = torch.from_numpy(random.standard_normal(x.shape))
        gamma_s, gamma_t = model.schedule(torch.tensor([step - 1.0, step]).double() / num_timesteps)[:, None]
        bound += finite_diffusion_loss(x, eps, gamma_s, gamma_t, num_timesteps, model.network) / num_timesteps
    expected = float(bits_per_dim(bound, num_dims)[0])
    # log q - log p of Gaussians with a divergence of k nats has variance 2 k.
    error = math.sqrt(2 * expected / math.log(2) / num_dims)
    discretised = 0.05 if num_timesteps == 10 else 0.0  # the grid loses information, so the code may be shorter
    assert -4 * error - discretised < coder.bits / num_dims - expected < 4 * error


def test_what_cannot_be_coded_is_refused(tiny_model: Callable[..., VDM]) -> None:
    with pytest.raises(ValueError, match="got 48"):
        Codec(tiny_model(), Grid(3), 48)
    with pytest.raises(ValueError, match="in training mode, with dropout"):
        Codec(tiny_model(dropout=0.1).train(), Grid(3))
    with pytest.raises(ValueError, match="too unequal"):
        codec.widths(np.array([4.0, codec.WIDEST + 1]))
    model = tiny_model().double()
    with pytest.raises(ValueError, match=r"images of the model are \(1, 8, 8\), got \(1, 8, 7\)"):
        Codec(model, Grid(3)).encode(OneInteger(7**3000), some_pixels(1)[..., 1:])
    with torch.no_grad():
        model.network.conv_out.bias.fill_(math.inf)
    with pytest.raises(ArithmeticError, match="not finite"):
        Codec(model, Grid(2)).encode(OneInteger(7**3000), some_pixels(1))
    with torch.no_grad():
        model.schedule.span.fill_(0)  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match="does not increase"):
        Codec(model, Grid(4))
