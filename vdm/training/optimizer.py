"""AdamW (appendix B), Muon, their learning rate, and the moving average of the weights."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from vdm.choices import LearningRateDecay, OptimizerKind
from vdm.model import VDM

Weights = tuple[Tensor, ...] | list[Tensor]

EPSILON = 1e-8
MOMENTUM = 0.95
ITERATIONS = 5
# a x + b x^3 + c x^5 takes singular values between 0 and 1 close to 1 within few iterations (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# The root mean square of a usual step of AdamW per unit of the learning rate (Liu et al. 2025).
STEP_SIZE = 0.2


class Muon(Optimizer):
    """Gradient descent whose momentum is orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    A convolution counts as the matrix (outputs, inputs x height x width).  The step of a matrix is scaled to the size
    of a usual step of AdamW, so that both take the same learning rate (Liu et al. 2025, arXiv 2502.16982, section 2.2).

    `torch.optim.Muon` does the same for one matrix after the other, and takes no convolutions.
    """

    def __init__(self, parameters: Iterable[Parameter], *, weight_decay: float) -> None:
        super().__init__(sorted(parameters, key=matrix_shape), {"lr": 0.0, "weight_decay": weight_decay})
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters by their gradients, those of one shape together."""
        for group in self.param_groups:
            for _, alike in groupby(group["params"], key=matrix_shape):
                self.update([*alike], group["lr"], group["weight_decay"])

    def update(self, parameters: list[Tensor], learning_rate: float, weight_decay: float) -> None:
        """Take the step of parameters that are matrices of one shape."""
        latest = [cast(Tensor, parameter.grad) for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, latest, 1 - MOMENTUM)
        directions = torch.stack(torch._foreach_lerp(latest, momenta, MOMENTUM))
        steps = orthogonalise(directions.flatten(2)).reshape(directions.shape)
        size = STEP_SIZE * math.sqrt(max(matrix_shape(parameters[0])))
        torch._foreach_mul_(parameters, 1 - learning_rate * weight_decay)
        torch._foreach_add_(parameters, steps.unbind(), alpha=-learning_rate * size)


def optimizers(model: VDM, kind: OptimizerKind, *, betas: Sequence[float], weight_decay: float) -> list[Optimizer]:
    """Return the optimizers that together train all parameters of the model; the caller sets their learning rate.

    AdamW has no weight decay for biases, norms and the noise schedule.  With `muon`, `Muon` trains the weight matrices
    of the blocks, and AdamW everything else: the first and last layers, the conditioning and the rest.
    """
    hidden = [p for p in model.network.matrices_of_blocks() if p.requires_grad] if kind == "muon" else []
    others = [p for p in model.parameters() if p.requires_grad and not any(p is matrix for matrix in hidden)]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(betas[0], betas[1]), eps=EPSILON, fused=True)
    return [adamw, Muon(hidden, weight_decay=weight_decay)] if hidden else [adamw]


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Return rows and columns of a weight as a matrix (outputs, all the rest)."""
    return parameter.shape[0], parameter[0].numel()


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices (K,M,N) with nearly the same singular vectors, and singular values near 1.

    Five Newton-Schulz iterations, which take matrix products only, bring those above 0.2% of the matrix's norm to
    between 0.6 and 1.3.  Smaller ones may stay below.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices / matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    if x.is_cuda:  # as Jordan et al.: a step within 30% needs no more than 8 bits, for which a card has tensor cores
        x = x.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def learning_rate_factor(step: int, steps: int, warmup_steps: int, decay: LearningRateDecay) -> float:
    """Return the learning rate's multiplier at 0-based `step`: linear warm-up, then `decay` towards 0 at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = 1.0 if step >= steps else (step - warmup_steps) / (steps - warmup_steps)
    match decay:
        case "none":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def move_average(averages: Weights, weights: Weights, decay: float, step: int) -> None:
    """Move the averages, in place, towards the weights after `step` steps, at least 1.

    The average is exponential, with the bias correction of Adam (Kingma and Ba 2015, section 3): the weights of step k
    count `decay ** (step - k)`.  Without the correction the first weights would count far more in a short run.
    """
    torch._foreach_lerp_(averages, weights, (1 - decay) / (1 - decay**step))


@torch.no_grad()
def move_buffers(averages: Iterable[Tensor], latest: Iterable[Tensor], decay: float, step: int) -> None:
    """Move the buffers of the averaged model, in place, as `move_average` moves its weights.

    So running statistics, as of BatchNorm, are nearly those of the averaged weights.  Counts, and masks with
    infinities, are taken as they are.
    """
    for average, value in zip(averages, latest, strict=True):
        moved = value
        if value.is_floating_point():
            moved = torch.lerp(average, value, (1 - decay) / (1 - decay**step))
            moved = torch.where(moved.isfinite(), moved, value)
        average.copy_(moved)
