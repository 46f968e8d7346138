"""The training of a model in this process: from the images to the averaged weights, saving states on the way."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flows.core.device import find_compile, find_devices, find_precision
from flows.core.errors import Exit, UserError
from flows.core.memory import require
from flows.images.store import ImageSet, data_sha256, load_images
from flows.process.locks import claim
from flows.process.progress import bar
from flows.training.distributed import (
    agreement,
    any_process,
    from_first,
    gather,
    is_first,
    local_rank,
    process_group,
)
from flows.training.runs import Run, fingerprint, stop_signals, unwritten, writing_curves
from vdm.checkpoint import save_model
from vdm.model import VDM, count_parameters
from vdm.training import Trainer, memory_needed, process

if TYPE_CHECKING:
    from flows.core.params import Model, Train

log = logging.getLogger(__name__)

# A process that has loaded torch.
PROCESS_BYTES = 2**28
# Parameters that no bit of the result depends on.
CONDUCT = ("device", "max_restarts", "checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints")


def train_here(model: "Model", train: "Train", *, images: Path, out: Path, curves: Path, runs: Path) -> None:
    """This process's part in the training; the first process writes the files."""
    device = find_devices(train.device, train.num_devices)[local_rank()]
    with process_group(device), ExitStack() as stack:
        with agreement():
            if device.type == "cuda" or local_rank() == 0:  # on a CPU one claim is for all processes of the machine
                stack.enter_context(claim(device))
            image_set = load_images(images)
            if device.type == "cuda":
                require_memory(model, train, image_set, device, process()[1])
            config = {"image_shape": image_set.image_shape, "num_levels": image_set.num_levels, **model.model_dump()}
            arguments = resolve(train, device)
            conditions = {"device": device.type, "processes": process()[1]}
            digest = fingerprint(model=config, train=arguments | conditions, data=data_sha256(images))
            run = Run(runs / digest, keep=train.keep_checkpoints)
            if is_first():
                for folder in (out, curves.parent, run.folder):  # before the work, not after it
                    folder.mkdir(parents=True, exist_ok=True)
        if len(set(gather(digest))) > 1:
            raise UserError("the machines differ in parameters, data or code; make them the same", Exit.USAGE)
        trainer = build(config, arguments, torch.from_numpy(image_set.train).to(device))
        with agreement():
            state = run.newest(trainer.state().keys()) if is_first() else None
        if state := from_first(state):
            resume(trainer, state, run.folder)
            log.info("continuing from step %d of %d", trainer.done, trainer.steps)
        asked_to_stop = stack.enter_context(stop_signals())
        fit(trainer, run, curves, train, asked_to_stop)
        with agreement():
            if is_first():
                finish(trainer, config, out)
                if not asked_to_stop():  # else nobody may be there to take the result
                    run.remove()


def finish(trainer: Trainer, config: dict[str, Any], out: Path) -> None:
    """Write the model of averaged weights.  UserError (exit 1) when it cannot be written."""
    try:
        save_model(out, trainer.averaged, config)
    except OSError as error:
        raise unwritten(str(error.filename or out), error) from error


def resolve(train: "Train", device: torch.device) -> dict[str, Any]:
    """The arguments of the Trainer, with `auto` replaced by what it means on the device."""
    arguments = train.model_dump(exclude={*CONDUCT, "num_devices"})
    arguments["precision"] = find_precision(train.precision, device)
    arguments["compile"] = find_compile(train.compile, device)
    return arguments


def build(config: dict[str, Any], arguments: dict[str, Any], images: torch.Tensor) -> Trainer:
    """The run at its first step.  UserError (exit 2) when images and parameters do not fit each other."""
    torch.manual_seed(arguments["seed"])
    try:
        trainer = Trainer(VDM(**config).to(images.device), images, **arguments)
    except ValueError as error:
        raise UserError(f"train: {error}", Exit.USAGE) from error
    if trainer.warmup_steps > trainer.steps:
        warmup = "train.warmup_steps %d is above train.steps %d: the learning rate ends before it has risen"
        log.warning(warmup, trainer.warmup_steps, trainer.steps)
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"{trainer.processes} x {images.device.type} in {trainer.precision}"
    log.info("%d parameters, %d images, on %s", num_parameters, len(images), where)
    return trainer


def resume(trainer: Trainer, state: dict[str, Any], folder: Path) -> None:
    """Continue from a saved state.  Raises UserError (exit 5) for one that is of another run."""
    try:
        trainer.load_state(state)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{folder}: its newest state is of another run: {reason}; delete it", Exit.MISSING) from error


def fit(trainer: Trainer, run: Run, curves: Path, train: "Train", asked_to_stop: Callable[[], bool]) -> None:
    """Take the steps that are left, saving states and log lines on the way.  UserError (exit 75) when asked to stop."""
    saved_at, saved_time = trainer.done, time.monotonic()
    with ExitStack() as stack:
        with agreement():
            log_line = stack.enter_context(writing_curves(curves, trainer.records)) if is_first() else None
        for _ in bar("training", shown=is_first())(range(trainer.done, trainer.steps)):
            if record := trainer.step():
                with agreement():
                    if log_line:
                        log_line(record)
                log.info("step %d: %.4f bits/dim, %.0f images/s", record.step, record.bpd, record.images_per_second)
            by_time = time.monotonic() - saved_time >= 60 * train.checkpoint_every_minutes
            stop, by_time = any_process(asked_to_stop() and trainer.done < trainer.steps, by_time and is_first())
            if stop or by_time or trainer.done - saved_at >= train.checkpoint_every_steps:
                with agreement():
                    if is_first():
                        run.save(trainer.done, trainer.state())
                saved_at, saved_time = trainer.done, time.monotonic()
            if stop:
                reason = f"stopped at step {trainer.done} of {trainer.steps}; run again to continue"
                raise UserError(reason, Exit.RESUMABLE)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: CUDA has an exception of its own for that, the CPU only words."""
    words = ("can't allocate memory", "CUDA out of memory")  # the latter from another process
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def advice_on_memory(train: "Train") -> str:
    """What to change when a step does not fit."""
    part = train.batch_size // train.num_devices // train.accumulation
    advice = f"train.accumulation: {2 * train.accumulation}" if part > 1 else "a smaller model"
    if not train.activation_checkpointing:
        advice += " or train.activation_checkpointing: true"
    return f"out of memory with {part} images of train.batch_size at a time; set {advice}"


def require_memory(model: "Model", train: "Train", images: ImageSet, device: torch.device, processes: int) -> None:
    """Raise UserError (exit 2) when not even the largest parts of training would fit into memory.

    `processes` share out a batch, on all machines; on a CPU those of one machine share its memory, too.
    """
    config = model.model_dump()
    needed = memory_needed(
        num_parameters=count_parameters(image_shape=images.image_shape, **config),
        width=model.width,
        image_shape=images.image_shape,
        num_images=len(images.train),
        batch_size=train.batch_size,
        part=train.batch_size // processes // train.accumulation,
    )
    if device.type == "cpu":  # where the images stay in their file, and all processes share the memory
        needed = train.num_devices * needed + (train.num_devices - 1) * PROCESS_BYTES
    else:
        needed += images.train.nbytes
    require(needed, device, "train: lower model.blocks, model.width, train.batch_size or train.num_devices")
