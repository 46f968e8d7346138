"""The noise predictor."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import TINY, peak
from torch.nn.functional import silu
from trainings import SETTINGS as TRAINING

from vdm import evaluation, network, ode, sampling
from vdm.choices import Precision, ScheduleKind
from vdm.model import VDM, count_parameters, gradient_bytes
from vdm.network import Dropout, NoisePredictor, attention, fourier_features, time_embedding
from vdm.training.settings import TrainingSettings
from vdm.training.trainer import Trainer

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


@pytest.mark.parametrize("attention_everywhere", [False, True])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 5, 9), (4, 1, 1)])
def test_images_of_any_channels_and_size_are_accepted(
    channels: int, height: int, width: int, attention_everywhere: bool
) -> None:
    network = predictor(channels=channels, attention_everywhere=attention_everywhere)
    z = torch.randn(2, channels, height, width)
    assert network(z, torch.zeros(2)).shape == z.shape


def test_the_initial_prediction_is_the_input() -> None:
    z = torch.randn(2, 3, 8, 8)
    assert torch.equal(predictor()(z, torch.tensor([-13.3, 5.0])), z)


def test_the_blocks_of_a_new_network_add_nothing() -> None:
    new = predictor()
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(new.middle_1(x, torch.randn(2, 32)), x)
    assert torch.equal(new.middle_attention(x), x)
    assert not new.middle_1.project.weight.any()
    wide = torch.randn(2, 16, 5, 5)
    assert torch.equal(new.up[0](wide, torch.randn(2, 32)), new.up[0].shortcut(wide))  # type: ignore[operator, union-attr]


def test_the_papers_cifar10_network_has_30_58_million_parameters() -> None:
    with torch.device("meta"):
        network = predictor(width=128, blocks=32, norm_groups=32, augmentation_input=True)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(30.58, abs=0.005)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 12, "blocks": 5},
        {"channels": 1, "fourier_exponents": []},
        {"attention_everywhere": True, "augmentation_input": True},
        {"width": 128, "blocks": 32, "norm_groups": 32},
    ],
)
@pytest.mark.parametrize("schedule", get_args(ScheduleKind))
def test_parameters_are_counted_without_a_network(changes: dict[str, Any], schedule: ScheduleKind) -> None:
    config = {key: value for key, value in {**SETTINGS, **changes}.items() if key not in ("channels", "gamma_min")}
    shape = (changes.get("channels", SETTINGS["channels"]), 4, 4)
    config |= {"image_shape": shape, "schedule": schedule, "gamma_0": -13.3, "gamma_1": config.pop("gamma_max")}
    with torch.device("meta"):
        model = VDM(num_levels=17, **config)
    expected = sum(tensor.numel() for tensor in model.state_dict().values())
    assert count_parameters(num_levels=17, **config) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": 0},
        {"blocks": 1025},
        {"norm_groups": 0},
        {"norm_groups": -4},
        {"fourier_exponents": [65]},
        {"norm_eps": 0.0},
        {"norm_eps": math.nan},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
)
def test_invalid_arguments_are_refused(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=name):
        predictor(**change)


@pytest.mark.parametrize(
    "change", [{"image_shape": (8, 8)}, {"num_levels": 1}, {"num_levels": 16.5}, {"num_levels": 2**16 + 1}]
)
def test_impossible_images_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="images cannot have shape"):
        VDM(**TINY | change)


def test_every_norm_has_the_chosen_groups_and_epsilon() -> None:
    modules = predictor(attention_everywhere=True, norm_groups=2, norm_eps=1e-3).modules()
    norms = [module for module in modules if isinstance(module, torch.nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(2, 1e-3)}


def test_a_group_of_one_number_cannot_be_normalised() -> None:
    one_pixel = TINY | {"image_shape": (1, 1, 1)}
    with pytest.raises(ValueError, match="norm_groups 8 normalises single numbers"):
        VDM(**one_pixel | {"norm_groups": 8})
    eps_hat = VDM(**one_pixel | {"norm_groups": 4}).network(torch.zeros(1, 1, 1, 1), torch.zeros(1))
    assert eps_hat.isfinite().all()


def once(derivative: ode.Derivative, state: ode.State, times: torch.Tensor) -> ode.State:
    """Solve an ODE in one evaluation of its derivative."""
    derivative(times[0], state)
    return state


LARGER = TINY | {"image_shape": (1, 16, 16), "width": 32}
LEAST = 1 / 3.5
"""The share of the tensors' memory that an estimate must reach.  It must not exceed it."""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("blocks", [2, 16])
def test_evaluation_and_sampling_take_the_memory_that_is_estimated(blocks: int, precision: Precision) -> None:
    model = VDM(**LARGER | {"blocks": blocks}).eval()
    pixels, sizes = np.zeros((8, 1, 16, 16), np.uint8), {"times_per_image": 2, "batch_size": 16}
    options: dict[str, Any] = {**sizes, "precision": precision}
    taken = peak(lambda: evaluation.evaluate(model, pixels, num_timesteps=None, seed=0, **options))
    network = {"num_dims": model.num_dims, "network_bytes": model.inference_bytes(precision)}
    assert LEAST < evaluation.memory_needed(**network, num_images=8, **sizes) / taken < 1
    solver = sampling.Solver(num_timesteps=2, precision=precision)
    taken = peak(lambda: sampling.sample(model, range(16), solver, seed=0))
    assert LEAST < sampling.memory_needed(model, 16, solver) / taken < 1


