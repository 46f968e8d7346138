"""The settings of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass

from vdm.choices import Compile, LearningRateDecay, OptimizerKind, Precision, Transform


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What the steps of a training run depend on (appendix B), without its images, its validation and its processes."""

    steps: int
    """Updates of the weights."""
    batch_size: int
    """Images of a step, over all processes and all their micro-batches."""
    accumulation: int
    """Micro-batches of a step in each process."""
    augmentation: Sequence[Transform]
    """Random transforms of the images, in this order (section 6)."""
    optimizer: OptimizerKind
    learning_rate: float
    """The optimizer's, after the warm-up."""
    warmup_steps: int
    """Steps over which the learning rate rises linearly from 0."""
    learning_rate_decay: LearningRateDecay
    betas: Sequence[float]
    """AdamW's decay rates of both moments, per step."""
    weight_decay: float
    """Decay of weight matrices, per step and unit of the learning rate."""
    max_gradient_norm: float | None
    """Limit of the gradient's norm in bits/dim per unit of weight; None for no limit."""
    ema_decay: float
    """Decay rate of the averaged weights, per step."""
    precision: Precision
    """Number format of the network's matrix products; the loss is always float32."""
    compile: Compile
    """Whether torch compiles the loss and its gradient; with `graphs`, CUDA launches all their kernels at once."""
    activation_checkpointing: bool
    """Whether blocks are computed again in the backward pass, which takes less memory."""
    class_dropout: float
    """Probability of training on an image without its class, if the model has classes."""
    seed: int
    """Of everything that a step draws."""
    log_every: int
    """Steps per line of the log."""
