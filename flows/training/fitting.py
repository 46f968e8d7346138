"""The stage `train`: fit a VDM to the training images and keep the averaged weights, with saved states on the way."""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flows.contract.findings import Verdict, require_valid
from flows.core.device import find_compile, find_device, find_precision, keep_on_device, set_backend
from flows.core.errors import Exit, UserError
from flows.core.files import write_whole
from flows.core.model import (
    TrainedModel,
    arguments_of,
    check_arguments,
    inputs_sha256,
    read_config,
    require_room,
    save_model,
)
from flows.core.network_code import HERE
from flows.core.networks import NetworkSource, new_vdm
from flows.images.grids import grid, png
from flows.images.image_set import SPLITS, ImageSet, about_classes, number_of_classes
from flows.process.ending import handle_stop
from flows.process.locks import claim
from flows.process.progress import TrainingProgress, tell
from flows.process.streams import bar
from flows.training.distributed import Poll, is_first, launch, local_rank, out_of_memory, process_group, take_first
from flows.training.states import States, add_lines, fingerprint, make_tracker, start_curves
from vdm.choices import Precision, TrainingImages
from vdm.errors import TrainingDiverged
from vdm.model import VDM, count_parameters
from vdm.network import AttentionBlock
from vdm.sampling import Solver, sample
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
OPERATIONS_OF_A_THREAD = 5e10
"""What a thread of a CPU does of attention in a second; 5e10 to 1e11 were measured."""


def train(
    model: "Model",
    settings: "Train",
    images: ImageSet,
    verdict: Verdict,
    *,
    out: Path,
    curves: Path,
    trainings: Path,
    start: TrainedModel | None = None,
) -> None:
    """Write the model of averaged weights to `out` and one line per log interval to `curves` (CSV).

    Pictures of samples, if `settings` ask for them, lie beside `curves`.

    Training begins with the weights of `start`, or with random ones.  The optimizer and the averages are always new.

    Saved states are in a folder in `trainings`.  A training that was stopped or killed continues from the newest state.
    `num_devices` processes train together.  If torchrun started this process, torchrun's processes train together
    instead.

    Raises UserError unless the verdict says that the images are valid (exit 4), if `start` is another kind of model
    than parameters and images make (2), if a device is missing (2) or busy (6), memory is too small (2), processes end
    too often (1), or it was asked to stop (75); TrainingDiverged; OSError that names a file that cannot be
    written.
    """
    needed = settings.validate_every_steps is not None or settings.images == "train_and_validation"
    require_valid(images, verdict, needs_validation_images=needed)
    if start:
        require_alike(start, arguments(model, images), images)
    find_device(settings.device, settings.num_devices)
    launched = torch.distributed.is_torchelastic_launched()
    if launched and (started := int(os.environ["LOCAL_WORLD_SIZE"])) != settings.num_devices:
        wrong = f"torchrun started {started} processes, but train.num_devices is {settings.num_devices}"
        raise UserError(f"{wrong}; set --nproc-per-node to train.num_devices", Exit.USAGE)
    job = partial(train_here, model, settings, images, out=out, curves=curves, trainings=trainings, start=start)
    try:
        if settings.num_devices > 1 and not launched:
            again = "run again to continue from the last saved state"
            launch(job, num_processes=settings.num_devices, max_restarts=settings.max_restarts, again=again)
        else:
            job()
    except TrainingDiverged as error:
        raise TrainingDiverged(f"{error} (train.learning_rate, train.max_gradient_norm)") from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        reason = f"out of memory with train.batch_size {settings.batch_size}"
        advice = "raise train.accumulation to a divisor of it"
        if not model.network:
            advice += ", or set train.activation_checkpointing: true"
        raise UserError(f"{reason}; {advice}", Exit.USAGE) from error


def arguments(model: "Model", images: ImageSet) -> dict[str, Any]:
    """Return the arguments of the model that the parameters make for the images.  Raises UserError (exit 2)."""
    model = model.model_copy(update={"classes": number_of_classes(images, model.classes)})
    return arguments_of(model, images.image_shape, images.num_levels)


