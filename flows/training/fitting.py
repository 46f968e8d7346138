"""The training of a model in this process, from the images to the averaged weights, with saved states on the way."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from flows.core.checkpoint import arguments_of, inputs_sha256, model_sha256, save_model
from flows.core.device import find_compile, find_device, find_precision
from flows.core.errors import Exit, UserError, brief
from flows.images.store import ImageSet, data_sha256, load_images
from flows.process.ending import on_stop
from flows.process.locks import claim
from flows.process.progress import bar
from flows.training.collectives import (
    agreement,
    any_process,
    from_first,
    is_first,
    local_rank,
    out_of_memory,
    process_group,
)
from flows.training.runs import Run, fingerprint, reported, writing_curves
from vdm.choices import TrainingImages
from vdm.model import VDM, count_parameters
from vdm.training.log import TrainingRecord
from vdm.training.processes import gather, process
from vdm.training.settings import TrainingSettings
from vdm.training.trainer import Trainer
from vdm.training.validation import Validation

if TYPE_CHECKING:
    from flows.core.params import Model, Train

log = logging.getLogger(__name__)

SETTINGS = {field.name for field in fields(TrainingSettings)}
OF_THE_RESULT = {"images", "validate_every_steps", "validation_times", "keep", "patience"}
"""The parameters that, besides `SETTINGS`, the result of a training depends on."""
BYTES_OF_A_WEIGHT = 16
"""Four float32 numbers: the weight, its average, its gradient and its momentum."""


def train_here(model: "Model", train: "Train", *, images: Path, out: Path, curves: Path, runs: Path) -> None:
    """Take this process's part in the training.  The first process writes the files."""
    device = find_device(train.device, train.num_devices, local_rank())
    with process_group(device), ExitStack() as stack:
        with agreement():
            if device.type == "cuda" or local_rank() == 0:  # on a CPU one claim covers all processes of the machine
                stack.enter_context(claim(device))
            image_set = load_images(images)
            config = arguments_of(model, image_set.image_shape, image_set.num_levels)
            require_room(config, device)
            settings, data = resolve(train, device), data_sha256(images)
            run = Run(runs / run_digest(config, train, settings, device, data), keep=train.keep_checkpoints)
            if is_first():
                for folder in (out, curves.parent, run.folder):
                    folder.mkdir(parents=True, exist_ok=True)
        if len(set(gather(run.folder.name))) > 1:
            autos = "what train.precision: auto and train.compile: auto mean on them"
            reason = f"the machines or devices differ in parameters, data, code, or {autos}"
            raise UserError(f"{reason}; make them the same, or replace auto", Exit.USAGE)
        pixels = torch.from_numpy(training_images(image_set, train.images)).to(device)
        trainer = build(config, settings, pixels, validation_of(train, image_set))
        restore(trainer, run)
        signals: list[int] = []
        stack.enter_context(on_stop(lambda number, frame: signals.append(number)))
        fit(trainer, run, curves, train, lambda: bool(signals))
        with agreement():
            if is_first():
                write_model(trainer, config, train, data, out)
                run.finish(model_sha256(out))


def require_room(config: dict[str, Any], device: torch.device) -> None:
    """Raise UserError (exit 2) unless these arguments make a model whose weights can be trained in the free memory."""
    try:
        count = count_parameters(**config)
    except ValueError as error:
        raise UserError(f"model: {error}", Exit.USAGE) from error
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if BYTES_OF_A_WEIGHT * count > free:
        needed = f"{count:,} parameters, and {free / 2**30:,.1f} GiB of memory are free on {device}"
        raise UserError(f"model: a training of {needed}; lower model.width or model.blocks", Exit.USAGE)


def resolve(train: "Train", device: torch.device) -> TrainingSettings:
    """Return the settings of the Trainer, with what `auto` means on the device."""
    precision, compiled = find_precision(train.precision, device), find_compile(train.compile, device)
    return TrainingSettings(**train.model_dump(include=SETTINGS) | {"precision": precision, "compile": compiled})


def training_images(image_set: ImageSet, wanted: TrainingImages) -> np.ndarray:
    """Return the images to train on (N,C,H,W)."""
    return image_set.train if wanted == "train" else np.concatenate([image_set.train, image_set.validation])


def validation_of(train: "Train", image_set: ImageSet) -> Validation | None:
    """Return the validations that `train` asks for."""
    if train.validate_every_steps is None:
        return None
    return Validation(
        image_set.validation,
        every_steps=train.validate_every_steps,
        times_per_image=train.validation_times,
        batch_size=micro_batch(train, process()[1]),
        seed=train.seed,
        keep=train.keep,
        patience=train.patience,
    )


