"""silu(group_norm(x + shift)) with dropout: what lies between two convolutions of the network.

CPUs with AVX-512 or AMX convolve faster if the channels of a pixel lie side by side ("channels last").  torch's group
norm is many times slower there, so `vdm.kernels` computes all of it in one pass over memory.  Elsewhere, in float64,
under torch.compile and for second derivatives it is torch's own.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

log = logging.getLogger(__name__)


def norm_silu(
    x: Tensor,
    norm: nn.GroupNorm,
    *,
    shift: Tensor | None = None,
    activate: bool = True,
    dropout: nn.Dropout | None = None,
) -> Tensor:
    """Return dropout(silu(norm(x + shift))), (B,C,H,W); `shift` (B,C), without `activate` no SiLU and no dropout.

    The kernels draw the same random numbers as `vdm.network.Dropout`, for values in the order of memory.  They differ
    from torch by less than 4e-6 of the largest value in float32, and by the rounding of the result in bfloat16.
    """
    if not (has_kernels(x) and x.is_contiguous(memory_format=torch.channels_last)):
        h = norm(x if shift is None else x + shift[:, :, None, None])
        h = silu(h) if activate else h
        return h if dropout is None or not activate else dropout(h)
    p = dropout.p if activate and dropout is not None and dropout.training else 0.0
    chance = draw(x, p) if p else NO_CHANCE
    constants = norm.eps, norm.num_groups, activate, chance
    return Fused.apply(x, norm.weight, norm.bias, shift, *constants)  # type: ignore[no-any-return, no-untyped-call]


def laid_out(x: Tensor) -> Tensor:
    """Return x (B,C,H,W) in the layout in which its device convolves fastest together with `norm_silu`."""
    return x.contiguous(memory_format=torch.channels_last) if has_kernels(x) else x


def has_kernels(x: Tensor) -> bool:
    """Whether this process computes `norm_silu` of x by `vdm.kernels`, if its channels lie last."""
    possible = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return possible and not torch.compiler.is_compiling() and compiled() is not None


@cache
def compiled() -> ModuleType | None:
    """Return `vdm.kernels`; None if the CPU gains nothing from them, or numba cannot keep what it compiles."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        from vdm import kernels
    except RuntimeError as error:
        log.warning("the network is slower than it could be: %s; set NUMBA_CACHE_DIR to a folder to write to", error)
        return None
    return kernels


def random_bits(count: int, p: float, device: torch.device) -> tuple[Tensor, int, float]:
    """Return `count` random int16, the number below which a share p of them lies, and 1 / (1 - p).

    p is rounded to a multiple of 2^-16.  A random number of 64 bits serves four values.
    """
    # An int16 is uniform over -2^15 to 2^15 - 1: it is below zeros - 2^15 with probability zeros / 2^16, about p.
    zeros = min(round(p * 2**16), 2**16 - 1)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), device=device)
    return bits.view(torch.int16)[:count], zeros - 2**15, 1 / (1 - zeros / 2**16)


class Chance(NamedTuple):
    """What dropout drew: `bits` (B,HWC) int16, below `zeros` where a value becomes 0; the others are times `kept`."""

    bits: np.ndarray
    zeros: np.int16
    kept: np.float32


NO_CHANCE = Chance(np.empty((0, 0), np.int16), np.int16(0), np.float32(1))


def draw(x: Tensor, p: float) -> Chance:
    """Return what dropout with probability p draws for x (B,C,H,W), from torch's global random numbers."""
    bits, zeros, kept = random_bits(x.numel(), p, x.device)
    return Chance(bits.view(len(x), -1).numpy(), np.int16(zeros), np.float32(kept))


class Fused(torch.autograd.Function):
    """`norm_silu` by `vdm.kernels`.  It keeps its input for the gradient, and no intermediate value."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shift: Tensor | None,
        eps: float,
        groups: int,
        activate: bool,
        chance: Chance,
    ) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.channels_last)
        moments = np.empty((2, len(x), groups), np.float32)
        arguments = rows(x), vector(weight), vector(bias), shifts(x, shift), activate, *chance
        in_threads(kernel("forward"), len(x), *arguments, np.float32(eps), rows(y), *moments)
        # The random numbers, too: with activation checkpointing, what is saved is dropped, and computed again.
        ctx.save_for_backward(x, weight, bias, shift, torch.from_numpy(chance.bits))
        ctx.others = moments, eps, activate, chance.zeros, chance.kept
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, shift, bits = ctx.saved_tensors
        moments, eps, activate, zeros, kept = ctx.others
        chance = Chance(bits.numpy(), zeros, kept)
        if torch.is_grad_enabled():  # these gradients will be differentiated
            y = by_torch(x, weight, bias, shift, moments.shape[2], eps, activate, chance)
            wanted = [number for number, needed in enumerate(ctx.needs_input_grad) if needed]
            inputs = [(x, weight, bias, shift)[number] for number in wanted]
            found = dict(zip(wanted, torch.autograd.grad(y, inputs, gradients, create_graph=True), strict=True))
            return tuple(found.get(number) for number in range(len(ctx.needs_input_grad)))
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        by_channel = np.empty((3, *x.shape[:2]), np.float32)
        arguments = rows(x), vector(weight), vector(bias), shifts(x, shift), activate, *chance
        in_threads(kernel("backward"), len(x), *arguments, rows(dy), *moments, rows(dx), *by_channel)
        dweight, dbias, dshift = map(torch.from_numpy, by_channel)
        return dx, dweight.sum(0), dbias.sum(0), None if shift is None else dshift.to(shift.dtype), *[None] * 4


def by_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activate: bool,
    chance: Chance,
) -> Tensor:
    """Return what `Fused` computes, by torch."""
    h = group_norm(x if shift is None else x + shift[:, :, None, None], groups, weight, bias, eps)
    h = silu(h) if activate else h
    if not len(chance.bits):
        return h
    b, c, height, width = x.shape
    kept = torch.from_numpy(chance.bits >= chance.zeros).view(b, height, width, c).permute(0, 3, 1, 2)
    return h * kept.to(h.dtype) * float(chance.kept)


def kernel(name: str) -> Callable[..., None]:
    """Return one of the compiled loops."""
    return getattr(compiled(), name)  # type: ignore[no-any-return]


def in_threads(loop: Callable[..., None], count: int, *arguments: object) -> None:
    """Call loop(first, last, *arguments) for parts of `count` images, in as many threads as torch uses."""
    threads = min(torch.get_num_threads(), count)
    ends = [count * part // threads for part in range(threads + 1)]
    others = [pool().submit(loop, *part, *arguments) for part in pairwise(ends[1:])]
    loop(*ends[:2], *arguments)
    for other in others:
        other.result()


@cache
def pool() -> ThreadPoolExecutor:
    """Return threads that wait for work; they are started as they are needed."""
    return ThreadPoolExecutor(torch.get_num_threads())


def rows(x: Tensor) -> np.ndarray:
    """Return x (B,C,H,W), channels last, as the memory that it is: (B,HWC) of float32, or the bits of bfloat16."""
    flat = x.detach().permute(0, 2, 3, 1).reshape(len(x), -1)
    return (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy()


def vector(parameter: Tensor) -> np.ndarray:
    """Return a parameter as an array of float32."""
    return parameter.detach().float().numpy()


def shifts(x: Tensor, shift: Tensor | None) -> np.ndarray:
    """Return the shift of every image and channel (B,C), float32."""
    return np.zeros(x.shape[:2], np.float32) if shift is None else vector(shift)
