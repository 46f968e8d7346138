"""Short training runs for tests of the library `vdm`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vdm.model import VDM
from vdm.training.log import TrainingRecord
from vdm.training.settings import TrainingSettings
from vdm.training.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "steps": 20,
    "batch_size": 16,
    "accumulation": 1,
    "augmentation": [],
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "learning_rate_decay": "none",
    "betas": (0.9, 0.99),
    "weight_decay": 0.01,
    "max_gradient_norm": 1.0,
    "ema_decay": 0.9,
    "precision": "float32",
    "compile": False,
    "activation_checkpointing": False,
    "class_dropout": 0.1,
    "seed": 0,
    "log_every": 10,
}


class Recorded(Trainer):
    """A run that keeps the lines of its log."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.records: list[TrainingRecord] = []

    def step(self, stop: Callable[[], bool] = lambda: False) -> TrainingRecord | None:
        if line := super().step(stop):
            self.records.append(line)
        return line


def start(model: VDM, pixels: np.ndarray, **settings: Any) -> Recorded:
    """Return a run before its first step."""
    return Recorded(model, torch.from_numpy(pixels), TrainingSettings(**settings))


def fit(model: VDM, pixels: np.ndarray, **settings: Any) -> Recorded:
    """Return a run after its last step."""
    trainer = start(model, pixels, **settings)
    for _ in range(settings["steps"]):
        trainer.step()
    return trainer


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
