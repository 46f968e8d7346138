"""The stage `register`: write weights, configuration and model card of a trained model into one folder."""

import csv
import json
import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from flows.core.checkpoint import (
    CONFIG,
    WEIGHTS,
    arguments_of,
    inputs_sha256,
    load_model,
    model_sha256,
    read_description,
)
from flows.core.documents import read
from flows.core.errors import Exit, UserError
from flows.core.escaping import markdown
from flows.core.files import write_whole, writing
from flows.core.folders import writing_folder
from flows.images.labels import described, number_of_classes
from flows.images.store import Description, ImageSet, data_sha256, load_images
from flows.validation.report import Validation

if TYPE_CHECKING:
    from flows.core.params import Data, Model, Train

log = logging.getLogger(__name__)

CARD = """\
# Variational diffusion model of {title}

A VDM (Kingma et al. 2021, arXiv 2107.00630) over images of {shape} with {num_levels} levels, {num_parameters:,}
parameters. The weights are the moving average {kept}.

| | |
|---|---|
| data | {name} ({homepage}), licence: {licence} |
| images | {num_train} training, {num_validation} validation and {num_test} test images; split: {split} |
| fitted to | {fitted_to} |
| conditioned on | {conditioned} |
| transforms | {transforms} |
| data contract | {verdict} |
| data sha256 | `{data_sha256}` |
| model sha256 | `{model_sha256}` |
| last training loss | {bpd:.4f} bits/dim, a mean over the last steps up to {step} |

## Load it

```python
from flows.api import load

model = load("{out}")  # a vdm.model.VDM in evaluation mode
```

If `data/images` has the images above, `vdmctl evaluate {out}` prints the bits/dim of the test images. If the model is
registered, `vdmctl lineage VERSION` prints the commit that made it.

## Parameters

```json
{parameters}
```
"""


def register(
    data: "Data", model: "Model", train: "Train", *, trained: Path, curves: Path, images: Path, report: Path, out: Path
) -> None:
    """Write the folder `out`, all or nothing: the model in `trained`, its model card `README.md`, and its training log.

    `report` is the validation report.  Raises CheckpointError when the model does not load, UserError when the model
    was trained with other inputs (exit 2) or when the images, the report or the training log are missing or damaged
    (exit 5), and OSError that names a file that cannot be written.
    """
    vdm = load_model(trained)
    image_set = load_images(images)
    require_inputs(trained, model, train, image_set, images)
    step, bpd, best = read_curves(curves)
    kept = "at the end of training"
    if train.keep == "best" and best:
        kept = f"at step {best[1]}, the best on the validation images, at {best[0]:.4f} bits/dim"
    description = image_set.description
    parameters = {"data": data.model_dump(), "model": model.model_dump(), "train": train.model_dump()}
    card = CARD.format(
        **{key: markdown(description.get(key, "not stated")) for key in Description.model_fields},
        shape="x".join(map(str, vdm.image_shape)),
        num_parameters=sum(p.numel() for p in vdm.parameters()),
        verdict=markdown(read(Validation, report, "run `vdmctl validate`").verdict),
        data_sha256=data_sha256(images),
        model_sha256=model_sha256(trained),
        bpd=bpd,
        step=step,
        kept=kept,
        conditioned=conditioned_on(trained, train),
        fitted_to="training images" if train.images == "train" else "training and validation images together",
        out=out,
        parameters=json.dumps(parameters, indent=2),
    )
    with writing_folder(out) as folder:
        copies = {WEIGHTS: trained / WEIGHTS, CONFIG: trained / CONFIG, f"training/{curves.name}": curves}
        for name, source in copies.items():
            with source.open("rb") as original, writing(folder / name) as copy:
                shutil.copyfileobj(original, copy)
        write_whole(folder / "README.md", card)
    log.info("wrote the model and its card to %s", out)


def conditioned_on(trained: Path, train: "Train") -> str:
    """Return what the model is given of an image, for the card."""
    stated = read_description(trained)
    if (count := stated["model"].get("classes")) is None:
        return "nothing"
    names = "".join(f", {markdown(name)}" for name in stated.get("class_names") or [])
    digest = stated["labels_sha256"]
    return f"its class, one of {count}{names}; left out in {train.class_dropout:.0%} of training; labels `{digest}`"


def require_inputs(trained: Path, model: "Model", train: "Train", image_set: ImageSet, images: Path) -> None:
    """Raise UserError (exit 2) if the model was trained with other parameters or images.

    Models of earlier versions and imported ones do not state their inputs.
    """
    stated = read_description(trained).get("inputs_sha256")
    model = model.model_copy(update={"classes": number_of_classes(images, model.classes)})
    labels = None if model.classes is None else described(images)["labels_sha256"]
    config = arguments_of(model, image_set.image_shape, image_set.num_levels)
    if stated and stated != inputs_sha256(config, train.model_dump(), data_sha256(images), labels):
        reason = f"was trained with other parameters `model:` or `train:`, or other images than {images} holds now"
        advice = "run `vdmctl train`, or with DVC `dvc repro --force --single-item train`"
        raise UserError(f"{trained} {reason}; {advice}", Exit.USAGE)


def read_curves(curves: Path) -> tuple[int, float, tuple[float, int] | None]:
    """Return the last step of the training log, its loss, and the lowest validation bits/dim with its step.

    The loss is a mean over the steps since the line before, in bits/dim.  The lowest validation is None without
    validations.  Raises UserError (exit 5) if the log is missing or damaged.
    """
    try:
        rows = list(csv.DictReader(curves.read_text().splitlines()))
        step, bpd = int(rows[-1]["step"]), float(rows[-1]["bpd"])
        validated = [(float(row["validation_bpd"]), int(row["step"])) for row in rows]
        if step < 1 or not math.isfinite(bpd):
            raise ValueError(f"step {step} at {bpd} bits/dim")
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(f"{curves}: missing or damaged; run `vdmctl train`", Exit.MISSING) from error
    return step, bpd, min(((best, at) for best, at in validated if math.isfinite(best)), default=None)
