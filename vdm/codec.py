"""Lossless compression of images at the bound (section 6): bits-back coding along the T-step chain.

A stack of bits is both source and sink.  Popping z from a distribution q takes -log2 q(z) bits off the stack, pushing
it under p puts -log2 p(z) bits on it.  Images are encoded in the order of Bit-Swap (Kingma, Abbeel, Ho 2019):

    pop z_0 ~ q(z_0 | x)                 push x   ~ p(x | z_0)
    pop z_t ~ q(z_t | z_s)               push z_s ~ p(z_s | z_t)       for each step s < t
                                         push z_1 ~ N(0, I)

On average the stack grows by the T-step bound.  Decoding goes backwards: every push becomes a pop of the same
distribution, and every pop a push.  So both directions must compute the same integers.

z lies on a grid of a power of two, near a 64th of its standard deviation.  A Gaussian is a table of integers that
add up to 2^32.  It depends on the standard deviation, which all dimensions of a step share, and on where the mean lies
in its cell of the grid, rounded to one of a few places.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vdm.diffusion import denoise, forward_step, reverse_step
from vdm.discretization import SUMMED, pixels_to_x, window
from vdm.grids import Grid
from vdm.model import VDM
from vdm.schedule import alpha, sigma

TOTAL = 2**32
"""The sum of the frequencies of a table."""
CELLS = 64
"""Cells of the grid in a standard deviation, up to a factor of sqrt(2).