def micro_batch(train: "Train", processes: int) -> int:
    """Return how many images one of the processes puts through the network at once, at least 1."""
    return max(1, train.batch_size // processes // train.accumulation)


def run_digest(
    config: dict[str, Any], train: "Train", settings: TrainingSettings, device: torch.device, data: str
) -> str:
    """Return the name of the run: a digest of everything that its result depends on."""
    conditions = {"device": device.type, "processes": process()[1], **train.model_dump(include=OF_THE_RESULT)}
    return fingerprint(model=config, train=asdict(settings) | conditions, data=data)


def build(
    config: dict[str, Any], settings: TrainingSettings, images: torch.Tensor, validation: Validation | None
) -> Trainer:
    """Return the run before its first step.  Raises UserError (exit 2) if images and parameters do not fit."""
    torch.manual_seed(settings.seed)
    try:
        trainer = Trainer(VDM(**config).to(images.device), images, settings, validation)
    except ValueError as error:
        raise UserError(f"train: {error}", Exit.USAGE) from error
    if settings.warmup_steps > settings.steps:
        warmup = "train.warmup_steps %d is above train.steps %d: training ends during the warm-up of the learning rate"
        log.warning(warmup, settings.warmup_steps, settings.steps)
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"{trainer.processes} x {images.device.type} in {settings.precision}"
    log.info("%d parameters, %d images, on %s", num_parameters, len(images), where)
    return trainer


def restore(trainer: Trainer, run: Run) -> None:
    """Continue from the newest state of the run, if there is one; log which."""
    with agreement():
        state = run.newest(trainer.state().keys()) if is_first() else None
    if state := from_first(state):
        resume(trainer, state, run.folder)
        log.info("continuing from step %d of %d", trainer.done, trainer.settings.steps)
    else:
        log.info("no saved state of these parameters, data and code in %s; from the first step", run.folder.parent)


def resume(trainer: Trainer, state: dict[str, Any], folder: Path) -> None:
    """Continue from a saved state.  Raises UserError (exit 5) if it is the state of another run."""
    try:
        trainer.load_state(state)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error) or "CUDA error" in str(error):  # of the card, not of the state
            raise
        reason = f"{folder}: its newest state is of another run: {brief(error)}; delete this folder"
        raise UserError(reason, Exit.MISSING) from error


def fit(trainer: Trainer, run: Run, curves: Path, train: "Train", asked_to_stop: Callable[[], bool]) -> None:
    """Take the remaining steps; write states and lines of the training log.

    Raises UserError (exit 75) after saving a state if the run was asked to stop.
    """
    steps = trainer.settings.steps
    saved_at, saved_time = trainer.done, time.monotonic()

    def stops() -> bool:
        return any_process(asked_to_stop())[0]

    with ExitStack() as stack:
        with agreement():
            log_line = stack.enter_context(writing_curves(curves, trainer.records)) if is_first() else None
        first = trainer.done - 1 if trainer.unvalidated else trainer.done  # a pending validation takes one more turn
        progress = bar("training", shown=is_first())(range(first, steps))
        for _ in progress:
            if trainer.finished:
                log.info("step %d of %d: training ends, since validation no longer improves", trainer.done, steps)
                break
            if record := trainer.step(stops):
                with agreement():
                    if log_line:
                        log_line(record)
                log.info("step %d: %s, %.0f images/s", record.step, in_words(record), record.images_per_second)
                progress.set_postfix_str(in_words(record))
            overdue = time.monotonic() - saved_time >= 60 * train.checkpoint_every_minutes
            stop, overdue = any_process(asked_to_stop() and not trainer.finished, overdue and is_first())
            if stop or overdue or trainer.done - saved_at >= train.checkpoint_every_steps:
                save(trainer, run)
                saved_at, saved_time = trainer.done, time.monotonic()
            if stop:
                raise UserError(f"stopped at step {trainer.done} of {steps}; run again to continue", Exit.RESUMABLE)
    if trainer.done > saved_at:
        save(trainer, run)


def in_words(record: TrainingRecord) -> str:
    """Return the bits/dim of a line of the training log, with those of its validation, if there was one."""
    validation = ""
    if record.validation_bpd is not None:
        error = record.validation_monte_carlo_standard_error
        validation = f", validation {record.validation_bpd:.4f} (Monte Carlo error {error:.4f})"
    return f"{record.bpd:.4f} bits/dim{validation}"


def save(trainer: Trainer, run: Run) -> None:
    """Save the state of the run in the first process."""
    with agreement():
        if is_first():
            run.save(trainer.done, trainer.state())


def write_model(trainer: Trainer, config: dict[str, Any], train: "Train", data: str, out: Path) -> None:
    """Write the model with which the run ends, and what it was trained with.  Raises UserError (exit 1) if it cannot.

    `data` is the digest of the images.
    """
    inputs = inputs_sha256(config, train.model_dump(), data)
    with reported(f"{out}: the model"):
        save_model(out, trainer.kept, config, fitted_to=train.images, inputs=inputs)


def advice_on_memory(train: "Train", processes: int) -> str:
    """Return a message that says which parameters to change when a step does not fit into memory.

    `processes` is the number of processes on all machines, which split a batch.
    """
    part = micro_batch(train, processes)
    factor = next((n for n in range(2, part + 1) if part % n == 0), None)  # it must divide the batch
    advice = f"train.accumulation: {factor * train.accumulation}" if factor else "a smaller model"
    if not train.activation_checkpointing:
        advice += " or train.activation_checkpointing: true"
    return f"out of memory with {part} images of train.batch_size at a time; set {advice}"