def require_alike(start: TrainedModel, config: dict[str, Any], images: ImageSet) -> None:
    """Raise UserError (exit 2) unless a model has the arguments `config`, but for dropout, and the set's classes."""
    ours, theirs = (check_arguments(each).model_dump(exclude={"dropout"}) for each in (config, start.description.model))
    if start.num_classes and start.class_names != images.class_names:
        ours["class_names"], theirs["class_names"] = images.class_names, start.class_names
    differing = [
        f"{name} {json.dumps(theirs.get(name))} instead of {json.dumps(value)}"
        for name, value in ours.items()
        if json.dumps(theirs.get(name)) != json.dumps(value)
    ]
    if differing:
        advice = "`vdmctl preset --images FOLDER --start-from MODEL` writes parameters that fit, and null begins anew"
        raise UserError(f"train.start_from: {start.name} has {', '.join(differing)}; {advice}", Exit.USAGE)


def train_here(
    model: "Model",
    train: "Train",
    images: ImageSet,
    *,
    out: Path,
    curves: Path,
    trainings: Path,
    start: TrainedModel | None = None,
) -> None:
    """Take this process's part in the training.  The first process writes the files."""
    device = find_device(train.device, train.num_devices, local_rank())
    with process_group(device), ExitStack() as stack:
        if device.type == "cuda" or local_rank() == 0:  # on a CPU one claim covers all processes of the machine
            stack.enter_context(claim(device))
        config = arguments(model, images)
        stated = about_classes(images) if config.get("classes") else {}
        settings = resolve(train, device)
        begins = {"start": start.sha256} if start else {}
        coded = {"network": HERE.of(config["network"]).sha256} if "network" in config else {}
        digest = run_digest(config, train, settings, device, images.data_sha256, **begins, **coded, **stated)
        states = States(trainings / digest, keep=train.keep_checkpoints)
        if len(set(gather(states.folder.name))) > 1:
            autos = "what train.precision: auto and train.compile: auto mean on them"
            reason = f"the machines or devices differ in parameters, data, code, or {autos}"
            raise UserError(f"{reason}; make them the same, or replace auto", Exit.USAGE)
        if is_first():  # a folder that cannot be written is reported before the training
            for folder in (out, curves.parent, states.folder):
                folder.mkdir(parents=True, exist_ok=True)
        set_backend(training=True)
        pixels = torch.from_numpy(pixels_to_fit(images, train.images))
        labels = {split: images.classes(split) for split in SPLITS} if stated else {}
        if labels and train.images != "train":
            labels["train"] = np.concatenate([labels["train"], labels["validation"]])
        num_bytes = pixels.nbytes * (2 if pixels.dtype == torch.uint16 else 1)  # as integers of 32 bits
        bring_to = None if keep_on_device(train.images_on, num_bytes, device) else device
        precision = settings.precision if device.type == "cuda" else "float32"
        validation = validation_of(train, images, precision, labels.get("validation"))
        if device.type == "cuda" and not bring_to and pixels.dtype == torch.uint16:
            pixels = pixels.int()  # many operations of CUDA do not take uint16
        pixels = pixels if bring_to else pixels.to(device)
        trainer = build(config, settings, pixels, validation, bring_to, labels.get("train"), start=start)
        continue_training(trainer, states)
        from tqdm.contrib.logging import logging_redirect_tqdm  # which warns in a notebook, see `bar_of_steps`

        signals: list[int] = []
        stack.enter_context(handle_stop(lambda number, frame: signals.append(number)))
        stack.enter_context(logging_redirect_tqdm())  # a line of the log does not cut the progress bar
        take_steps(trainer, states, curves, train, lambda: bool(signals))
        if is_first():
            ancestors = start.line if start else []
            write_model(trainer, config, train, images.data_sha256, out, ancestors=ancestors, **coded, **stated)
            states.finish(read_config(out)[1])


