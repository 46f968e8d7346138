"""AdamW, Muon, their learning rate and the average of the weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from trainings import SETTINGS, fit, start

from vdm.model import VDM
from vdm.training.optimizer import AdamW, Muon, learning_rate_factor, optimizers, orthogonalised


def test_the_average_is_exponential(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """With decay 0.9, the weights of three steps count 0.81, 0.9 and 1, whatever the initial ones are."""
    runs = [fit(tiny_model(), digits[:64], **SETTINGS | {"steps": n, "warmup_steps": 0}) for n in (1, 2, 3)]
    first, second, third = (run.model.network.conv_in.weight.detach() for run in runs)
    expected = (0.81 * first + 0.9 * second + third) / (0.81 + 0.9 + 1)
    torch.testing.assert_close(runs[2].averaged.network.conv_in.weight.detach(), expected)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_biases_norms_and_the_schedule_are_not_decayed(tiny_model: Callable[..., VDM], kind: Any) -> None:
    model = tiny_model(schedule="learned_monotone")
    used = optimizers(model, kind, betas=(0.9, 0.99), weight_decay=0.5)
    decayed = {id(p) for optimizer in used if optimizer.weight_decay for p in optimizer.parameters}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names
    assert all(name.endswith("weight") and "norm" not in name and "schedule" not in name for name in names)
    every = [id(p) for optimizer in used for p in optimizer.parameters]
    assert sorted(every) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_matrix_is_decayed_and_every_moment_has_its_rate(tiny_model: Callable[..., VDM], kind: Any) -> None:
    model = tiny_model()
    used = optimizers(model, kind, betas=(0.9, 0.99), weight_decay=0.5)
    decays = {id(p): optimizer.weight_decay for optimizer in used for p in optimizer.parameters}
    assert {decays[id(p)] for p in model.network.parameters() if p.ndim > 1} == {0.5}
    assert {tuple(optimizer.betas) for optimizer in used if isinstance(optimizer, AdamW)} == {(0.9, 0.99)}


def test_muon_trains_the_matrices_of_the_blocks(tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model()
    *_, muon = optimizers(model, "muon", betas=(0.9, 0.99), weight_decay=0.5)
    trained = {id(p) for p in muon.parameters}
    others = {name for name, p in model.network.named_parameters() if p.ndim > 1 and id(p) not in trained}
    assert others == {"condition_1.weight", "condition_2.weight", "conv_in.weight", "conv_out.weight"}


def test_adamw_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (5,))] for _ in range(2))
    optimizer = AdamW(ours, betas=(0.9, 0.99), weight_decay=0.5)
    reference = torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.99), weight_decay=0.5, fused=True)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        optimizer.step(0.1)
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 5, 5)])
def test_a_matrix_is_orthogonalised_along_its_singular_vectors(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ orthogonalised(matrices) @ right.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(values, torch.diag_embed(diagonal))
    assert (diagonal > 0.6).all()
    assert (diagonal < 1.3).all()


def test_no_gradient_moves_nothing_but_by_decay() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 2, 3, 3))
    parameter.grad = torch.zeros_like(parameter)
    muon = Muon([parameter], weight_decay=0.5)
    muon.step(0.1)
    torch.testing.assert_close(parameter.detach(), torch.full((4, 2, 3, 3), 0.95))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")
def test_a_step_of_muon_on_a_convolution_is_that_of_torch_on_its_matrix() -> None:
    torch.manual_seed(0)
    convolutions = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4, 3, 3), (6, 4, 3, 3), (40, 2, 1, 1))]
    matrices = [torch.nn.Parameter(p.detach().flatten(1).clone()) for p in convolutions]
    before = [p.detach().clone() for p in matrices]
    ours = Muon(convolutions, weight_decay=0.5)
    theirs = torch.optim.Muon(matrices, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for convolution, matrix in zip(convolutions, matrices, strict=True):
            matrix.grad = torch.randn_like(matrix)
            convolution.grad = matrix.grad.view_as(convolution).clone()
        ours.step(0.1)
        theirs.step()
    for convolution, matrix, first in zip(convolutions, matrices, before, strict=True):
        moved = convolution.detach().flatten(1) - first
        # Theirs iterates in bfloat16, with 8 bits of mantissa.
        assert (moved - (matrix.detach() - first)).norm() < 0.03 * moved.norm()


def test_the_learning_rate_warms_up_and_decays() -> None:
    def factors(decay: Any) -> list[float]:
        return [learning_rate_factor(step, 10, 4, decay) for step in range(11)]

    assert factors("none") == [0.25, 0.5, 0.75, 1.0] + [1.0] * 7
    assert factors("linear")[4:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert factors("cosine")[7] == pytest.approx(0.5)
    assert factors("cosine")[10] == pytest.approx(0)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 4, 10])
def test_the_learning_rate_stays_zero_after_the_last_step(warmup_steps: int, decay: Any) -> None:
    assert [learning_rate_factor(step, 10, warmup_steps, decay) for step in (10, 13, 16, 30)] == [0.0] * 4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_parameters_stay_where_they_are(
    optimizer: str, tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    model = tiny_model(schedule="learned_monotone")
    model.schedule.requires_grad_(False)
    model.network.down.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start(model, digits[:64], **SETTINGS | {"optimizer": optimizer}).step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("schedule.", "network.down."))


def test_the_fused_optimizer_counts_in_float32(tiny_model: Callable[..., VDM]) -> None:
    """Its kernel for CUDA reads the four bytes of a float, whatever the counter is."""
    torch.set_default_dtype(torch.float64)
    try:
        decayed, *_ = optimizers(tiny_model(), "adamw", betas=(0.9, 0.99), weight_decay=0.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert isinstance(decayed, AdamW)
    assert {step.dtype for step in decayed.steps} == {torch.float32}
