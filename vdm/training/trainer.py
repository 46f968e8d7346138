"""Training (appendix B): stochastic gradient descent on the bound, with a moving average of the weights.

The data set lies on the device as integers, or on the host, from which a thread brings each batch while the step before
is computed.  A step draws evenly spread times (appendix I.1) and noise, and descends on the mean -VLB in bits per
dimension.  Between two lines of the log the host reads nothing from the device.  What a step draws is a function of the
seed and of the step's number: a run that continues from a saved state ends with the same weights as one without
interruption.

When torch.distributed is initialised, the processes, one per device, split every batch among them.  Micro-batches split
it further, one after the other.  Neither changes the batch or its loss.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, distributed
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from vdm.choices import Precision
from vdm.model import VDM
from vdm.network import AttentionBlock, ResidualBlock
from vdm.prefetch import prefetch
from vdm.training.batches import Batch, augment, batch_indices, draw_batch, gather
from vdm.training.log import TrainingLog, TrainingRecord
from vdm.training.optimizer import learning_rate_factor, move_average, move_buffers, optimizers
from vdm.training.processes import process
from vdm.training.settings import TrainingSettings
from vdm.training.validation import Validation
from vdm.vlb import PredictNoise, Terms, bits_per_dim


class Trainer:
    """One training run: `step` takes its next step, `state` returns what a checkpoint must hold.

    `model` is trained in place on `images` (N,C,H,W), both on one device, or with `from_host` the images on the CPU.
    `averaged` is the model of averaged weights, `kept` the one with which the run ends.  `validation` may be None.
    A model with classes needs the `labels` (N,) of the images, on its device.
    Raises ValueError unless processes and micro-batches divide the batch evenly, and if a transform does not suit the
    images.
    """

    def __init__(
        self,
        model: VDM,
        images: Tensor,
        settings: TrainingSettings,
        validation: Validation | None = None,
        labels: Tensor | None = None,
        *,
        from_host: bool = False,
    ) -> None:
        augment(images[:1], settings.augmentation, torch.Generator(images.device))
        self.device = next(model.parameters()).device
        self.rank, self.processes = process()
        if settings.batch_size % (self.processes * settings.accumulation):
            parts = f"{self.processes} processes x accumulation {settings.accumulation}"
            raise ValueError(f"batch_size {settings.batch_size} is not a multiple of {parts}")
        self.model = model.train()
        self.images, self.labels, self.from_host = images, labels, from_host
        self.coming: Iterator[list[Tensor]] = iter(())  # the pixels of steps from `coming_at` on, with `from_host`
        self.coming_at = -1
        self.settings = settings
        self.validation = validation
        if settings.compile:
            model.store_channels_last()
        if distributed.is_initialized():  # on another kind of CPU, the first weights may differ in their last bits
            for value in model.state_dict().values():
                distributed.broadcast(value, src=0)
        self.optimizers = optimizers(
            model, settings.optimizer, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.average = AveragedModel(model)
        self.network = prepare(model, settings)
        if settings.compile:
            self.averaged.compile_network()  # for validation
        self.drop_gradients = settings.compile != "graphs"
        if not self.drop_gradients:  # they would lie in memory of a graph, which its next launch overwrites
            for parameter in filter(lambda each: each.requires_grad, model.parameters()):
                parameter.grad = torch.zeros_like(parameter)
        self.on_bound = [*model.network.parameters(), *model.schedule.end_points()]
        self.done = 0
        self.log = TrainingLog(self.device)

    @property
    def averaged(self) -> VDM:
        """The model of averaged weights, in evaluation mode."""
        return cast(VDM, self.average.module.eval())

    @property
    def kept(self) -> VDM:
        """The model of averaged weights at the best validation if that is to be kept, else the last one."""
        return self.validation.kept(self.averaged) if self.validation else self.averaged

    @property
    def unvalidated(self) -> bool:
        """Whether the log lacks the validation that follows the last step taken."""
        return (
            self.validation is not None
            and self.log.last < self.done
            and self.validation.due(self.done, steps=self.settings.steps)
        )

    @property
    def finished(self) -> bool:
        """Whether the run has taken all its steps and validations, or has no patience left."""
        complete = self.done >= self.settings.steps and not self.unvalidated
        return complete or (self.validation is not None and self.validation.impatient)

    def step(self, stop: Callable[[], bool] = lambda: False) -> TrainingRecord | None:
        """Take the next step.  Return a new line of the log after an interval, a validation and the last step.

        A validation ends without a result as soon as `stop` returns true, which it must do in all processes at once.
        The next call, also after `load_state`, repeats the validation before any other step.  A step also asks between
        its micro-batches.  If it is stopped, it leaves no trace, and the next call repeats it.

        Every step seeds torch's global random numbers, from which dropout draws.  Raises TrainingDiverged at a line of
        the log, and before a validation, if the loss or the gradient of a step since the last line was not finite.
        """
        if not self.unvalidated and not self.update(stop):
            return None
        if self.validation and self.unvalidated:
            self.log.read(self.done)
            validated = self.validation.validate(self.averaged, self.done, stop)
            return self.record(validated) if validated else None
        due = self.done >= self.settings.steps or self.done % self.settings.log_every == 0
        return self.record() if due else None

    def update(self, stop: Callable[[], bool]) -> bool:
        """Update the weights, and return whether that was done: not if `stop` returns true between micro-batches."""
        self.model.zero_grad(self.drop_gradients)  # of an interrupted step, or of the caller
        before = [buffer.clone() for buffer in self.model.buffers()]
        losses = self.accumulate_gradients(self.draw(), stop)
        if losses is None:
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)
            return False
        self.average_over_processes(losses)
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.on_bound, self.settings.max_gradient_norm or math.inf)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(self.done)
            optimizer.step()
        self.model.zero_grad(self.drop_gradients)
        self.done += 1
        # Not `update_parameters`: on CUDA it waits for the card, to which it copies its number of updates.
        averages, weights = self.average.module.parameters(), self.model.parameters()
        move_average([*averages], [*weights], self.settings.ema_decay, self.done)
        move_buffers(self.average.module.buffers(), self.model.buffers(), self.settings.ema_decay, self.done)
        self.log.add(torch.cat([bits_per_dim(losses, self.model.num_dims), gradient_norm[None]]))
        return True

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, whose number begins at 0."""
        chosen = self.settings
        factor = learning_rate_factor(step, chosen.steps, chosen.warmup_steps, chosen.learning_rate_decay)
        return chosen.learning_rate * factor

    def accumulate_gradients(self, batch: Batch, stop: Callable[[], bool]) -> Tensor | None:
        """Compute the gradients of this process's share of the batch.  Return its mean terms of the loss, (3,) nats.

        Ask `stop` between micro-batches, and return None if it returns true.
        """
        losses = torch.zeros(3, device=self.device)
        parts = self.settings.accumulation
        for number in range(parts):
            if number and stop():
                return None
            part = batch.part(self.rank * parts + number, self.processes * parts)
            predict_noise = partial(self.network, augmented=part.augmented, classes=part.classes)
            terms = backward(self.model, part, self.settings.precision, predict_noise, share=1 / parts)
            losses += torch.stack([term.detach().mean() for term in terms]) / parts
        return losses

    def record(self, validated: tuple[float, float] | None = None) -> TrainingRecord:
        """Return the next line of the log."""
        return self.log.line(
            self.done,
            ends=(self.model.schedule.gamma_0.item(), self.model.schedule.gamma_1.item()),
            learning_rate=self.learning_rate(self.done - 1),
            batch_size=self.settings.batch_size,
            validation=validated,
        )

    def draw(self) -> Batch:
        """Draw the whole batch of the next step, and seed the dropout of this process."""
        # With one seed for both, dropout masks and noise would be made of the same random numbers.
        seeds = np.random.SeedSequence([self.settings.seed, self.done]).generate_state(1 + self.processes).tolist()
        torch.manual_seed(seeds[1 + self.rank])
        chosen, generator = self.settings, torch.Generator(self.device).manual_seed(seeds[0])
        size, step, seed = chosen.batch_size, self.done, chosen.seed
        pixels = self.next_pixels() if self.from_host else None
        batch = draw_batch(
            self.images, size, step=step, generator=generator, seed=seed, transforms=chosen.augmentation, pixels=pixels
        )
        if self.labels is None:
            return batch
        classes = self.labels[batch_indices(len(self.labels), size, step, seed, self.device)]
        dropped = torch.rand(size, generator=generator, device=self.device) < chosen.class_dropout
        return batch._replace(classes=classes.masked_fill(dropped, self.model.classes or 0))

    def next_pixels(self) -> Tensor:
        """Return the pixels (B,C,H,W) of the next step, and begin to bring those of the step after from the host."""
        if self.coming_at != self.done:
            make = partial(gather, self.images, self.settings.batch_size, self.settings.seed)
            self.coming = prefetch(make, count(self.done), self.device, ahead=1)
        self.coming_at = self.done + 1
        (pixels,) = next(self.coming)
        return pixels

    def average_over_processes(self, losses: Tensor) -> None:
        """Average the losses (3,) and the gradients over the processes, which take the buffers of the first one."""
        if not distributed.is_initialized():
            return
        values = [losses, *(p.grad for p in self.model.parameters() if p.grad is not None)]
        sums = torch.cat([value.flatten() for value in values])
        if sums.is_cuda:
            distributed.all_reduce(sums, distributed.ReduceOp.AVG)
        else:  # gloo has no averages
            distributed.all_reduce(sums)
            sums /= self.processes
        means = sums.split([value.numel() for value in values])
        for value, mean in zip(values, means, strict=True):
            value.copy_(mean.view_as(value))
        for buffer in filter(torch.is_floating_point, self.model.buffers()):  # statistics of each process's share
            distributed.broadcast(buffer, src=0)

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as tensors and plain values, without the lines of the log.

        The tensors are the trainer's, so save or copy them before the next step.  Raises TrainingDiverged if a loss so
        far was not finite.
        """
        return {
            "log": self.log.state(self.done),
            "done": self.done,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "validation": self.validation.state() if self.validation else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a result of `state`.  Raises one of several errors if it does not fit this run."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.log.load_state(state["log"])
        if self.validation:
            self.validation.load_state(state["validation"])
        elif state["validation"] is not None:
            raise ValueError("the state is of a run with validation")
        self.done = int(state["done"])


def prepare(model: VDM, settings: TrainingSettings) -> torch.nn.Module:
    """Return the model's network as training calls it; it shares its parameters with the model."""
    network = model.network
    if settings.activation_checkpointing:
        # Compute the activations of a block again in the backward pass instead of keeping them until then.
        for block in network.modules():
            if isinstance(block, (ResidualBlock, AttentionBlock)):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if settings.compile:
        # The loss as a whole: up to a third of a small model's kernels are outside its network.
        mode = "reduce-overhead" if settings.compile == "graphs" else None
        model.terms = torch.compile(model.terms, dynamic=False, mode=mode)  # type: ignore[method-assign]
    return network


