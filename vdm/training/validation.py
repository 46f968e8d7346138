"""Validation: how the averaged weights do on images that training does not see, which of them to keep, when to stop.

Every validation takes the same images, times and noise, so that successive figures differ by the weights alone.  When
torch.distributed is initialised, the processes share the images out.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vdm.choices import Keep, Precision
from vdm.evaluation import BoundSettings, Evaluation, image_terms, terms_of_set
from vdm.model import VDM
from vdm.training.processes import gather, process


class Best(NamedTuple):
    """The lowest validation bits/dim so far, its step, and the averaged weights; None if they are not kept."""

    step: int
    bpd: float
    weights: dict[str, Tensor] | None


class Stopped(Exception):
    """Ends a validation that was asked to stop."""


class Validation:
    """The validations of one training run on `images` (N,C,H,W), given their `labels` (N,), every `every_steps` steps.

    `keep` says whether the run ends with the averaged weights of the best validation or with the last ones.  Training
    ends early after `patience` validations in a row without a new best one; with None, it never does.
    """

    def __init__(
        self,
        images: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        every_steps: int,
        times_per_image: int,
        batch_size: int,
        seed: int,
        keep: Keep,
        patience: int | None,
        precision: Precision = "float32",
    ) -> None:
        self.images, self.labels = images, labels
        self.every_steps = every_steps
        self.keep, self.patience = keep, patience
        self.settings = BoundSettings(
            times_per_image=times_per_image, batch_size=batch_size, seed=seed, precision=precision
        )
        self.best: Best | None = None
        self.since_best = 0

    @property
    def impatient(self) -> bool:
        """Whether training ends because the last `patience` validations brought no new best one."""
        return self.patience is not None and self.since_best >= self.patience

    def due(self, step: int, *, steps: int) -> bool:
        """Whether a validation follows the step: the last of `steps`, and every one divisible by `every_steps`."""
        return step > 0 and (step >= steps or step % self.every_steps == 0)

    def kept(self, averaged: VDM) -> VDM:
        """Return the model of the best averaged weights if they are kept, else `averaged`, that of the last ones."""
        if self.best is None or self.best.weights is None:
            return averaged
        model = copy.deepcopy(averaged)
        model.load_state_dict(self.best.weights)
        return model

    def validate(self, averaged: VDM, step: int, stop: Callable[[], bool]) -> tuple[float, float] | None:
        """Validate, and compare the result with the best one.

        Return the bits/dim and their Monte Carlo standard error; None, and change nothing, if `stop` returned true.
        """
        result = self.evaluate(averaged, stop)
        if result is None:
            return None
        bpd = float(result.bpd.mean())
        self.since_best += 1
        if math.isfinite(bpd) and (self.best is None or bpd < self.best.bpd):
            kept = {name: value.clone() for name, value in averaged.state_dict().items()}
            self.best, self.since_best = Best(step, bpd, kept if self.keep == "best" else None), 0
        return bpd, result.monte_carlo_standard_error

    def evaluate(self, model: VDM, stop: Callable[[], bool]) -> Evaluation | None:
        """Evaluate this process's share of the images, and return the bound on all of them, in every process.

        Ask `stop` before each batch, and return None if it returns true, which it must do in all processes at once.
        """
        rank, processes = process()
        first, end = (len(self.images) * number // processes for number in (rank, rank + 1))
        largest_share = -(-len(self.images) // processes)  # so that all processes call `stop` equally often

        def until_stopped(batches: range) -> Iterator[int]:
            for number in self.settings.batches_of(range(first, first + largest_share)):
                if stop():
                    raise Stopped
                if number in batches:
                    yield number

        share = range(first, end)
        try:
            terms = image_terms(model, self.images, share, self.settings, labels=self.labels, progress=until_stopped)
        except Stopped:
            return None
        return terms_of_set(np.concatenate(gather(terms), axis=1))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"best": list(self.best) if self.best else None, "since_best": self.since_best}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a result of `state`.  Raises ValueError, LookupError or TypeError for anything else."""
        self.best = None
        if state["best"] is not None:
            step, bpd, weights = state["best"]
            self.best = Best(int(step), float(bpd), None if weights is None else dict(weights))
        self.since_best = int(state["since_best"])
