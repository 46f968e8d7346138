"""The settings of a training run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import get_args

from vdm.choices import Compile, LearningRateDecay, OptimizerKind, Precision, Transform


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What the steps of a training run depend on (appendix B), without its images, its validation and its processes.

    The defaults are those of the digits, in presets/digits.yaml.  Raises ValueError for a value that training cannot
    take.
    """

    steps: int = 3400
    """Updates of the weights."""
    batch_size: int = 64
    """Images of a step, over all processes and all their micro-batches."""
    accumulation: int = 1
    """Micro-batches of a step in each process."""
    augmentation: Sequence[Transform] = ()
    """Random transforms of the images, in this order (section 6)."""
    optimizer: OptimizerKind = "muon"
    learning_rate: float = 1e-2
    """The optimizer's, after the warm-up."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0."""
    learning_rate_decay: LearningRateDecay = "linear"
    betas: Sequence[float] = (0.9, 0.99)
    """AdamW's decay rates of both moments, per step."""
    weight_decay: float = 0.1
    """Decay of weight matrices, per step and unit of the learning rate."""
    max_gradient_norm: float | None = 1.0
    """Limit of the gradient's norm in bits/dim per unit of weight; None for no limit."""
    ema_decay: float = 0.99
    """Decay rate of the averaged weights, per step."""
    precision: Precision = "float32"
    """Number format of the network's matrix products; the loss is always float32."""
    compile: Compile = False
    """Whether torch compiles the loss and its gradient; with `graphs`, CUDA launches all their kernels at once."""
    activation_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass, which takes less memory."""
    class_dropout: float = 0.1
    """Probability of training on an image without its class, if the model has classes."""
    seed: int = 0
    """Of everything that a step draws."""
    log_every: int = 50
    """Steps per line of the log."""

    def __post_init__(self) -> None:
        for name, words in (
            ("optimizer", get_args(OptimizerKind)),
            ("learning_rate_decay", get_args(LearningRateDecay)),
            ("precision", get_args(Precision)),
            ("compile", get_args(Compile)),
            ("activation_checkpointing", (True, False)),
        ):
            self.require(name, getattr(self, name) in words, f"one of {', '.join(map(repr, words))}")
        known = get_args(Transform)
        of_known = not isinstance(self.augmentation, str) and all(each in known for each in self.augmentation)
        self.require("augmentation", of_known, f"a list of {', '.join(map(repr, known))}")
        for name in ("steps", "batch_size", "accumulation", "log_every"):
            value = getattr(self, name)
            self.require(name, isinstance(value, Integral) and int(value) >= 1, "a whole number of at least 1")
        for name in ("warmup_steps", "seed"):
            value = getattr(self, name)
            self.require(name, isinstance(value, Integral) and int(value) >= 0, "a whole number of at least 0")
        self.require("learning_rate", 0 < self.learning_rate < math.inf, "above 0 and finite")
        two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self.require("betas", two, "two numbers of at least 0 and below 1")
        self.require("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0 and finite")
        limit = self.max_gradient_norm
        self.require("max_gradient_norm", limit is None or limit > 0, "above 0, or None")
        self.require("ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1")
        self.require("class_dropout", 0 <= self.class_dropout <= 1, "between 0 and 1")

    def require(self, name: str, possible: bool, wanted: str) -> None:
        """Raise ValueError that names the setting and what it must be, unless it is possible."""
        if not possible:
            raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