def resolve(train: "Train", device: torch.device) -> TrainingSettings:
    """Return the settings of the Trainer, with what `auto` means on the device."""
    precision, compiled = find_precision(train.precision, device), find_compile(train.compile, device)
    return TrainingSettings(**train.model_dump(include=SETTINGS) | {"precision": precision, "compile": compiled})


def pixels_to_fit(images: ImageSet, wanted: TrainingImages) -> np.ndarray:
    """Return the images to train on (N,C,H,W)."""
    return images["train"] if wanted == "train" else np.concatenate([images["train"], images["validation"]])


def validation_of(
    train: "Train", images: ImageSet, precision: Precision, labels: np.ndarray | None = None
) -> Validation | None:
    """Return the validations that `train` asks for."""
    if train.validate_every_steps is None:
        return None
    return Validation(
        images["validation"],
        labels=labels,
        every_steps=train.validate_every_steps,
        times_per_image=train.validation_times,
        batch_size=max(1, train.batch_size // process()[1] // train.accumulation),  # as a step of the training
        seed=train.seed,
        keep=train.keep,
        patience=train.patience,
        precision=precision,
    )


def run_digest(
    config: dict[str, Any], train: "Train", settings: TrainingSettings, device: torch.device, data: str, **others: Any
) -> str:
    """Return the name of the training: a digest of everything that its result depends on, `others` among it."""
    conditions = {"device": device.type, "processes": process()[1], **train.model_dump(include=OF_THE_RESULT)}
    return fingerprint(model=config, train=asdict(settings) | conditions, data=data, **others)


def build(
    config: dict[str, Any],
    settings: TrainingSettings,
    images: torch.Tensor,
    validation: Validation | None,
    bring_to: torch.device | None = None,
    labels: np.ndarray | None = None,
    *,
    start: TrainedModel | None = None,
    source: NetworkSource = HERE,
) -> Trainer:
    """Return the training before its first step, on the device of the images or, batch by batch, on another one.

    It begins with the weights of `start`, or with random ones; a network of the user's own is made of `source`.  Raises
    UserError (exit 2) if images and parameters do not fit, or if the device has not enough memory free to train the
    weights.
    """
    device = bring_to or images.device
    try:
        if "network" not in config:  # what another one has is known once it is made
            require_room("model", count_parameters(**config), device, bytes_each=BYTES_OF_A_WEIGHT)
        torch.manual_seed(settings.seed)
        classes = None if labels is None else torch.from_numpy(labels).to(device)
        vdm = new_vdm(VDM, config, source)
        num_parameters = sum(p.numel() for p in vdm.parameters())
        if start:
            try:
                vdm.load_state_dict(start.vdm.state_dict())
            except RuntimeError as error:  # the arguments are alike, so it is the code that changed
                reason = f"the weights of {start.name} do not fit {config.get('network', 'the network')} as it is here"
                raise UserError(f"train.start_from: {reason}; null begins anew", Exit.USAGE) from error
        trainer = Trainer(vdm.to(device), images, settings, validation, classes, from_host=bool(bring_to))
    except ValueError as error:
        raise UserError(f"parameters `model` and `train`: {error}", Exit.USAGE) from error
    if settings.warmup_steps > settings.steps:
        warmup = "train.warmup_steps %d is above train.steps %d: training ends during the warm-up of the learning rate"
        log.warning(warmup, settings.warmup_steps, settings.steps)
    if device.type == "cpu":
        warn_of_attention(trainer)
    where = f"{trainer.processes} x {device.type} in {settings.precision}"
    log.info("%d parameters, %d images, on %s", num_parameters, len(images), where)
    return trainer


def warn_of_attention(trainer: Trainer) -> None:
    """Log a warning if a CPU needs minutes for the attention of a step, whose work grows with the square of pixels."""
    network, (_, height, width) = trainer.model.network, trainer.model.image_shape
    channels = sum(block.project.in_features for block in network.modules() if isinstance(block, AttentionBlock))
    # Two products over all pairs of pixels, forward and twice as much backward.
    of_image = 12 * (height * width) ** 2 * channels
    images = trainer.settings.batch_size / trainer.processes
    minutes = of_image * images / (OPERATIONS_OF_A_THREAD * torch.get_num_threads()) / 60
    if minutes > 1:
        takes = f"attention between all {height}x{width} pixels takes about {minutes:.0f} min a step on this CPU"
        advice = "data.resize makes images smaller; train.accumulation takes less memory, and stops sooner"
        log.warning("%s; %s", takes, advice)


def continue_training(trainer: Trainer, states: States) -> None:
    """Continue from the newest state of the training, if there is one; log which."""
    if state := take_first(states.newest() if is_first() else None):
        trainer.load_state(state)
        log.info("continuing from step %d of %d", trainer.done, trainer.settings.steps)
    else:
        log.info("no saved state of these parameters, data and code in %s; from the first step", states.folder.parent)


def take_steps(
    trainer: Trainer,
    states: States,
    curves: Path,
    train: "Train",
    asked_to_stop: Callable[[], bool],
) -> None:
    """Take the remaining steps; write states, lines of the training log, and pictures of samples.

    Raises UserError: after saving a state, if it was asked to stop (exit 75), and what `make_tracker` raises.
    """
    began = time.monotonic()
    told, saves = Telling(trainer, states, curves, train, began), Saves(trainer, states, train, began)
    training, validating = Poll(asked_to_stop), Poll(asked_to_stop)  # each at its own pace
    for _ in told.steps:
        if trainer.finished:
            told.end_early()
            break
        record = trainer.step(lambda: validating() if trainer.unvalidated else training())
        told.look_at_clock()
        whole = not training.answer  # a step that was stopped is told and drawn when it is taken again
        if record:
            told.line(record)
        elif whole and trainer.done == told.timed:
            told.pace()
        if whole:
            draw_samples(trainer, curves, train)
        stop = (validating.answer or training()) and not trainer.finished
        if stop or saves.due(told.now):
            saves.save()
        if stop:
            reason = f"stopped at step {trainer.done} of {trainer.settings.steps}"
            raise UserError(f"{reason}; run again to continue", Exit.RESUMABLE)
    if saves.step < trainer.done:
        saves.save()


class Telling:
    """What a training tells on its way: the lines of its log, in files, a tracker and a bar, and how far it is.

    The first process writes the files.  Raises what `make_tracker` and `States.lines` raise.
    """

    def __init__(self, trainer: Trainer, states: States, curves: Path, train: "Train", now: float) -> None:
        self.trainer, self.last = trainer, trainer.settings.steps
        self.began = self.before = self.now = now
        self.first = trainer.done - 1 if trainer.unvalidated else trainer.done  # a pending validation is one more turn
        self.timed = trainer.done + (2 if trainer.settings.compile else 1)
        """The first step that does not wait for a compiler."""
        self.track = make_tracker(train.tracker if is_first() else None, states.folder, trainer.done)
        self.files = (states.log, curves)
        if is_first():
            start_curves(curves, states.lines(trainer.log.last, trainer.log.lines))
            for picture in [] if trainer.done else curves.parent.glob("samples-*.png"):
                picture.unlink()  # of another training
        self.steps = bar("training", shown=is_first())(range(self.first, self.last))
        self.progress = TrainingProgress(step=trainer.done, steps=self.last)

    def look_at_clock(self) -> None:
        """Note when a step ended.  CUDA is waited for up to the timed step."""
        if self.trainer.done <= self.timed and self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
        self.before, self.now = self.now, time.monotonic()

    def line(self, record: TrainingRecord) -> None:
        """Tell a line of the training log, and the time left at the pace so far."""
        seconds = (self.now - self.began) / (self.trainer.done - self.first) * (self.last - self.trainer.done)
        self.progress = progress_of(record, self.progress, seconds)
        if is_first():
            for file in self.files:
                add_lines(file, record)
            tell(self.progress)
        self.track(record)
        pace = f"{record.images_per_second:.0f} images/s, {timedelta(seconds=round(seconds))} left"
        log.info("step %d: %s, %s", record.step, describe_record(record), pace)
        self.steps.set_postfix_str(describe_record(record))

    def pace(self) -> None:
        """Tell how long the last step took, and the time left at that pace."""
        seconds = self.now - self.before
        left = timedelta(seconds=round(seconds * (self.last - self.trainer.done)))
        log.info("step %d: a step takes %.2f s, %s left", self.trainer.done, seconds, left)

    def end_early(self) -> None:
        """Tell that the training ends before its last step."""
        if is_first():
            tell(self.progress.model_copy(update={"has_ended": True}))
        done = self.trainer.done
        log.info("step %d of %d: training ends, since validation no longer improves", done, self.last)


class Saves:
    """The saves of a training's state in the first process: every so many steps or minutes."""

    def __init__(self, trainer: Trainer, states: States, train: "Train", now: float) -> None:
        self.trainer, self.states = trainer, states
        self.every_steps, self.every_seconds = train.checkpoint_every_steps, 60 * train.checkpoint_every_minutes
        self.step, self.time = trainer.done, now
        """The step and the time of the last save."""

    def due(self, now: float) -> bool:
        """Whether so many steps or minutes have passed since the last save."""
        return now - self.time >= self.every_seconds or self.trainer.done - self.step >= self.every_steps

    def save(self) -> None:
        """Save the state."""
        if is_first():
            self.states.save(self.trainer.done, self.trainer.state())
        self.step, self.time = self.trainer.done, time.monotonic()


def draw_samples(trainer: Trainer, curves: Path, train: "Train") -> None:
    """Draw samples of the averaged weights into a picture beside `curves` in the first process, if the step is due."""
    due = train.samples_every_steps and trainer.done % train.samples_every_steps == 0
    if is_first() and due:
        with suppress(ArithmeticError):  # of weights that have diverged, as the log will say
            write_whole(curves.with_name(f"samples-{trainer.done:09d}.png"), preview(trainer.averaged))


def preview(vdm: VDM) -> bytes:
    """Return a picture of the first 16 images of seed 0 as a PNG file.  Raises what `vdm.sampling.sample` raises."""
    classes = range(vdm.classes) if vdm.classes else None
    images = sample(vdm, range(16), Solver(num_timesteps=25, order=2, classes=classes), seed=0)
    return png(grid(images.cpu().numpy(), vdm.num_levels))


def progress_of(record: TrainingRecord, before: TrainingProgress, seconds_left: float) -> TrainingProgress:
    """Return the progress after a line of the training log, with the last validation."""
    changes: dict[str, Any] = {"step": record.step, "bpd": record.bpd, "seconds_left": seconds_left}
    changes["has_ended"] = record.step == before.steps
    if record.validation_bpd is not None:
        changes["validation_bpd"], changes["validation_step"] = record.validation_bpd, record.step
        changes["validation_monte_carlo_standard_error"] = record.validation_monte_carlo_standard_error
    return TrainingProgress.model_validate(before.model_dump() | changes)


def describe_record(record: TrainingRecord) -> str:
    """Return the bits/dim of a line of the training log, with those of its validation, if there was one."""
    validation = ""
    if record.validation_bpd is not None:
        error = record.validation_monte_carlo_standard_error
        validation = f", validation {record.validation_bpd:.4f} (Monte Carlo error {error:.4f})"
    return f"{record.bpd:.4f} bits/dim{validation}"


def write_model(trainer: Trainer, config: dict[str, Any], train: "Train", data: str, out: Path, **stated: Any) -> None:
    """Write the model at the end of a training, and what it was trained with.  `data` is the digest of the images."""
    inputs = inputs_sha256(config, train.model_dump(), data, stated.get("labels_sha256"))
    save_model(out, trainer.kept, config, fitted_to=train.images, inputs=inputs, **stated)
