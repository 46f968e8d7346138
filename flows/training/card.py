"""The stage `register`: write weights, configuration and model card of a trained model into one folder."""

import csv
import json
import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from flows.contract.findings import Verdict
from flows.core.errors import Exit, UserError
from flows.core.escaping import markdown
from flows.core.files import write_whole, writing, writing_folder
from flows.core.judgement import Cost, judgement
from flows.core.model import CARD, CONFIG, WEIGHTS, TrainedModel, arguments_of, inputs_sha256
from flows.images.as_png import in_one_png
from flows.images.image_set import Description, ImageSet, number_of_classes

if TYPE_CHECKING:
    from flows.core.params import Data, Model, Train


log = logging.getLogger(__name__)

TEXT = """\
# Variational diffusion model of {title}

{judgement}

A VDM (Kingma et al. 2021, arXiv 2107.00630) over images of {shape} with {num_levels} levels, {num_parameters:,}
parameters. The weights are the moving average {kept}.

| | |
|---|---|
| data | {name} ({homepage}), licence: {licence} |
| images | {num_train} training, {num_validation} validation and {num_test} test images; split: {split} |
| fitted to | {fitted_to} |
{started_from}| conditioned on | {conditioned} |
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
    data: "Data",
    model: "Model",
    train: "Train",
    trained: TrainedModel,
    images: ImageSet,
    verdict: Verdict,
    *,
    curves: Path,
    out: Path,
) -> None:
    """Write the folder `out`, all or nothing: the model in `trained`, its model card `README.md`, and its training log.

    Raises UserError when the model was trained with other inputs (exit 2) or when the training log is missing or
    damaged (exit 5), and OSError that names a file that cannot be written.
    """
    require_inputs(trained, model, train, images)
    step, bpd, validated = read_curves(curves)
    kept = "at the end of training"
    if train.keep == "best" and validated:
        best, at = min(validated)
        kept = f"at step {at}, the best on the validation images, at {best:.4f} bits/dim"
    stated = images.description.stated
    parameters = {"data": data.model_dump(), "model": model.model_dump(), "train": train.model_dump()}
    card = TEXT.format(
        **{key: markdown(stated.get(key, "not stated")) for key in Description.model_fields},
        shape="x".join(map(str, trained.image_shape)),
        num_parameters=sum(p.numel() for p in trained.vdm.parameters()),
        judgement="  \n".join(markdown(each) for each in judged(train, images, step, bpd, validated)),
        verdict=markdown(verdict.words),
        data_sha256=images.data_sha256,
        model_sha256=trained.sha256,
        bpd=bpd,
        step=step,
        kept=kept,
        conditioned=conditioned_on(trained, train),
        fitted_to="training images" if train.images == "train" else "training and validation images together",
        started_from=started_from(trained),
        out=out,
        parameters=json.dumps(parameters, indent=2),
    )
    with writing_folder(out) as folder:
        copies = {name: trained.folder / name for name in (WEIGHTS, CONFIG)} | {f"training/{curves.name}": curves}
        for name, source in copies.items():
            with source.open("rb") as original, writing(folder / name) as copy:
                shutil.copyfileobj(original, copy)
        write_whole(folder / CARD, card)
    log.info("wrote the model and its card to %s", out)


def judged(train: "Train", images: ImageSet, step: int, bpd: float, validated: list[tuple[float, int]]) -> list[str]:
    """Return what the figures of the training mean, in words: of the validation images, or of its last loss.

    `step`, `bpd` and `validated` are what `read_curves` returns.
    """
    of, figure, split = images["train"], bpd, "training"
    if validated and train.images == "train":
        kept, _ = min(validated) if train.keep == "best" else validated[-1]
        of, figure, split = images["validation"], kept, "validation"
    known = Cost(
        figure,
        f"{len(of):,} {split} images",
        num_levels=images.num_levels,
        png_bpd=in_one_png(of).bpd,
        epochs=step * train.batch_size / len(images["train"]),
    )
    return [remark.text for remark in judgement(known)]


def started_from(trained: TrainedModel) -> str:
    """Return the row of the card about the models from which the training began; "" if there are none."""
    if not (ancestors := trained.description.ancestors):
        return ""
    line = [
        f"{markdown(each.name)}, `{each.model_sha256}`, licence of its images: {markdown(each.licence or 'not stated')}"
        for each in ancestors
    ]
    return f"| started from | {'; before that '.join(line)} |\n"


def conditioned_on(trained: TrainedModel, train: "Train") -> str:
    """Return what the model is given of an image, for the card."""
    if (count := trained.num_classes) is None:
        return "nothing"
    names = "".join(f", {markdown(name)}" for name in trained.class_names or [])
    digest = trained.description.labels_sha256
    return f"its class, one of {count}{names}; left out in {train.class_dropout:.0%} of training; labels `{digest}`"


def require_inputs(trained: TrainedModel, model: "Model", train: "Train", images: ImageSet) -> None:
    """Raise UserError (exit 2) if the model was trained with other parameters or images.

    Models of earlier versions and imported ones do not state their inputs.
    """
    stated = trained.description.inputs_sha256
    model = model.model_copy(update={"classes": number_of_classes(images, model.classes)})
    labels = None if model.classes is None else images.labels_sha256
    config = arguments_of(model, images.image_shape, images.num_levels)
    if stated and stated != inputs_sha256(config, train.model_dump(), images.data_sha256, labels):
        reason = f"was trained with other parameters `model:` or `train:`, or other images than {images.name} holds now"
        advice = "run `vdmctl train`, or with DVC `dvc repro --force --single-item train`"
        raise UserError(f"{trained.name} {reason}; {advice}", Exit.USAGE)


def read_curves(curves: Path) -> tuple[int, float, list[tuple[float, int]]]:
    """Return the last step of the training log, its loss, and the bits/dim of each validation with its step.

    The loss is a mean over the steps since the line before, in bits/dim.  Raises UserError (exit 5) if the log is
    missing or damaged.
    """
    try:
        rows = list(csv.DictReader(curves.read_text().splitlines()))
        step, bpd = int(rows[-1]["step"]), float(rows[-1]["bpd"])
        validated = [(float(row["validation_bpd"]), int(row["step"])) for row in rows]
        if step < 1 or not math.isfinite(bpd):
            raise ValueError(f"step {step} at {bpd} bits/dim")
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(f"{curves}: missing or damaged; run `vdmctl train`", Exit.MISSING) from error
    return step, bpd, [(figure, at) for figure, at in validated if math.isfinite(figure)]