@pytest.mark.parametrize("blocks", [2, 16])
def test_the_ode_takes_the_memory_that_is_estimated(blocks: int) -> None:
    model = VDM(**LARGER | {"blocks": blocks}).eval()
    sizes = {"num_draws": 2, "num_probes": 1, "batch_size": 8}
    pixels = np.zeros((4, 1, 16, 16), np.uint8)
    taken = peak(lambda: ode.evaluate_ode(model, pixels, seed=0, dequantisation="uniform", solve=once, **sizes))
    assert LEAST < ode.memory_needed(model, num_images=4, **sizes) / taken < 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("blocks", [2, 16])
def test_training_takes_the_memory_that_is_estimated(blocks: int, recomputed: bool, precision: Precision) -> None:
    options = {"batch_size": 16, "precision": precision, "activation_checkpointing": recomputed}
    images = torch.zeros(16, 1, 16, 16, dtype=torch.uint8)
    trainer = Trainer(VDM(**LARGER | {"blocks": blocks}), images, TrainingSettings(**TRAINING | options))
    trainer.step()  # makes what the optimizer keeps
    sizes = {"width": 32, "blocks": blocks, "precision": precision, "recomputed": recomputed}
    assert LEAST < 16 * gradient_bytes((1, 16, 16), **sizes) / peak(trainer.step) < 1


def test_every_parameter_has_a_gradient() -> None:
    network = predictor(augmentation_input=True, attention_everywhere=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network(torch.randn(2, 3, 6, 6), torch.tensor([-3.0, 1.0]), torch.tensor([0.0, 1.0])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


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


def test_fourier_features_stay_in_float32_for_half_precision_input() -> None:
    z = torch.tensor([0.123]).reshape(1, 1, 1, 1)
    assert fourier_features(z.bfloat16(), [7]).dtype == torch.float32


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


def test_the_ends_of_the_schedule_scale_the_time() -> None:
    network = VDM(**TINY).network
    assert (network.gamma_min, network.gamma_max) == (TINY["gamma_0"], TINY["gamma_1"])


@pytest.mark.parametrize("changes", [{"width": 7}, {"width": 2, "norm_groups": 2}, {"width": 8, "norm_groups": 3}])
def test_invalid_widths_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="width"):
        predictor(**changes)


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


def test_dropout_is_drawn_from_torchs_seed() -> None:
    dropout, x = Dropout(0.5), torch.ones(2, 3, 5)
    torch.manual_seed(7)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(7)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_dropout_near_one_is_finite_and_without_training_does_nothing() -> None:
    x = torch.ones(1001)
    assert Dropout(1 - 1e-9)(x).isfinite().all()
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.5).eval()(x), x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dropout_can_be_traced_in_one_graph() -> None:
    """A graph that breaks at each dropout would take away most of what compilation gains."""
    dropout = torch.compile(Dropout(0.5), backend="aot_eager", fullgraph=True)
    values = dropout(torch.ones(1000))
    assert set(values.tolist()) == {0.0, 2.0}
