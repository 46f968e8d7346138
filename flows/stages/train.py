"""train: fit a VDM to the training images and keep the averaged weights."""

import csv
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from flows.device import find_device, find_precision
from flows.errors import Exit, UserError
from flows.progress import bar
from vdm import training
from vdm.checkpoint import save_model
from vdm.images import data_sha256, load_images
from vdm.model import VDM
from vdm.training import TrainingRecord

if TYPE_CHECKING:
    from flows.params import Model, Train

log = logging.getLogger(__name__)


def train(model: "Model", train: "Train", *, images: Path, validation: Path, out: Path, curves: Path) -> None:
    """Write the model of averaged weights to `out` and one line per log interval to `curves` (CSV).

    Raises UserError when `validation` does not vouch for `images` (exit 4) or the device is missing (exit 2),
    ImageSetError for unreadable images, and TrainingDiverged.
    """
    require_validated(images, validation)
    device = find_device(train.device)
    image_set = load_images(images)
    config = {"image_shape": image_set.image_shape, "num_levels": image_set.num_levels, **model.model_dump()}
    torch.manual_seed(train.seed)
    vdm = VDM(**config).to(device)
    pixels = torch.from_numpy(np.array(image_set.train)).to(device)
    precision = find_precision(train.precision, device)
    num_parameters = sum(p.numel() for p in vdm.parameters())
    log.info("%d parameters, %d images, on %s in %s", num_parameters, len(pixels), device, precision)

    arguments = train.model_dump(exclude={"device", "precision"})
    curves.parent.mkdir(parents=True, exist_ok=True)
    with curves.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(TrainingRecord._fields)

        def on_log(record: TrainingRecord) -> None:
            writer.writerow(record)
            file.flush()
            log.info("step %d: %.4f bits/dim, %.0f images/s", record.step, record.bpd, record.images_per_second)

        averaged = training.train(
            vdm, pixels, on_log=on_log, progress=bar("training"), precision=precision, **arguments
        )
    save_model(out, averaged, config)


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
