"""Training (appendix B): stochastic gradient descent on the bound, with a moving average of the weights.

The data set lies on the device as integers; a step gathers a batch, draws evenly spread times (appendix I.1) and
noise, and descends on the mean -VLB in bits per dimension.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, cast

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


def train(
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
    on_log: Callable[[TrainingRecord], None],
    progress: Callable[[range], Iterable[int]] = iter,
) -> VDM:
    """Train `model` in place on `pixels` (N,C,H,W), both on one device; returns the model of averaged weights.

    Noise, times and data order follow from `seed`; dropout follows torch's global generator.
    Raises TrainingDiverged, at the next log line, once the loss is not finite.
    """
    device = pixels.device
    order = torch.Generator().manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = adamw(model, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, warmup_steps, learning_rate_decay)
    )
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    log = TrainingLog(model, batch_size)
    index_batches = batches(len(pixels), batch_size, order)

    on_bound = [*model.network.parameters(), *model.schedule.end_points()]
    model.train()
    for step in progress(range(1, steps + 1)):
        batch = pixels[next(index_batches).to(device)]
        t = low_discrepancy_times(torch.rand((), generator=generator, device=device), batch_size)
        eps = torch.randn(batch.shape, generator=generator, device=device)
        terms = backward(model, batch, eps, t, precision)
        gradient_norm = torch.nn.utils.clip_grad_norm_(on_bound, max_gradient_norm or math.inf)
        log.add(terms, gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        if step % log_every == 0 or step == steps:
            on_log(log.flush(step, float(schedule.get_last_lr()[0])))
        schedule.step()
    return cast(VDM, averaged.module.eval())


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


def batches(num_images: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless (batch_size,) batches of indices: every image once an epoch, no batch cut short at an epoch's end."""
    pending = torch.empty(0, dtype=torch.long)
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(num_images, generator=generator)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


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

    def __init__(self, model: VDM, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self.reset()

    def reset(self) -> None:
        self.sums, self.count, self.started = torch.zeros(4), 0, time.perf_counter()

    def add(self, terms: Terms, gradient_norm: Tensor) -> None:
        """Take in one step: `terms` (B,) nats each, the gradient's norm a scalar."""
        means = [bits_per_dim(term.detach().mean(), self.model.num_dims) for term in terms]
        self.sums = self.sums.to(gradient_norm.device) + torch.stack([*means, gradient_norm.detach()])
        self.count += 1

    def flush(self, step: int, learning_rate: float) -> TrainingRecord:
        """The record of the steps since the last one.  Raises TrainingDiverged if a loss was not finite."""
        prior, reconstruction, diffusion, gradient_norm = (self.sums / self.count).tolist()
        bpd = prior + reconstruction + diffusion
        if not math.isfinite(bpd + gradient_norm):
            raise TrainingDiverged(f"the loss became {bpd} before step {step}; lower the learning rate")
        rate = self.count * self.batch_size / (time.perf_counter() - self.started)
        self.reset()
        return TrainingRecord(
            step,
            bpd,
            prior,
            reconstruction,
            diffusion,
            self.model.schedule.gamma_0.item(),
            self.model.schedule.gamma_1.item(),
            gradient_norm,
            learning_rate,
            rate,
        )
