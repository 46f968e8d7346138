"""Training (appendix B): stochastic gradient descent on the bound, with a moving average of the weights.

The data set lies on the device as integers; a step gathers a batch, draws evenly spread times (appendix I.1) and
noise, and descends on the mean -VLB in bits per dimension.  What a step draws follows from the seed and the step's
number alone, so that a run continued from any step is the run that was never interrupted.
"""

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vdm.model import VDM
from vdm.schedule import gamma_and_slope
from vdm.vlb import Terms, bits_per_dim, low_discrepancy_times

Precision = Literal["float32", "bfloat16"]
LearningRateDecay = Literal["none", "linear", "cosine"]


class TrainingDiverged(ArithmeticError):
    """The loss is no longer a finite number."""


class TrainingRecord(NamedTuple):
    """One line of the training log; losses are means since the line before, in bits/dim."""

    step: int
    bpd: float
    prior_bpd: float
    reconstruction_bpd: float
    diffusion_bpd: float
    gamma_0: float
    gamma_1: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float


class Trainer:
    """One run of training: `step` moves it on, `state` is what a checkpoint must hold.

    `model` is trained in place on `pixels` (N,C,H,W), both on one device; `averaged` is the model of averaged weights.
    """

    def __init__(
        self,
        model: VDM,
        pixels: Tensor,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        warmup_steps: int,
        learning_rate_decay: LearningRateDecay,
        betas: Sequence[float],
        weight_decay: float,
        max_gradient_norm: float | None,
        ema_decay: float,
        precision: Precision,
        seed: int,
        log_every: int,
    ) -> None:
        self.model, self.pixels, self.steps, self.batch_size = model.train(), pixels, steps, batch_size
        self.learning_rate, self.warmup_steps, self.decay = learning_rate, warmup_steps, learning_rate_decay
        self.max_gradient_norm, self.precision = max_gradient_norm, precision
        self.seed, self.log_every = seed, log_every
        self.optimizer = adamw(model, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        self.on_bound = [*model.network.parameters(), *model.schedule.end_points()]
        self.done = 0
        self.records: list[TrainingRecord] = []
        self.log = TrainingLog(pixels.device)

    @property
    def averaged(self) -> VDM:
        """The model of averaged weights, in evaluation mode."""
        return cast(VDM, self.average.module.eval())

    def step(self) -> TrainingRecord | None:
        """Take the next step; the log's new line at the end of an interval.

        Raises TrainingDiverged, with the line, once the loss is not finite.
        """
        indices, t, eps = self.draw()
        factor = learning_rate_factor(self.done, self.steps, self.warmup_steps, self.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        terms = backward(self.model, self.pixels[indices], eps, t, self.precision)
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.on_bound, self.max_gradient_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)
        self.done += 1
        self.log.add(terms, gradient_norm, self.model.num_dims)
        if self.done % self.log_every and self.done < self.steps:
            return None
        schedule = self.model.schedule
        ends = schedule.gamma_0.item(), schedule.gamma_1.item()
        record = self.log.line(self.done, ends, self.learning_rate * factor, self.batch_size)
        self.records.append(record)
        return record

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices (B,), times (B,) and noise (B,C,H,W) of the next step; seeds dropout too."""
        device = self.pixels.device
        # Two seeds: from one, the dropout masks would be the very numbers that the noise is made of.
        noise_seed, dropout_seed = np.random.SeedSequence([self.seed, self.done]).generate_state(2).tolist()
        torch.manual_seed(dropout_seed)
        generator = torch.Generator(device).manual_seed(noise_seed)
        t = low_discrepancy_times(torch.rand((), generator=generator, device=device), self.batch_size)
        eps = torch.randn((self.batch_size, *self.pixels.shape[1:]), generator=generator, device=device)
        return batch_indices(len(self.pixels), self.batch_size, self.done, self.seed).to(device), t, eps

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": self.log.state(),
            "records": [list(record) for record in self.records],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`, of a run with the same arguments."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log.load_state(state["log"])
        self.records = [TrainingRecord(*values) for values in state["records"]]
        self.done = state["done"]


def backward(model: VDM, pixels: Tensor, eps: Tensor, t: Tensor, precision: Precision) -> Terms:
    """Add to the gradients those of the mean -VLB in bits/dim, and return its terms, (B,) nats each.

    The schedule's shape leaves the bound unchanged, so it descends on the variance of the bound's estimate instead:
    on E[loss^2] of the per-image diffusion loss (appendix I.2).  Both gradients pass through gamma(t) and gamma'(t),
    where that of loss^2 is 2 loss times that of the loss: one backward pass through the network serves both.
    """
    schedule = model.schedule
    end_points, shape = schedule.end_points(), schedule.shape_parameters()
    gamma = gamma_and_slope(schedule, t)
    gamma_t, dgamma_dt = (value.detach().requires_grad_(bool(end_points)) for value in gamma)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        terms = model.terms(pixels, eps, gamma_t, dgamma_dt)
    bits_per_dim(terms.total.mean(), model.num_dims).backward()
    if gamma_t.grad is None or dgamma_dt.grad is None:
        return terms
    torch.autograd.backward(gamma, (gamma_t.grad, dgamma_dt.grad), inputs=end_points, retain_graph=bool(shape))
    if shape:
        twice_loss = 2 * bits_per_dim(terms.diffusion.detach(), model.num_dims)
        torch.autograd.backward(gamma, (twice_loss * gamma_t.grad, twice_loss * dgamma_dt.grad), inputs=shape)
    return terms


def batch_indices(num_images: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices (batch_size,) of the batch at 0-based `step`: every image once an epoch, no batch cut short."""
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = position // num_images, position % num_images
    orders = [epoch_order(num_images, int(epoch), seed)[places[epochs == epoch]] for epoch in np.unique(epochs)]
    return torch.from_numpy(np.concatenate(orders))


@lru_cache(maxsize=2)
def epoch_order(num_images: int, epoch: int, seed: int) -> np.ndarray:
    """A permutation of the images for one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def adamw(model: VDM, *, learning_rate: float, betas: Sequence[float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW in which biases, norms and the noise schedule are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), fused=True)


def learning_rate_factor(step: int, steps: int, warmup_steps: int, decay: LearningRateDecay) -> float:
    """The learning rate's multiplier at 0-based `step`: linear warm-up, then `decay` towards 0 at `steps`."""
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


class TrainingLog:
    """Sums of a step's figures, kept on the device so that only a log line waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums, self.count = torch.zeros(4, device=device), 0
        self.started, self.timed = time.perf_counter(), 0

    def add(self, terms: Terms, gradient_norm: Tensor, num_dims: int) -> None:
        """Take in one step: `terms` (B,) nats each, the gradient's norm a scalar."""
        means = [bits_per_dim(term.detach().mean(), num_dims) for term in terms]
        self.sums += torch.stack([*means, gradient_norm.detach()])
        self.count += 1
        self.timed += 1

    def line(self, step: int, ends: tuple[float, float], learning_rate: float, batch_size: int) -> TrainingRecord:
        """The record of the steps since the last one.  Raises TrainingDiverged if a loss was not finite."""
        prior, reconstruction, diffusion, gradient_norm = (self.sums / self.count).tolist()
        bpd = prior + reconstruction + diffusion
        if not math.isfinite(bpd + gradient_norm):
            raise TrainingDiverged(f"the loss became {bpd} before step {step}; lower train.learning_rate")
        rate = self.timed * batch_size / (time.perf_counter() - self.started)
        self.sums.zero_()
        self.count = self.timed = 0
        self.started = time.perf_counter()
        return TrainingRecord(step, bpd, prior, reconstruction, diffusion, *ends, gradient_norm, learning_rate, rate)

    def state(self) -> dict[str, Any]:
        """The sums so far; the clock is not part of it."""
        return {"sums": self.sums.clone(), "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the rate of the current interval counts from now."""
        self.sums.copy_(state["sums"])
        self.count = state["count"]
        self.started, self.timed = time.perf_counter(), 0
