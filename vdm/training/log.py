"""The log of a training run: the losses of its steps, averaged over intervals."""

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdm.errors import TrainingDiverged


class TrainingRecord(NamedTuple):
    """One line of the training log.  Losses are means over the steps since the previous line, in bits/dim.

    The validation's figures, bits/dim and their Monte Carlo standard error, are None in a line without a validation.
    """

    step: int
    bpd: float
    prior_bpd: float
    reconstruction_bpd: float
    diffusion_bpd: float
    gamma_0: float
    gamma_1: float
    gradient_norm: float
    learning_rate: float
    validation_bpd: float | None
    validation_monte_carlo_standard_error: float | None
    images_per_second: float


class TrainingLog:
    """Sums of the three losses in bits/dim and of the gradient's norm over the steps since the last line.

    They stay on the device until they are read, so that no step waits for them.  `last` is the step of the last line,
    and `lines` how many there are; whoever gets the lines keeps them.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self.last = self.lines = 0
        self.restart([0.0] * 4, 0)

    def restart(self, sums: list[float], count: int) -> None:
        """Begin an interval with the sums over its first `count` steps; measure images per second from now."""
        self.sums = torch.tensor(sums, dtype=torch.float64, device=self.device)
        self.count = count
        self.started = time.perf_counter()
        self.timed = 0

    def add(self, figures: Tensor) -> None:
        """Add the figures (4,) of a step."""
        self.sums += figures
        self.count += 1
        self.timed += 1

    def read(self, step: int) -> list[float]:
        """Wait for the device, and return the sums (4) after `step`.  Raises TrainingDiverged if one is not finite."""
        sums: list[float] = self.sums.tolist()
        if not all(map(math.isfinite, sums)):
            *losses, norm = (total / self.count for total in sums)
            found = f"the loss is {sum(losses)} bits/dim and the norm of its gradient {norm}"
            raise TrainingDiverged(f"step {step}: {found}; lower the learning rate or limit the gradient's norm")
        return sums

    def line(
        self,
        step: int,
        *,
        ends: tuple[float, float],
        learning_rate: float,
        batch_size: int,
        validation: tuple[float, float] | None,
    ) -> TrainingRecord:
        """Return the record of the steps since the last one.  Raises TrainingDiverged if one was not finite."""
        prior, reconstruction, diffusion, norm = (total / self.count for total in self.read(step))
        rate = self.timed * batch_size / (time.perf_counter() - self.started)
        self.restart([0.0] * 4, 0)
        self.last, self.lines = step, self.lines + 1
        bpd = prior + reconstruction + diffusion
        validation_bpd, validation_error = validation or (None, None)
        losses = bpd, prior, reconstruction, diffusion
        return TrainingRecord(step, *losses, *ends, norm, learning_rate, validation_bpd, validation_error, rate)

    def state(self, step: int) -> dict[str, Any]:
        """Return the sums after `step`, without the clock.  Raises TrainingDiverged if one is not finite."""
        return {"sums": self.read(step), "count": self.count, "last": self.last, "lines": self.lines}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a result of `state`.  Raises ValueError, LookupError or TypeError for anything else."""
        prior, reconstruction, diffusion, norm = map(float, state["sums"])
        self.restart([prior, reconstruction, diffusion, norm], int(state["count"]))
        self.last, self.lines = int(state["last"]), int(state["lines"])
