"""The noise predictor."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from torch.nn.functional import silu

from vdm import network
from vdm.model import VDM, count_parameters
from vdm.network import Dropout, NoisePredictor, attention, fourier_features, time_embedding

SETTINGS = {
    "channels": 3,
    "width": 8,
    "blocks": 2,
    "attention_everywhere": False,
    "fourier_exponents": [6, 7],
    "norm_groups": 4,
    "norm_eps": 1e-6,
    "dropout": 0.0,
    "gamma_min": -13.3,
    "gamma_max": 5.0,
    "augmentation_input": False,
}


def predictor(**changes: object) -> NoisePredictor:
    torch.manual_seed(0)
    return NoisePredictor(**{**SETTINGS, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9), (4, 1, 1)])
def test_the_initial_prediction_is_the_input_to_which_no_block_adds_anything(shape: tuple[int, int, int]) -> None:
    for attention_everywhere in (False, True):
        new = predictor(channels=shape[0], attention_everywhere=attention_everywhere)
        z, x = torch.randn(2, *shape), torch.randn(2, 8, 5, 5)
        assert torch.equal(new(z, torch.tensor([-13.3, 5.0])), z)
        assert torch.equal(new.middle_1(x, torch.randn(2, 32)), x)
        assert torch.equal(new.middle_attention(x), x)


def test_the_papers_cifar10_network_has_30_58_million_parameters() -> None:
    papers = TINY | {"image_shape": (3, 32, 32), "width": 128, "blocks": 32, "norm_groups": 32}
    count = count_parameters(**papers | {"augmentation_input": True, "fourier_exponents": [6, 7]})
    assert count / 1e6 == pytest.approx(30.58, abs=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 0}, "blocks 0"),
        ({"norm_groups": 0}, "norm_groups 0"),
        ({"norm_groups": 3}, "width 8 must be even, at least 4 and a multiple of norm_groups 3"),
        ({"width": 7}, "width 7"),
        ({"fourier_exponents": [65]}, "fourier_exponents"),
        ({"norm_eps": math.nan}, "norm_eps"),
        ({"dropout": 1.0}, "dropout"),
        ({"image_shape": (8, 8)}, "images cannot have shape"),
        ({"num_levels": 2**16 + 1}, "images cannot have shape"),
    ],
)
def test_arguments_with_which_no_model_is_possible_are_refused(change: dict[str, Any], message: str) -> None:
    """They may come from a config.json of somebody else."""
    with pytest.raises(ValueError, match=message):
        VDM(**TINY | change)


def test_a_group_of_one_number_cannot_be_normalised() -> None:
    one_pixel = TINY | {"image_shape": (1, 1, 1)}
    with pytest.raises(ValueError, match="norm_groups 8 normalises single numbers"):
        VDM(**one_pixel | {"norm_groups": 8})
    eps_hat = VDM(**one_pixel | {"norm_groups": 4}).network(torch.zeros(1, 1, 1, 1), torch.zeros(1))
    assert eps_hat.isfinite().all()


def test_the_augmentation_flag_is_zero_when_left_out() -> None:
    network = predictor(augmentation_input=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    z, gamma = torch.randn(2, 3, 6, 6), torch.tensor([-3.0, 1.0])
    assert torch.equal(network(z, gamma), network(z, gamma, torch.zeros(2)))
    assert not torch.equal(network(z, gamma), network(z, gamma, torch.ones(2)))


def test_fourier_features_are_sines_then_cosines_by_channel() -> None:
    z = torch.rand(1, 2, 1, 1, dtype=torch.float64)
    first, second = z.flatten().tolist()
    tau = 2 * torch.pi
    angles = torch.tensor([tau * 64 * first, tau * 128 * first, tau * 64 * second, tau * 128 * second])
    angles = angles.double()
    expected = torch.cat([angles.sin(), angles.cos()])
    torch.testing.assert_close(fourier_features(z, [6, 7]).flatten(), expected, atol=1e-4, rtol=0)


def test_fine_fourier_features_keep_their_digits_in_float32() -> None:
    """Angles of 2e5 are rounded to 0.01 in float32; 2^n z is not, and neither is what remains of it modulo 1."""
    z = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = fourier_features(z, [3, 14]).double()
    exact = torch.cat([torch.sin(2 * torch.pi * z.double() * 2**n) for n in (3, 14)], dim=1)
    torch.testing.assert_close(found[:, :2], exact, atol=1e-6, rtol=0)


def test_autocast_leaves_sines_and_the_identity_path_in_float32() -> None:
    network = predictor()
    z, gamma = torch.randn(2, 3, 8, 8), torch.tensor([-13.3, 5.0])
    with torch.autocast("cpu", torch.bfloat16):
        out = network(z, gamma)
    assert out.dtype == torch.float32
    assert torch.equal(out, z)


def test_the_time_embedding_spans_a_thousand_radians() -> None:
    embedding = time_embedding(torch.tensor([-13.3, 5.0], dtype=torch.float64), 8, -13.3, 5.0)
    angles = 1000 * torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4], dtype=torch.float64)
    torch.testing.assert_close(embedding[0], torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(embedding[1], torch.cat([angles.sin(), angles.cos()]))


def test_the_condition_is_that_of_googles_score_unet() -> None:
    """swish(dense(swish(dense(embedding and flag)))), added to a block between its convolution and its second norm.

    The recorded networks of others cannot show this: their width is the number of their groups, so the second norm
    takes away what the condition adds to a channel.
    """
    model = predictor(augmentation_input=True).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gamma, flag = torch.tensor([-13.3, -3.0, 5.0], dtype=torch.float64), torch.tensor([0.0, 1.0, 1.0])
    time = 1000 * (gamma.numpy()[:, None] + 13.3) / 18.3 * 10_000.0 ** (-np.arange(4) / 3)
    condition = np.concatenate([np.sin(time), np.cos(time), flag.numpy()[:, None]], axis=1)
    for layer in (model.condition_1, model.condition_2):
        condition = condition @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        condition = condition / (1 + np.exp(-condition))
    found = model.condition(gamma, flag)
    np.testing.assert_allclose(found.detach(), condition)
    block, x = model.middle_1, torch.randn(3, 8, 5, 5, dtype=torch.float64)
    shift = (found @ block.project.weight.T)[:, :, None, None]
    h = block.norm_2(block.conv_1(silu(block.norm_1(x))) + shift)
    torch.testing.assert_close(block(x, found), x + block.conv_2(silu(h)))
    assert (block(x, found) - block(x, 0 * found)).abs().max() > 0.1


@pytest.mark.parametrize("images_at_once", [0, 2, 5])
def test_attention_in_bfloat16_is_close_to_the_exact_one(images_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with the fused kernel, two images at a time, and all at once."""
    monkeypatch.setattr(network, "SCORES_AT_ONCE", images_at_once * 16**2)
    torch.manual_seed(0)
    rounded = torch.randn(3, 5, 16, 8).bfloat16().requires_grad_()
    exact = rounded.detach().double().requires_grad_()
    query, key, value = exact
    expected = (query @ key.mT / 8**0.5).softmax(-1) @ value
    found = attention(*rounded)
    assert found.dtype == torch.bfloat16
    weights = torch.randn(5, 16, 8)
    (expected * weights.double()).sum().backward()
    (found * weights).sum().backward()
    assert exact.grad is not None
    assert rounded.grad is not None
    # bfloat16 has 8 bits of mantissa, and several roundings follow each other.
    torch.testing.assert_close(found.double(), expected, rtol=0.03, atol=0.03)
    torch.testing.assert_close(rounded.grad.double(), exact.grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_dropout_is_independent_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 70_001, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    y.float().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)
    values = y.detach().flatten().double()
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=2**-8)
    zero = (values == 0).double() - p
    error = (p * (1 - p) / len(zero)) ** 0.5
    assert abs(zero.mean()) < 5 * error
    for lag in range(1, 9):  # four neighbours are parts of one random number
        assert abs((zero[lag:] * zero[:-lag]).mean()) < 5 * error * (p * (1 - p)) ** 0.5


@pytest.mark.parametrize("training", [True, False])
def test_the_network_drops_values_in_training_alone(training: bool) -> None:
    network = predictor(dropout=0.5).train(training)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    z, gamma = torch.randn(2, 3, 6, 6), torch.tensor([-3.0, 1.0])
    assert torch.equal(network(z, gamma), network(z, gamma)) == (not training)
