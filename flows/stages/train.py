"""train: fit a VDM to the training images and keep the averaged weights."""

import csv
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from flows.device import find_device, find_precision
from flows.errors import Exit, UserError
from flows.progress import bar
from flows.runs import Run, claim, fingerprint, stop_signals
from vdm.checkpoint import save_model
from vdm.images import data_sha256, load_images
from vdm.model import VDM
from vdm.training import Trainer, TrainingRecord

if TYPE_CHECKING:
    from flows.params import Model, Train

log = logging.getLogger(__name__)

CHECKPOINTS = ("checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints")


def train(
    model: "Model", train: "Train", *, images: Path, validation: Path, out: Path, curves: Path, runs: Path
) -> None:
    """Write the model of averaged weights to `out` and one line per log interval to `curves` (CSV).

    States go to a folder in `runs` as the run proceeds; a run that was stopped or killed continues from the newest.
    Raises UserError when `validation` is missing (exit 5) or does not vouch for `images` (4), the device is missing
    (2) or busy (6), or the run was asked to stop (75); ImageSetError for unreadable images; TrainingDiverged.
    """
    require_validated(images, validation)
    device = find_device(train.device)
    precision = find_precision(train.precision, device)
    image_set = load_images(images)
    config = {"image_shape": image_set.image_shape, "num_levels": image_set.num_levels, **model.model_dump()}
    settings = train.model_dump(exclude=set(CHECKPOINTS)) | {"precision": precision, "device": device.type}
    digest = fingerprint(model=config, train=settings, data=data_sha256(images))
    run = Run(runs / digest, keep=train.keep_checkpoints)
    with claim(device), stop_signals() as asked_to_stop:
        torch.manual_seed(train.seed)
        vdm = VDM(**config).to(device)
        pixels = torch.from_numpy(np.array(image_set.train)).to(device)
        num_parameters = sum(p.numel() for p in vdm.parameters())
        log.info("%d parameters, %d images, on %s in %s", num_parameters, len(pixels), device, precision)
        arguments = train.model_dump(exclude={"device", "precision", *CHECKPOINTS})
        trainer = Trainer(vdm, pixels, precision=precision, **arguments)
        if state := run.newest(device):
            trainer.load_state(state)
            log.info("continuing from step %d of %d", trainer.done, trainer.steps)
        fit(trainer, run, curves, train, asked_to_stop)
        save_model(out, trainer.averaged, config)
    run.remove()


def fit(trainer: Trainer, run: Run, curves: Path, train: "Train", asked_to_stop: Callable[[], bool]) -> None:
    """Take the steps that are left, saving states and log lines on the way.  UserError (exit 75) when asked to stop."""
    curves.parent.mkdir(parents=True, exist_ok=True)
    saved_at, saved_time = trainer.done, time.monotonic()
    with curves.open("w", newline="") as file:
        writer = csv.writer(file)
        # Without the last field, the images per second: the same run leaves the same bytes.
        writer.writerow(TrainingRecord._fields[:-1])
        writer.writerows(record[:-1] for record in trainer.records)
        for _ in bar("training")(range(trainer.done, trainer.steps)):
            if record := trainer.step():
                writer.writerow(record[:-1])
                file.flush()
                log.info("step %d: %.4f bits/dim, %.0f images/s", record.step, record.bpd, record.images_per_second)
            by_steps = trainer.done - saved_at >= train.checkpoint_every_steps
            by_time = time.monotonic() - saved_time >= 60 * train.checkpoint_every_minutes
            stop = asked_to_stop() and trainer.done < trainer.steps
            if by_steps or by_time or stop:
                run.save(trainer.done, trainer.state())
                saved_at, saved_time = trainer.done, time.monotonic()
            if stop:
                reason = f"stopped at step {trainer.done} of {trainer.steps}; run again to continue"
                raise UserError(reason, Exit.RESUMABLE)


def require_validated(images: Path, validation: Path) -> None:
    """UserError (exit 4) unless the validation report vouches for exactly these bytes."""
    try:
        report = json.loads(validation.read_bytes())
        vouched = report["data_sha256"] if report["success"] else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{validation}: missing or damaged: {error}; run `vdmctl validate`", Exit.MISSING) from error
    actual = data_sha256(images)
    if vouched != actual:
        raise UserError(
            f"{validation} vouches for data {vouched}, but {images} is {actual}; run `vdmctl validate`",
            Exit.INVALID_DATA,
        )
