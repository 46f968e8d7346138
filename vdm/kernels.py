"""Loops for `vdm.norm_silu`, compiled by numba: normalisation, SiLU and dropout of an image in one pass.

An image is a row of float32, or of int16 that hold the bits of bfloat16, in which the channels of a pixel lie side by
side.  A loop runs over about ROW values, so that it fills the registers of a CPU also with few channels; what holds for
a channel is repeated that often.  Every image is computed by itself, and its sums are added in one order.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

ROW = 256
COMPILED: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
# Sums in several registers need another order than the source's.  The values stay exact for infinities and NaN.
REORDERED = {"contract", "arcp", "nsz", "reassoc"}
LARGEST = np.float32(9)
"""From here on, tanh is 1 in float32."""
NUMERATOR = tuple(
    np.float32(each)
    for each in (
        9.99999993e-01,
        1.30840090e-01,
        3.10395456e-03,
        1.11542798e-05,
        -2.02250519e-08,
        5.27783781e-11,
        -8.48836873e-14,
    )
)
DENOMINATOR = tuple(np.float32(each) for each in (4.64173361e-01, 2.44951730e-02, 2.54614213e-04))
"""tanh(v) = v numerator(v^2) / (1 + v^2 denominator(v^2)) to 7e-9 of its size, fitted by weighted least squares."""


def widen(value: Any) -> Any:
    """Return a value as float32; an int16 is the upper half of its bits."""
    raise NotImplementedError("in compiled functions only")


def narrow(value: Any, like: Any) -> Any:
    """Return a float32 in the type of `like`, rounded to the nearest."""
    raise NotImplementedError("in compiled functions only")


@overload(widen, inline="always")
def _widen(value):  # type: ignore[no-untyped-def]
    if value == types.int16:
        return lambda value: np.int32(np.int32(value) << 16).view(np.float32)
    return lambda value: value


@overload(narrow, inline="always")
def _narrow(value, like):  # type: ignore[no-untyped-def]
    if like != types.int16:
        return lambda value, like: value

    def rounded(value, like):  # type: ignore[no-untyped-def]
        bits = np.float32(value).view(np.int32)
        to_even = np.int32(np.int32(bits >> 16) & 1)
        return np.int16(np.int32(np.int32(bits + 0x7FFF) + to_even) >> 16)

    return rounded


@njit(inline="always", fastmath=REORDERED, **COMPILED)  # type: ignore[untyped-decorator]
def sigmoid(value: Any) -> Any:
    """Return 1/2 + tanh(value / 2) / 2.

    A quotient of polynomials fills the registers of a CPU, which exp does not.
    """
    half = np.float32(0.5)
    v = min(max(half * value, -LARGEST), LARGEST)
    s = v * v
    top = NUMERATOR[6]
    top = top * s + NUMERATOR[5]
    top = top * s + NUMERATOR[4]
    top = top * s + NUMERATOR[3]
    top = top * s + NUMERATOR[2]
    top = top * s + NUMERATOR[1]
    top = top * s + NUMERATOR[0]
    bottom = DENOMINATOR[2] * s + DENOMINATOR[1]
    bottom = bottom * s + DENOMINATOR[0]
    bottom = bottom * s + np.float32(1)
    return half + half * (v * top / bottom)


@njit(fastmath=REORDERED, **COMPILED)  # type: ignore[untyped-decorator]
def fold(sums: Any, channels: int) -> None:
    """Add up a row of sums into its first `channels` values."""
    for start in range(channels, len(sums), channels):
        for c in range(channels):
            sums[c] += sums[start + c]


@njit(**COMPILED)  # type: ignore[untyped-decorator]
def repeat(row: Any, channels: int) -> None:
    """Repeat the first `channels` values of a row up to its end."""
    for k in range(channels, len(row)):
        row[k] = row[k - channels]


@njit(fastmath=REORDERED, **COMPILED)  # type: ignore[untyped-decorator]
def moments(x: Any, shift: Any, eps: Any, mean: Any, scale: Any, sums: Any, centre: Any) -> None:
    """Write the mean and 1 / standard deviation of every group of x + shift, for one image (HWC).

    `sums` and `centre` are rows of working memory.
    """
    channels, groups = len(shift), len(mean)
    each = channels // groups
    pixels = np.float32(len(x) // channels)
    sums[:] = np.float32(0)
    for start in range(0, len(x), len(sums)):
        part = x[start : start + len(sums)]
        for k in range(len(part)):
            sums[k] += widen(part[k])
    fold(sums, channels)
    for group in range(groups):
        total = np.float32(0)
        for c in range(group * each, (group + 1) * each):
            total += sums[c] + pixels * shift[c]
        mean[group] = total / (pixels * np.float32(each))
        for c in range(group * each, (group + 1) * each):
            centre[c] = mean[group] - shift[c]
    repeat(centre, channels)
    sums[:] = np.float32(0)
    for start in range(0, len(x), len(sums)):
        part = x[start : start + len(sums)]
        for k in range(len(part)):
            difference = widen(part[k]) - centre[k]
            sums[k] += difference * difference
    fold(sums, channels)
    for group in range(groups):
        total = np.float32(0)
        for c in range(group * each, (group + 1) * each):
            total += sums[c]
        scale[group] = np.float32(1) / np.sqrt(total / (pixels * np.float32(each)) + eps)


@njit(fastmath=REORDERED, **COMPILED)  # type: ignore[untyped-decorator]
def forward(
    first: int,
    last: int,
    x: Any,
    weight: Any,
    bias: Any,
    shift: Any,
    activate: bool,
    bits: Any,
    zeros: Any,
    kept: Any,
    eps: Any,
    y: Any,
    mean: Any,
    scale: Any,
) -> None:
    """Write y, and the mean and 1 / standard deviation of every group (B,G), for the images from `first` to `last`.

    `shift` (B,C) is added to x (B,HWC).  With `bits` (B,HWC), y is 0 where they are below `zeros`, else times `kept`.
    """
    channels = len(weight)
    each = channels // mean.shape[1]
    length = channels * max(1, ROW // channels)
    factor, offset, sums = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    for image in range(first, last):
        moments(x[image], shift[image], eps, mean[image], scale[image], sums, offset)
        for c in range(channels):
            factor[c] = weight[c] * scale[image, c // each]
            offset[c] = bias[c] + (shift[image, c] - mean[image, c // each]) * factor[c]
        repeat(factor, channels)
        repeat(offset, channels)
        for start in range(0, x.shape[1], length):
            xs, ys = x[image, start : start + length], y[image, start : start + length]
            if len(bits):
                chance = bits[image, start : start + length]
                for k in range(len(xs)):
                    n = widen(xs[k]) * factor[k] + offset[k]
                    value = n * sigmoid(n) * kept
                    ys[k] = narrow(value if chance[k] >= zeros else np.float32(0), xs[k])
            elif activate:
                for k in range(len(xs)):
                    n = widen(xs[k]) * factor[k] + offset[k]
                    ys[k] = narrow(n * sigmoid(n), xs[k])
            else:
                for k in range(len(xs)):
                    ys[k] = narrow(widen(xs[k]) * factor[k] + offset[k], xs[k])


@njit(fastmath=REORDERED, **COMPILED)  # type: ignore[untyped-decorator]
def backward(
    first: int,
    last: int,
    x: Any,
    weight: Any,
    bias: Any,
    shift: Any,
    activate: bool,
    bits: Any,
    zeros: Any,
    kept: Any,
    dy: Any,
    mean: Any,
    scale: Any,
    dx: Any,
    dweight: Any,
    dbias: Any,
    dshift: Any,
) -> None:
    """Write the gradients of the images from `first` to `last`: dx (B,HWC), and the others by channel, (B,C)."""
    channels, groups = len(weight), mean.shape[1]
    each = channels // groups
    length = channels * max(1, ROW // channels)
    one = np.float32(1)
    values = np.float32(x.shape[1] // groups)
    factor, offset, centre = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    slope, constant = np.empty(length, np.float32), np.empty(length, np.float32)
    sums, products = np.empty(length, np.float32), np.empty(length, np.float32)
    gradient = np.empty(x.shape[1], np.float32)  # with respect to the normalised values
    for image in range(first, last):
        for c in range(channels):
            centre[c] = mean[image, c // each] - shift[image, c]
            factor[c] = weight[c] * scale[image, c // each]
            offset[c] = bias[c]
        repeat(centre, channels)
        repeat(factor, channels)
        repeat(offset, channels)
        sums[:] = np.float32(0)
        products[:] = np.float32(0)
        for start in range(0, x.shape[1], length):
            xs, dys = x[image, start : start + length], dy[image, start : start + length]
            gradients = gradient[start : start + length]
            if len(bits):
                chance = bits[image, start : start + length]
                for k in range(len(xs)):
                    difference = widen(xs[k]) - centre[k]
                    n = difference * factor[k] + offset[k]
                    s = sigmoid(n)
                    passed = widen(dys[k]) * kept if chance[k] >= zeros else np.float32(0)
                    g = passed * (s * (one + n * (one - s)))
                    gradients[k] = g
                    sums[k] += g
                    products[k] += g * difference
            elif activate:
                for k in range(len(xs)):
                    difference = widen(xs[k]) - centre[k]
                    n = difference * factor[k] + offset[k]
                    s = sigmoid(n)
                    g = widen(dys[k]) * (s * (one + n * (one - s)))
                    gradients[k] = g
                    sums[k] += g
                    products[k] += g * difference
            else:
                for k in range(len(xs)):
                    g = widen(dys[k])
                    gradients[k] = g
                    sums[k] += g
                    products[k] += g * (widen(xs[k]) - centre[k])
        fold(sums, channels)
        fold(products, channels)
        for group in range(groups):
            total, product, r = np.float32(0), np.float32(0), scale[image, group]
            for c in range(group * each, (group + 1) * each):
                total += weight[c] * sums[c]
                product += weight[c] * products[c]
                dbias[image, c] = sums[c]
                dweight[image, c] = products[c] * r
            for c in range(group * each, (group + 1) * each):
                slope[c] = -product * r * r * r / values
                constant[c] = -total * r / values
        repeat(slope, channels)
        repeat(constant, channels)
        sums[:] = np.float32(0)
        for start in range(0, x.shape[1], length):
            xs, dxs = x[image, start : start + length], dx[image, start : start + length]
            gradients = gradient[start : start + length]
            for k in range(len(xs)):
                value = gradients[k] * factor[k] + (widen(xs[k]) - centre[k]) * slope[k] + constant[k]
                sums[k] += value
                dxs[k] = narrow(value, xs[k])
        fold(sums, channels)
        for c in range(channels):
            dshift[image, c] = sums[c]
