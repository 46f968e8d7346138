"""Training (appendix B): stochastic gradient descent on the bound, with a moving average of the weights.

The data set lies on the device as integers; a step gathers a batch, draws evenly spread times (appendix I.1) and
noise, and descends on the mean -VLB in bits per dimension.  What a step draws follows from the seed and the step's
number alone, so that a run continued from any step is the run that was never interrupted.

Several processes, one per device, share out every batch when torch.distributed is initialised; so do micro-batches,
one after the other.  The batch, and with it the loss, stays what it is with one of each.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from vdm.batches import Batch, augment, draw_batch
from vdm.choices import LearningRateDecay, Precision, Transform
from vdm.model import VDM
from vdm.network import AttentionBlock, ResidualBlock
from vdm.schedule import gamma_and_slope
from vdm.training_log import TrainingLog, TrainingRecord
from vdm.vlb import PredictNoise, Terms, bits_per_dim


class Trainer:
    """One run of training: `step` moves it on, `state` is what a checkpoint must hold.

    `model` is trained in place on `images` (N,C,H,W), both on one device; `averaged` is the model of averaged weights.
    `batch_size` counts the images of a step, over all processes and all `accumulation` micro-batches of each.
    Raises ValueError unless they divide it, or when the images do not allow a transform of `augmentation`.
    """

    def __init__(
        self,
        model: VDM,
        images: Tensor,
        *,
        steps: int,
        batch_size: int,
        accumulation: int,
        augmentation: Sequence[Transform],
        learning_rate: float,
        warmup_steps: int,
        learning_rate_decay: LearningRateDecay,
        betas: Sequence[float],
        weight_decay: float,
        max_gradient_norm: float | None,
        ema_decay: float,
        precision: Precision,
        compile: bool,
        activation_checkpointing: bool,
        seed: int,
        log_every: int,
    ) -> None:
        augment(images[:1], augmentation, torch.Generator(images.device))
        self.rank, self.processes = process()
        if batch_size % (self.processes * accumulation):
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of {self.processes} processes x accumulation {accumulation}"
            )
        self.model, self.images, self.steps, self.batch_size = model.train(), images, steps, batch_size
        self.accumulation, self.augmentation = accumulation, augmentation
        self.learning_rate, self.warmup_steps, self.decay = learning_rate, warmup_steps, learning_rate_decay
        self.max_gradient_norm, self.precision = max_gradient_norm, precision
        self.seed, self.log_every = seed, log_every
        if images.is_cuda:
            # The layout of tensor cores; on CPUs it made convolutions half as fast.
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = adamw(model, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        self.network = prepare(model, compile=compile, activation_checkpointing=activation_checkpointing)
        self.on_bound = [*model.network.parameters(), *model.schedule.end_points()]
        self.done = 0
        self.records: list[TrainingRecord] = []
        self.log = TrainingLog()

    @property
    def averaged(self) -> VDM:
        """The model of averaged weights, in evaluation mode."""
        return cast(VDM, self.average.module.eval())

    def step(self) -> TrainingRecord | None:
        """Take the next step; the log's new line at the end of an interval.

        Raises TrainingDiverged once the loss or its gradient is not finite: at that step, on CUDA one step later.
        """
        batch = self.draw()
        factor = learning_rate_factor(self.done, self.steps, self.warmup_steps, self.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        losses = torch.zeros(3, device=self.images.device)
        for number in range(self.accumulation):
            part = batch.part(self.rank * self.accumulation + number, self.processes * self.accumulation)
            waits = number + 1 < self.accumulation and isinstance(self.network, DistributedDataParallel)
            with self.network.no_sync() if waits else nullcontext():  # type: ignore[operator]
                predict_noise = partial(self.network, augmented=part.augmented)
                terms = backward(self.model, part, self.precision, predict_noise, share=1 / self.accumulation)
            losses += torch.stack([term.detach().mean() for term in terms]) / self.accumulation
        self.average_over_processes(losses)
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.on_bound, self.max_gradient_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)
        self.done += 1
        self.log.add(self.done, torch.cat([bits_per_dim(losses, self.model.num_dims), gradient_norm[None]]))
        if self.done % self.log_every and self.done < self.steps:
            return None
        schedule = self.model.schedule
        ends = schedule.gamma_0.item(), schedule.gamma_1.item()
        record = self.log.line(self.done, ends, self.learning_rate * factor, self.batch_size)
        self.records.append(record)
        return record

    def draw(self) -> Batch:
        """The whole batch of the next step; seeds dropout too, for this process."""
        # Seeds apart: from one, the dropout masks would be the very numbers that the noise is made of.
        seeds = np.random.SeedSequence([self.seed, self.done]).generate_state(1 + self.processes).tolist()
        torch.manual_seed(seeds[1 + self.rank])
        generator = torch.Generator(self.images.device).manual_seed(seeds[0])
        return draw_batch(
            self.images,
            self.batch_size,
            step=self.done,
            generator=generator,
            seed=self.seed,
            transforms=self.augmentation,
        )

    def average_over_processes(self, losses: Tensor) -> None:
        """Average the losses (3,) and the schedule's gradients, which DistributedDataParallel does not see."""
        if self.processes == 1:
            return
        gradients = [p.grad for p in self.model.schedule.parameters() if p.grad is not None]
        values = torch.cat([value.flatten() for value in (losses, *gradients)])
        distributed.all_reduce(values)
        sizes = [value.numel() for value in (losses, *gradients)]
        for value, mean in zip((losses, *gradients), (values / self.processes).split(sizes), strict=True):
            value.copy_(mean.view_as(value))

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values.

        Raises TrainingDiverged rather than hand out a state that is not finite.
        """
        return {
            "log": self.log.state(),
            "done": self.done,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "records": [list(record) for record in self.records],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`, of a run with the same arguments.  Raises what torch raises over any other."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log.load_state(state["log"])
        self.records = [TrainingRecord(*values) for values in state["records"]]
        self.done = int(state["done"])


def process() -> tuple[int, int]:
    """The rank of this process and the number of all."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def memory_needed(
    *,
    num_parameters: int,
    width: int,
    image_shape: Sequence[int],
    num_images: int,
    batch_size: int,
    part: int,
) -> int:
    """Return a lower bound of the bytes that a process takes beside the images, `part` of a batch at a time.

    That is five float32 copies of the weights (the model, its average, gradients, two moments of AdamW), the order of
    an epoch, the batch with its noise, and what one block of twice the width keeps for its gradient, twelve tensors.
    """
    num_dims, num_pixels = math.prod(image_shape), math.prod(image_shape[1:])
    return 20 * num_parameters + 16 * num_images + 5 * num_dims * batch_size + 48 * width * num_pixels * part


