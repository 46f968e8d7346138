"""The stage `register`: enter a trained model as the artifact `vdm` of dvc.yaml, which is the folder models/vdm.

The folder also has what is known of the training, and its card.  GTO's tags then make versions of that artifact.
"""

import csv
import logging
import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from flows.contract.findings import Verdict
from flows.core.card import CARD, card
from flows.core.errors import Exit, UserError
from flows.core.files import replace_file, replace_folder, write_whole
from flows.core.judgement import Cost, judgement
from flows.core.model import CONFIG, TRAINING, WEIGHTS, TrainedModel, Training, arguments_of, inputs_sha256
from flows.images.as_png import measure_png
from flows.images.image_set import ImageSet, number_of_classes

if TYPE_CHECKING:
    from flows.core.params import Data, Model, Train


log = logging.getLogger(__name__)


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
    """Write the folder `out`, all or nothing: the model, training.json, its card `README.md`, and its training log.

    Raises UserError when the model was trained with other inputs (exit 2) or when the training log is missing or
    damaged (exit 5), and OSError that names a file that cannot be written.
    """
    require_inputs(trained, model, train, images)
    step, bpd, validated = read_curves(curves)
    best = min(validated) if train.keep == "best" and validated else None
    described = images.description
    training = Training(
        name=described.name,
        fitted_to=train.images,
        title=described.title or None,
        homepage=described.homepage or None,
        licence=described.licence or None,
        num_train=described.num_train,
        num_validation=described.num_validation,
        num_test=described.num_test,
        split=described.split or None,
        transforms=described.transforms,
        data_sha256=images.data_sha256,
        contract=verdict.words,
        step=step,
        bpd=bpd,
        kept_step=best and best[1],
        kept_bpd=best and best[0],
        class_dropout=None if trained.num_classes is None else train.class_dropout,
        judgement=judge_training(train, images, step, bpd, validated),
        pipeline=version("vdm-pipeline"),
        parameters={"data": data.model_dump(), "model": model.model_dump(), "train": train.model_dump()},
    )
    with replace_folder(out) as folder:
        copies = {name: trained.folder / name for name in (WEIGHTS, CONFIG)} | {f"training/{curves.name}": curves}
        for name, source in copies.items():
            with source.open("rb") as original, replace_file(folder / name) as copy:
                shutil.copyfileobj(original, copy)
        write_whole(folder / TRAINING, training.as_json())
        write_whole(folder / CARD, card(trained, training, str(out)))
    log.info("wrote the model and its card to %s", out)


def judge_training(
    train: "Train", images: ImageSet, step: int, bpd: float, validated: list[tuple[float, int]]
) -> list[str]:
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
        png_bpd=measure_png(of).bpd,
        epochs=step * train.batch_size / images.count_fitted(train.images),
    )
    return [remark.text for remark in judgement(known)]


def require_inputs(trained: TrainedModel, model: "Model", train: "Train", images: ImageSet) -> None:
    """Raise UserError (exit 2) if the model was trained with other parameters or images.

    Imported models do not state their inputs.
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