def backward(model: VDM, batch: Batch, precision: Precision, predict_noise: PredictNoise, *, share: float) -> Terms:
    """Add `share` times the gradients of the mean -VLB in bits/dim.  Return its terms, (B,) nats each.

    The schedule's shape does not change the bound, so it descends on the variance of the bound's estimate instead: on
    E[loss^2] of the per-image diffusion loss (appendix I.2).  Both gradients pass through gamma(t) and gamma'(t), where
    that of loss^2 is 2 loss times that of the loss.  So one backward pass through the network serves both.
    """
    schedule, pixels = model.schedule, batch.pixels
    end_points, shape = schedule.end_points(), schedule.shape_parameters()
    gamma = schedule.gamma_and_slope(batch.t)
    gamma_t, dgamma_dt = (value.detach().requires_grad_(bool(end_points or shape)) for value in gamma)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        terms = model.terms(pixels, batch.eps, gamma_t, dgamma_dt, predict_noise)
    (share * bits_per_dim(terms.total.mean(), model.num_dims)).backward()
    if gamma_t.grad is None or dgamma_dt.grad is None:
        return terms
    gradients = gamma_t.grad, dgamma_dt.grad
    if end_points:
        torch.autograd.backward(gamma, gradients, inputs=end_points, retain_graph=bool(shape))
    if shape:
        twice_loss = 2 * bits_per_dim(terms.diffusion.detach(), model.num_dims)
        torch.autograd.backward(gamma, [twice_loss * gradient for gradient in gradients], inputs=shape)
    return terms