Rounding to the grid is noise that the network does not expect.  With 50 steps, 4, 16 and 32 cells made the code of
Fashion-MNIST longer by 0.042, 0.008 and 0.003 bits/dim than 64; 128 gave the same length.
"""
PLACES = 128
"""Places of the mean in a standard deviation.  Rounding to them costs 4e-6 bits each time."""
REACH = 8.5
"""The standard deviations on each side that a table covers."""
WIDEST = 2**14
"""The largest standard deviation of a table, in cells."""
FRACTION = 4096
"""Standard deviations, in cells, are multiples of 1/FRACTION: a table follows from an integer alone."""
PIXELS_AT_ONCE = 2**13
"""Pixels that the network or the coder takes at once.  In float64 on a CPU the network is slower with more."""
ENTRIES_AT_ONCE = 2**13 * 257
"""Entries of the tables of pixels that are in memory at once."""
FARTHEST = 2**30
"""The largest mean, in cells."""


Tick = Callable[[int], object]
"""Is called with the number of images after every step."""


class Coder(Protocol):
    """A last-in, first-out entropy coder of symbols whose frequencies add up to `TOTAL`.

    `scattered` spreads the range of each symbol over all of `TOTAL`.  Pass the same value to push and to pop.
    """

    def push(self, starts: np.ndarray, frequencies: np.ndarray, *, scattered: bool = False) -> None:
        """Encode symbols, given by the start and the frequency of each, (N,) int64.  The first is popped first."""

    def pop(self, tables: np.ndarray, rows: np.ndarray, *, scattered: bool = False) -> np.ndarray:
        """Decode a symbol for each row of the cumulative `tables` (R,K+1), from 0 to `TOTAL`: (N,) int64."""

    def pop_plain(self, count: int) -> np.ndarray:
        """Decode integers from 0 to `TOTAL` - 1 that were pushed as starts of frequency 1: (count,) int64."""


class Gaussian(NamedTuple):
    """A Gaussian on the grid `spacing`: a table for each place of the mean in a cell, (R,K+1) int64.

    The encoder draws from q (`is_q`) and pushes under p.  Under p a value may lie beyond the table: then the last
    symbol is pushed, and the value follows as a plain integer.  q is scattered.  Where p is wrong, the bits that it
    leaves are not quite random, and noise drawn from them as they are would follow its errors: with 10 steps that added
    0.14 bits/dim on the digits.
    """

    tables: np.ndarray
    spacing: float
    is_q: bool

    @property
    def half(self) -> int:
        """The symbol of the mean's cell."""
        return int(self.tables.shape[1]) // 2 - 1

    def push(self, coder: Coder, z: Tensor, mean: Tensor) -> None:
        """Encode z (B,C,H,W), multiples of the spacing.

        Raises ArithmeticError if z lies beyond the table of q.  This happens only when a damaged stack is decoded.
        """
        cell, offset = self.place(mean)
        distance = (z / self.spacing).cpu().numpy().astype(np.int64).ravel() - cell
        far = np.abs(distance) > self.half
        if self.is_q and far.any():
            raise ArithmeticError("z lies beyond the table of q")
        coder.push(distance[far] % TOTAL, np.ones(far.sum(), np.int64))
        symbol = np.where(far, 2 * self.half + 1, distance + self.half)
        start = self.tables[offset, symbol]
        coder.push(start, self.tables[offset, symbol + 1] - start, scattered=self.is_q)

    def pop(self, coder: Coder, mean: Tensor) -> Tensor:
        """Decode z in the shape of the mean (B,C,H,W)."""
        cell, offset = self.place(mean)
        symbol = coder.pop(self.tables, offset, scattered=self.is_q)
        distance = symbol - self.half
        far = symbol > 2 * self.half
        plain = coder.pop_plain(int(far.sum()))
        distance[far] = np.where(plain < TOTAL // 2, plain, plain - TOTAL)
        return torch.from_numpy(cell + distance).to(mean).reshape(mean.shape) * self.spacing

    def place(self, mean: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the cell of each mean, and its place in the cell, (N,) int64.

        Raises ArithmeticError for means that are not finite or farther than `FARTHEST`.
        """
        places = len(self.tables)
        fine = (mean * (places / self.spacing)).round().cpu().numpy().ravel()
        if not np.abs(fine).max() < FARTHEST * places:
            raise ArithmeticError("the network's output is not finite or too large, or gamma_0 is too low")
        cell, offset = np.divmod(fine.astype(np.int64), places)
        return cell, offset


class Codec:
    """Encodes and decodes batches of images with a model in float64 and the steps of a grid.

    Decode the batches of `encode` in reverse order: the network must see the same batches in both directions.  A batch
    takes 2 log2(4.1 `cells`) bits per dimension off the stack before it returns them, and up to 6 more if there are
    many steps.  Raises ValueError unless `cells` is a power of two up to `PLACES`, for steps that are too unequal, for
    a grid with a variance of each dimension, and a model with dropout in training mode.
    """

    def __init__(self, model: VDM, grid: Grid, cells: int = CELLS) -> None:
        model.require_evaluation_mode()
        if PLACES % cells:
            raise ValueError(f"cells must divide {PLACES}, got {cells}")
        self.model = model
        self.places = PLACES // cells
        with torch.inference_mode():
            self.gammas = grid.levels(model.schedule)
        sigmas, shares = sigma(self.gammas), (-torch.expm1(self.gammas[:-1] - self.gammas[1:])).sqrt()
        # The standard deviations of q(z_0 | x) and q(z_t | z_s), and those of p(z_s | z_t) and N(0, I), for every z.
        forward = torch.cat([sigmas[:1], sigmas[1:] * shares]).cpu().numpy()
        backward = torch.cat([sigmas[:-1] * shares, torch.ones_like(sigmas[:1])]).cpu().numpy()
        if grid.variances is not None:
            if grid.variances.ndim > 1:
                raise ValueError("the codec takes one variance a step, since its tables serve all dimensions")
            backward[:-1] *= np.sqrt(grid.variances)
        self.spacing = spacings(np.minimum(forward, backward) / cells)
        self.forward, self.backward = widths(forward / self.spacing), widths(backward / self.spacing)

    @torch.inference_mode()
    def encode(
        self, coder: Coder, pixels: np.ndarray, tick: Tick = lambda _: None, classes: np.ndarray | None = None
    ) -> None:
        """Encode images (B,C,H,W) uint8 or uint16, and with classes (B,) these and the images given them.

        Raises ArithmeticError if the network's output is not finite, and ValueError unless they are images of the
        model.
        """
        self.model.require_images(pixels)
        z_t = self.q(0).pop(coder, self.first_mean(pixels))
        self.push_pixels(coder, pixels, z_t)
        for t in range(1, len(self.gammas)):
            z_s, z_t = z_t, self.q(t).pop(coder, self.forward_mean(z_t, t))
            self.p(t - 1).push(coder, z_s, self.backward_mean(z_t, t, classes))
            tick(len(pixels))
        self.p(-1).push(coder, z_t, torch.zeros_like(z_t))
        if classes is not None:
            encode_plainly(coder, classes, self.model.classes or 1)

    @torch.inference_mode()
    def decode(self, coder: Coder, count: int, tick: Tick = lambda _: None, *, classed: bool = False) -> np.ndarray:
        """Decode a batch of `count` images (count,C,H,W), uint8 or uint16.  `classed` says whether they have classes.

        Raises ArithmeticError if the stack turns out to be damaged.
        """
        classes = decode_plainly(coder, (count,), self.model.classes or 1) if classed else None
        z_s = self.p(-1).pop(coder, self.gammas.new_zeros((count, *self.model.image_shape)))
        for t in range(len(self.gammas) - 1, 0, -1):
            z_t = z_s
            z_s = self.p(t - 1).pop(coder, self.backward_mean(z_t, t, classes))
            self.q(t).push(coder, z_t, self.forward_mean(z_s, t))
            tick(count)
        pixels = self.pop_pixels(coder, z_s)
        self.q(0).push(coder, z_s, self.first_mean(pixels))
        return pixels

    def q(self, t: int) -> Gaussian:
        """Return q(z_t | z_s) without its mean; for t = 0, q(z_0 | x)."""
        return Gaussian(gaussian_tables(self.forward[t], self.places, open_ended=False), self.spacing[t], is_q=True)

    def p(self, s: int) -> Gaussian:
        """Return p(z_s | z_t) without its mean; for the last s, N(0, I)."""
        return Gaussian(gaussian_tables(self.backward[s], self.places, open_ended=True), self.spacing[s], is_q=False)

    def first_mean(self, pixels: np.ndarray) -> Tensor:
        """Return the mean of q(z_0 | x), alpha_0 x (eq. 1)."""
        levels = torch.from_numpy(pixels.copy()).to(self.gammas.device)  # torch takes no read-only or reversed arrays
        return alpha(self.gammas[0]) * pixels_to_x(levels, self.model.num_levels, self.gammas.dtype)

    def forward_mean(self, z_s: Tensor, t: int) -> Tensor:
        """Return the mean of q(z_t | z_s)."""
        return forward_step(z_s, torch.zeros_like(z_s), self.gammas[t - 1], self.gammas[t])

    def backward_mean(self, z_t: Tensor, t: int, classes: np.ndarray | None) -> Tensor:
        """Return the mean of p(z_s | z_t), given classes (B,), if any."""
        gamma_s, gamma_t = self.gammas[t - 1], self.gammas[t]
        eps_hat, size = torch.empty_like(z_t), max(1, PIXELS_AT_ONCE // z_t[0, 0].numel())
        for part in (slice(first, first + size) for first in range(0, len(z_t), size)):
            given = self.model.given(None if classes is None else classes[part])
            eps_hat[part] = given(z_t[part], gamma_t.expand(len(z_t[part])))
        return reverse_step(z_t, denoise(z_t, eps_hat, gamma_t), torch.zeros_like(z_t), gamma_s, gamma_t)

    def push_pixels(self, coder: Coder, pixels: np.ndarray, z_0: Tensor) -> None:
        """Encode pixels (B,C,H,W) under p(x | z_0), a part at a time, since the table of a pixel is large.

        Raises ArithmeticError if a pixel lies beyond the levels that z_0 leaves possible.  As with q, this happens only
        when a damaged stack is decoded.
        """
        z, level = z_0.reshape(-1), pixels.reshape(-1).astype(np.int64)
        for first in reversed(range(0, len(level), self.pixels_at_once)):
            part = slice(first, first + self.pixels_at_once)
            tables, lowest = self.pixel_tables(z[part])
            symbol, dims = level[part] - lowest, np.arange(len(tables))
            if symbol.min() < 0 or symbol.max() >= tables.shape[1] - 1:
                raise ArithmeticError("a pixel lies beyond the table of p")
            coder.push(tables[dims, symbol], tables[dims, symbol + 1] - tables[dims, symbol])

    def pop_pixels(self, coder: Coder, z_0: Tensor) -> np.ndarray:
        """Decode pixels in the shape of z_0 (B,C,H,W), uint8 or uint16."""
        popped = []
        for z in z_0.reshape(-1).split(self.pixels_at_once):
            tables, lowest = self.pixel_tables(z)
            popped.append(lowest + coder.pop(tables, np.arange(len(tables))))
        return np.concatenate(popped).reshape(z_0.shape).astype(np.uint8 if self.model.num_levels <= 256 else np.uint16)

    @property
    def pixels_at_once(self) -> int:
        """The number of pixels whose tables are in memory at once."""
        return max(1, min(PIXELS_AT_ONCE, ENTRIES_AT_ONCE // (self.levels_of_a_pixel + 1)))

    @property
    def levels_of_a_pixel(self) -> int:
        """The number W of levels in the table of a pixel: all of them, above `SUMMED` those that q can have drawn from.

        A level is at most `REACH` standard deviations and a cell from the z_0 that q draws, and the nearest one nearer.
        """
        num_levels = self.model.num_levels
        reach = window(float(self.gammas[0]), num_levels, REACH + 1)
        return num_levels if num_levels <= SUMMED else min(2 * reach + 1, num_levels)

    def pixel_tables(self, z_0: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the cumulative frequencies of p(x | z_0) for pixels z_0 (N,) of any images, and their lowest levels.

        These are (N,W+1) and (N,) int64, of the W levels of `levels_of_a_pixel`.
        """
        num_levels, count = self.model.num_levels, self.levels_of_a_pixel
        z, gamma_0 = (z_0 / alpha(self.gammas[0])).cpu().numpy().reshape(-1, 1), float(self.gammas[0])
        nearest = np.rint((z[:, 0] + 1) * num_levels / 2 - 0.5).clip(0, num_levels)
        lowest = (nearest.astype(np.int64) - count // 2).clip(0, num_levels - count)
        levels = pixels_to_x(torch.from_numpy(lowest[:, None] + np.arange(count)), num_levels, torch.float64).numpy()
        logits = -0.5 * np.square((z - levels) * math.exp(-gamma_0 / 2))
        weights = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
        return cumulative(weights[:, :-1] / weights[:, -1:]), lowest


def encode_plainly(coder: Coder, pixels: np.ndarray, num_levels: int) -> None:
    """Encode pixels of any shape, or classes, with all levels equally likely."""
    table = plain_table(num_levels)[0]
    level = pixels.ravel().astype(np.int64)
    coder.push(table[level], table[level + 1] - table[level])


def decode_plainly(coder: Coder, shape: tuple[int, ...], num_levels: int) -> np.ndarray:
    """Decode pixels of a shape, or classes, that were encoded plainly, int64."""
    rows = np.zeros(math.prod(shape), np.int64)
    return coder.pop(plain_table(num_levels), rows).reshape(shape)


def plain_table(num_levels: int) -> np.ndarray:
    """Return the cumulative frequencies of equally likely levels, (1,K+1) int64."""
    return cumulative(np.arange(1, num_levels)[None] / num_levels)


def spacings(deviations: np.ndarray) -> np.ndarray:
    """Return the power of two nearest to each standard deviation.  Raises ValueError."""
    if not deviations.min() > 0:
        raise ValueError("the noise schedule does not increase between two steps")
    return np.asarray(2.0 ** np.round(np.log2(deviations)))


def widths(deviations: np.ndarray) -> list[int]:
    """Return standard deviations in cells as multiples of 1/FRACTION.  Raises ValueError if one is too wide."""
    if not deviations.max() <= WIDEST:
        raise ValueError("the steps of the noise schedule are too unequal")
    return [round(FRACTION * width) for width in deviations.tolist()]


@lru_cache(maxsize=2**12)
def gaussian_tables(width: int, places: int, *, open_ended: bool) -> np.ndarray:
    """Return the tables of a Gaussian of standard deviation width / FRACTION cells, (places, K+1) int64.

    Row i is for a mean at i / places of the way from the centre of its cell to the next.
    """
    half = math.ceil(REACH * width / FRACTION) + 1
    edges = np.arange(-half, half) + 0.5 - np.arange(places)[:, None] / places
    return cumulative(normal_cdf(edges * FRACTION / width), plain=int(open_ended))


def cumulative(shares: np.ndarray, plain: int = 0) -> np.ndarray:
    """Return the cumulative frequencies (R,K+1) of K symbols with cumulative shares (R,K-1 - `plain`) in [0, 1].

    Every symbol has at least one of `TOTAL`; the last `plain` symbols have just one.
    """
    count = shares.shape[1] + 1 + plain
    table = np.zeros((len(shares), count + 1), np.int64)
    table[:, 1 : count - plain] = np.rint(shares * (TOTAL - count)) + np.arange(1, count - plain)
    table[:, count - plain :] = np.arange(TOTAL - plain, TOTAL + 1)
    return table


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Return the standard normal distribution function at x, which is limited to +-REACH.

    It is 1/2 + density(x) sum_n x^(2n+1) / (1 3 5 .. (2n+1)), and exp(x^2/2) is a sum of positive terms too.  Since it
    takes only +, * and /, every machine gets the same bits, which a library's erf does not promise.
    """
    x = x.clip(-REACH, REACH)
    square = x * x
    odd, power = x, np.ones_like(x)
    odd_sum, exponential = odd, power
    for n in range(1, 110):
        odd, power = odd * square / (2 * n + 1), power * square / (2 * n)
        odd_sum, exponential = odd_sum + odd, exponential + power
    return np.asarray(0.5 + odd_sum / exponential / math.sqrt(2 * math.pi))
