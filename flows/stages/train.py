"""The stage `train`: fit a VDM to the training images and keep the averaged weights."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.sampling.drawing import preview
from flows.training.distributed import launch, out_of_memory
from flows.training.fitting import train_here
from flows.validation.report import require_validated
from vdm.errors import TrainingDiverged

if TYPE_CHECKING:
    from flows.core.params import Model, Train


def train(
    model: "Model", settings: "Train", *, images: Path, validation: Path, out: Path, curves: Path, runs: Path
) -> None:
    """Write the model of averaged weights to `out` and one line per log interval to `curves` (CSV).

    Pictures of samples, if `settings` ask for them, lie beside `curves`.

    Saved states are in a folder in `runs`.  A run that was stopped or killed continues from the newest state.
    `num_devices` processes train together.  If torchrun started this process, torchrun's processes train together
    instead.

    Raises UserError if `validation` or `images` are missing or damaged (exit 5), `validation` does not say that
    `images` are valid (4), a device is missing (2) or busy (6), memory is too small (2), processes end too often (1),
    or the run was asked to stop (75); TrainingDiverged; OSError that names a file that cannot be written.
    """
    needed = settings.validate_every_steps is not None or settings.images == "train_and_validation"
    require_validated(images, validation, needs_validation_images=needed)
    find_device(settings.device, settings.num_devices)
    launched = torch.distributed.is_torchelastic_launched()
    if launched and (started := int(os.environ["LOCAL_WORLD_SIZE"])) != settings.num_devices:
        wrong = f"torchrun started {started} processes, but train.num_devices is {settings.num_devices}"
        raise UserError(f"{wrong}; set --nproc-per-node to train.num_devices", Exit.USAGE)
    job = partial(train_here, model, settings, images=images, out=out, curves=curves, runs=runs, draw=preview)
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
        advice = "raise train.accumulation to a divisor of it, or set train.activation_checkpointing: true"
        raise UserError(f"{reason}; {advice}", Exit.USAGE) from error