def prepare(model: VDM, *, compile: bool, activation_checkpointing: bool) -> torch.nn.Module:
    """The model's network in the form that training calls; its parameters stay the model's."""
    network = model.network
    if activation_checkpointing:
        # A block's activations are computed once more in the backward pass, instead of kept until then.
        for block in network.modules():
            if isinstance(block, (ResidualBlock, AttentionBlock)):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if compile:
        network.compile()
    return DistributedDataParallel(network, gradient_as_bucket_view=True) if distributed.is_initialized() else network


def backward(model: VDM, batch: Batch, precision: Precision, predict_noise: PredictNoise, *, share: float) -> Terms:
    """Add to the gradients `share` times those of the mean -VLB in bits/dim; returns its terms, (B,) nats each.

    The schedule's shape leaves the bound unchanged, so it descends on the variance of the bound's estimate instead:
    on E[loss^2] of the per-image diffusion loss (appendix I.2).  Both gradients pass through gamma(t) and gamma'(t),
    where that of loss^2 is 2 loss times that of the loss: one backward pass through the network serves both.
    """
    schedule, pixels = model.schedule, batch.pixels
    end_points, shape = schedule.end_points(), schedule.shape_parameters()
    gamma = gamma_and_slope(schedule, batch.t)
    gamma_t, dgamma_dt = (value.detach().requires_grad_(bool(end_points)) for value in gamma)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        terms = model.terms(pixels, batch.eps, gamma_t, dgamma_dt, predict_noise)
    (share * bits_per_dim(terms.total.mean(), model.num_dims)).backward()
    if gamma_t.grad is None or dgamma_dt.grad is None:
        return terms
    torch.autograd.backward(gamma, (gamma_t.grad, dgamma_dt.grad), inputs=end_points, retain_graph=bool(shape))
    if shape:
        twice_loss = 2 * bits_per_dim(terms.diffusion.detach(), model.num_dims)
        torch.autograd.backward(gamma, (twice_loss * gamma_t.grad, twice_loss * dgamma_dt.grad), inputs=shape)
    return terms


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
