"""The settings of a training run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vdm.choices import LearningRateDecay, OptimizerKind, Precision, Transform, require_choice, require_counts


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The options of a training run (appendix B).

    steps                     updates of the weights
    batch_size                images of a step, over all processes and all their micro-batches
    accumulation              micro-batches of a step in each process
    augmentation              random transforms of the images, in this order (section 6)
    optimizer                 AdamW for all weights, or Muon for the matrices of the blocks
    learning_rate             the optimizer's, after the warm-up
    warmup_steps              steps over which the learning rate rises linearly from 0
    learning_rate_decay       how it decays after the warm-up, see `learning_rate_factor`
    betas                     AdamW's decay rates of both moments, per step
    weight_decay              decay of weight matrices, per step and unit of the learning rate
    max_gradient_norm         limit of the gradient's norm in bits/dim per unit of weight; None for no limit
    ema_decay                 decay rate of the averaged weights, per step
    precision                 number format of the network's matrix products; the loss is always float32
    compile                   whether torch compiles the network
    activation_checkpointing  whether blocks are computed again in the backward pass, which takes less memory
    seed                      of everything that a step draws
    log_every                 steps per line of the log

    Raises ValueError for an unknown word, for counts below 1, and for numbers with which no training is possible.
    """

    steps: int
    batch_size: int
    accumulation: int
    augmentation: Sequence[Transform]
    optimizer: OptimizerKind
    learning_rate: float
    warmup_steps: int
    learning_rate_decay: LearningRateDecay
    betas: Sequence[float]
    weight_decay: float
    max_gradient_norm: float | None
    ema_decay: float
    precision: Precision
    compile: bool
    activation_checkpointing: bool
    seed: int
    log_every: int

    def __post_init__(self) -> None:
        require_choice("optimizer", self.optimizer, OptimizerKind)
        for transform in self.augmentation:
            require_choice("transform", transform, Transform)
        require_choice("precision", self.precision, Precision)
        require_choice("learning_rate_decay", self.learning_rate_decay, LearningRateDecay)
        require_counts(steps=self.steps, batch_size=self.batch_size, accumulation=self.accumulation)
        require_counts(log_every=self.log_every)
        for name, number in {"warmup_steps": self.warmup_steps, "weight_decay": self.weight_decay}.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {number}")
        rates = {"learning_rate": self.learning_rate, "max_gradient_norm": self.max_gradient_norm}
        for name, value in rates.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        decays = {"ema_decay": self.ema_decay, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}
        for name, value in decays.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
