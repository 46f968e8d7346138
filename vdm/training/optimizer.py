"""AdamW (appendix B), and the course of its learning rate."""

import math
from collections.abc import Sequence

import torch

from vdm.choices import LearningRateDecay
from vdm.model import VDM


def adamw(model: VDM, *, learning_rate: float, betas: Sequence[float], weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW without weight decay for biases, norms and the noise schedule."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), fused=True)


def learning_rate_factor(step: int, steps: int, warmup_steps: int, decay: LearningRateDecay) -> float:
    """Return the learning rate's multiplier at 0-based `step`: linear warm-up, then `decay` towards 0 at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    match decay:
        case "none":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
