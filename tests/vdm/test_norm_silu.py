"""The kernels of `vdm.norm_silu` against torch in float64, on whatever CPU there is."""

import subprocess
import sys
import weakref
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu
from torch.utils.checkpoint import checkpoint

from vdm import norm_silu as layers
from vdm.network import Dropout, NoisePredictor
from vdm.norm_silu import laid_out, norm_silu

kernels = pytest.importorskip("vdm.kernels")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> ModuleType:
        return kernels  # type: ignore[no-any-return]

    monkeypatch.setattr(layers, "compiled", found)


def some_norm(groups: int, channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, 1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def inputs(norm: nn.GroupNorm, size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(3, norm.num_channels, *size) * 2 + 1
    shift = torch.randn(3, norm.num_channels)
    return laid_out(x.to(dtype)).requires_grad_(), shift.to(dtype).requires_grad_()


def exact(x: Tensor, norm: nn.GroupNorm, shift: Tensor, activate: bool) -> tuple[Tensor, list[Tensor]]:
    """Return what `norm_silu` is to return, and what it is made of, in float64."""
    parts = [each.detach().double().requires_grad_() for each in (x, shift, norm.weight, norm.bias)]
    h = group_norm(parts[0] + parts[1][:, :, None, None], norm.num_groups, parts[2], parts[3], norm.eps)
    return (silu(h) if activate else h), parts


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize(
    ("groups", "channels", "size"),
    [(1, 4, (1, 1)), (4, 4, (3, 5)), (8, 32, (8, 8)), (32, 64, (28, 28)), (2, 600, (2, 3)), (6, 30, (7, 11))],
)
def test_equals_torch(
    groups: int, channels: int, size: tuple[int, int], activate: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    norm = some_norm(groups, channels)
    x, shift = inputs(norm, size, dtype)
    y = norm_silu(x, norm, shift=shift, activate=activate)
    expected, parts = exact(x, norm, shift, activate)
    assert y.grad_fn is not None
    assert "Fused" in y.grad_fn.name()
    assert y.dtype == dtype
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, shift, norm.weight, norm.bias), dy)
    for value, true in zip((y, *found), (expected, *torch.autograd.grad(expected, parts, dy.double())), strict=True):
        # With as many groups as channels, the mean takes every shift away: its gradient is rounding alone.
        largest = max(true.abs().max().item(), dy.abs().max().item())
        torch.testing.assert_close(value.double(), true, rtol=0, atol=tolerance * largest)


def test_infinite_and_large_values_are_torch_s() -> None:
    norm = nn.GroupNorm(1, 2, 1e-6)
    x = torch.tensor([[[[1e4, -3e3]], [[2.0, 5.0]]], [[[float("inf"), 1.0]], [[2.0, 3.0]]]])
    found = norm_silu(laid_out(x), norm)
    torch.testing.assert_close(found[0], silu(norm(x))[0], rtol=1e-5, atol=1e-6)
    assert not found[1].isfinite().any()  # training sees it, and says that it diverged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_is_that_of_the_same_random_numbers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = some_norm(4, 8)
    x, shift = inputs(norm, (5, 6), dtype)
    dropout = Dropout(0.3)
    torch.manual_seed(1)
    y = norm_silu(x, norm, shift=shift, dropout=dropout)
    torch.manual_seed(1)
    factors = dropout(torch.ones(3, 5, 6, 8)).permute(0, 3, 1, 2)
    whole = norm_silu(x, norm, shift=shift)
    torch.testing.assert_close(y, (whole * factors).to(dtype), rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=0)
    dy = torch.randn_like(y)
    dropped = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(dropped, torch.autograd.grad(whole, x, (dy * factors).to(dtype)), rtol=0.02, atol=0.02)
    assert torch.equal(norm_silu(x, norm, shift=shift, dropout=dropout.eval()), whole)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    norm, before = some_norm(8, 32), torch.get_num_threads()
    x, shift = inputs(norm, (8, 8), torch.float32)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = norm_silu(x, norm, shift=shift)
            results.append([y, *torch.autograd.grad(y.square().sum(), (x, shift, norm.weight, norm.bias))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_second_derivatives_are_torch_s() -> None:
    torch.manual_seed(0)
    norm = some_norm(2, 4)
    x, shift = inputs(norm, (3, 3), torch.float32)

    def penalty(y: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.square().sum(), of, create_graph=True)
        return torch.autograd.grad(sum((each.square().sum() for each in first), torch.zeros(())), of)

    expected, parts = exact(x, norm, shift, activate=True)
    found = penalty(norm_silu(x, norm, shift=shift), x, shift)
    for value, true in zip(found, penalty(expected, *parts[:2]), strict=True):
        torch.testing.assert_close(value.double(), true, rtol=1e-3, atol=1e-3 * true.abs().max().item())


def test_second_derivatives_of_a_frozen_layer_are_torch_s() -> None:
    torch.manual_seed(0)
    norm = some_norm(2, 4).requires_grad_(False)
    x, _ = inputs(norm, (3, 3), torch.float32)
    found: list[Tensor] = []
    for y in (norm_silu(x, norm), silu(norm(x))):
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found += torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3 * found[1].abs().max().item())


def test_activation_checkpointing_drops_the_random_numbers_and_draws_them_again() -> None:
    torch.manual_seed(0)
    norm, dropout = some_norm(2, 4), Dropout(0.5)
    drawn: list[weakref.ref[np.ndarray]] = []
    x, _ = inputs(norm, (3, 3), torch.float32)

    def drawing(x: Tensor, p: float) -> layers.Chance:
        chance = draw(x, p)
        drawn.append(weakref.ref(chance.bits))
        return chance

    draw = layers.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "draw", drawing)
        torch.manual_seed(1)
        y = checkpoint(norm_silu, x, norm, dropout=dropout, use_reentrant=False)
        assert [bits() is None for bits in drawn] == [True]
        (found,) = torch.autograd.grad(y.sum(), x)
    assert len(drawn) == 2
    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(norm_silu(x, norm, dropout=dropout).sum(), x)
    assert torch.equal(found, expected)


def test_float64_is_torch_s_alone() -> None:
    norm = some_norm(2, 4).double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert torch.equal(norm_silu(x, norm), silu(norm(x)))
    assert laid_out(x[:, :, :1]) is not None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_computes_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    torch.manual_seed(0)
    network = NoisePredictor(
        channels=3, width=8, blocks=2, attention_everywhere=True, fourier_exponents=[1], norm_groups=4, norm_eps=1e-6,
        dropout=0.0, gamma_min=-9.0, gamma_max=5.0, augmentation_input=False, classes=3,
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    z_t, gamma_t = torch.randn(4, 3, 6, 6), torch.linspace(-9, 5, 4)

    def computed() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            eps_hat = network(z_t, gamma_t)
        return [eps_hat, *torch.autograd.grad(eps_hat.square().sum(), list(network.parameters()))]

    with_kernels = computed()
    monkeypatch.setattr(layers, "compiled", lambda: None)
    tolerance = 1e-5 if precision == "float32" else 0.03
    for found, expected in zip(with_kernels, computed(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


def test_without_a_folder_to_write_to_torch_computes_and_the_log_says_so() -> None:
    code = """
import torch
from numba.core import caching

caching.CacheImpl._locator_classes = []  # as if no folder could be written to
torch.backends.cpu.get_cpu_capability = lambda: "AVX512"
from vdm.norm_silu import compiled

print(compiled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert "NUMBA_CACHE_DIR" in done.stderr
