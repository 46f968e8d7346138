"""AdamW, Muon, their learning rate and the average of the weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from trainings import SETTINGS, fit

from vdm.model import VDM
from vdm.training.optimizer import Muon, learning_rate_factor, optimizers, orthogonalise


def test_the_average_is_exponential(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """With decay 0.9, the weights of three steps count 0.81, 0.9 and 1, whatever the initial ones are."""
    runs = [fit(tiny_model(), digits[:64], **SETTINGS | {"steps": n, "warmup_steps": 0}) for n in (1, 2, 3)]
    first, second, third = (run.model.network.conv_in.weight.detach() for run in runs)
    expected = (0.81 * first + 0.9 * second + third) / (0.81 + 0.9 + 1)
    torch.testing.assert_close(runs[2].averaged.network.conv_in.weight.detach(), expected)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_matrix_is_decayed_and_nothing_else(tiny_model: Callable[..., VDM], kind: Any) -> None:
    """No bias, no norm and no part of the schedule.  Muon trains the matrices of the blocks alone."""
    model = tiny_model(schedule="learned_monotone")
    used = optimizers(model, kind, betas=(0.9, 0.99), weight_decay=0.5)
    groups = [group for optimizer in used for group in optimizer.param_groups]
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decays) == len(list(model.parameters()))
    matrices = {id(p) for p in model.network.parameters() if p.ndim > 1}
    assert {id(p): 0.5 if id(p) in matrices else 0.0 for p in model.parameters()} == decays
    assert used[0].param_groups[0]["betas"] == (0.9, 0.99)
    if kind == "muon":
        trained = {id(p) for p in used[1].param_groups[0]["params"]}
        others = {name for name, p in model.network.named_parameters() if p.ndim > 1 and id(p) not in trained}
        assert others == {"condition_1.weight", "condition_2.weight", "conv_in.weight", "conv_out.weight"}


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 5, 5)])
def test_a_matrix_is_orthogonalised_along_its_singular_vectors(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ orthogonalise(matrices) @ right.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(values, torch.diag_embed(diagonal))
    assert (diagonal > 0.6).all()
    assert (diagonal < 1.3).all()


def rated(muon: Muon, rate: float) -> Muon:
    """Set the learning rate, as a training does before every step."""
    muon.param_groups[0]["lr"] = rate
    return muon


def test_a_step_of_muon_on_a_convolution_is_that_of_torch_on_its_matrix() -> None:
    torch.manual_seed(0)
    convolutions = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4, 3, 3), (6, 4, 3, 3), (40, 2, 1, 1))]
    matrices = [torch.nn.Parameter(p.detach().flatten(1).clone()) for p in convolutions]
    before = [p.detach().clone() for p in matrices]
    ours = rated(Muon(convolutions, weight_decay=0.5), 0.1)
    theirs = torch.optim.Muon(matrices, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for convolution, matrix in zip(convolutions, matrices, strict=True):
            matrix.grad = torch.randn_like(matrix)
            convolution.grad = matrix.grad.view_as(convolution).clone()
        ours.step()
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
    assert learning_rate_factor(30, 10, 10, "linear") == 0
