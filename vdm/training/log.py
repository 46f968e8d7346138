"""The log of a training run: the losses of its steps, averaged over intervals."""

import math
import time
from collections import deque
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

    On CUDA the figures of a step are read while the next step runs, so that no step waits for them.
    """

    def __init__(self) -> None:
        self.pending: deque[tuple[int, Tensor, torch.Event | None]] = deque()
        self.restart([0.0] * 4, 0)

    def restart(self, sums: list[float], count: int) -> None:
        """Begin an interval with the sums over its first `count` steps; measure images per second from now."""
        self.sums = sums
        self.count = count
        self.started = time.perf_counter()
        self.timed = 0

    def add(self, step: int, figures: Tensor) -> None:
        """Add the figures (4,) of a step.  Raises TrainingDiverged if figures that have arrived are not finite."""
        arrival = None
        if figures.is_cuda:
            stream = torch.cuda.current_stream(figures.device)  # the current device may be another card
            figures = figures.to("cpu", non_blocking=True)
            arrival = torch.Event("cuda")
            arrival.record(stream)
        self.pending.append((step, figures, arrival))
        self.timed += 1
        self.take(all_but=0 if arrival is None else 1)

    def take(self, all_but: int) -> None:
        """Wait for the pending figures, except the newest `all_but`, and add them to the sums.

        Raises TrainingDiverged if one is not finite.
        """
        while len(self.pending) > all_but:
            step, figures, arrival = self.pending.popleft()
            if arrival is not None:
                arrival.synchronize()
            values = figures.tolist()
            if not all(map(math.isfinite, values)):
                found = f"the loss is {sum(values[:3])} bits/dim and the norm of its gradient {values[3]}"
                raise TrainingDiverged(f"step {step}: {found}; lower the learning rate or limit the gradient's norm")
            self.sums = [total + value for total, value in zip(self.sums, values, strict=True)]
            self.count += 1

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
        self.take(all_but=0)
        prior, reconstruction, diffusion, norm = (total / self.count for total in self.sums)
        rate = self.timed * batch_size / (time.perf_counter() - self.started)
        self.restart([0.0] * 4, 0)
        bpd = prior + reconstruction + diffusion
        validation_bpd, validation_error = validation or (None, None)
        losses = bpd, prior, reconstruction, diffusion
        return TrainingRecord(step, *losses, *ends, norm, learning_rate, validation_bpd, validation_error, rate)

    def state(self) -> dict[str, Any]:
        """Return the sums so far, without the clock.  Raises TrainingDiverged if a step was not finite."""
        self.take(all_but=0)
        return {"sums": self.sums, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a result of `state`.  Raises ValueError, LookupError or TypeError for anything else."""
        prior, reconstruction, diffusion, norm = map(float, state["sums"])
        self.pending.clear()
        self.restart([prior, reconstruction, diffusion, norm], int(state["count"]))
