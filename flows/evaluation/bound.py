"""The variational bound of a model on images, as metrics and as a table with a row per image, and of two models."""

import csv
import json
import logging
import math
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flows.core.device import find_device, find_precision, processor
from flows.core.documents import finite_or_none
from flows.core.errors import Exit, UserError
from flows.core.escaping import list_names
from flows.core.files import file_sha256, replace_file_last
from flows.core.model import TrainedModel
from flows.evaluation.calibration import CALIBRATION, Calibration, calibrate
from flows.evaluation.classes import Columns, class_figures
from flows.evaluation.error_curve import ERROR_CURVE, KeptCurve, measure_error_curve
from flows.evaluation.results import BOTH, BoundMetrics, Comparison, Environment, ModelFigures, split_figures
from flows.evaluation.terms import Condition, bounds, require_fitting_images
from flows.images.image_set import Chosen, is_given_class
from vdm.evaluation import Evaluation, paired_difference
from vdm.fitted_grids import fit_grid

if TYPE_CHECKING:
    from flows.core.params import Evaluate

log = logging.getLogger(__name__)


def evaluate(
    settings: "Evaluate",
    model: TrainedModel,
    images: Chosen,
    *,
    requirements: Path,
    out: Path | None = None,
    kept: KeptCurve | None = None,
) -> BoundMetrics:
    """Return the metrics of the model on the images, in bits/dim; with `out`, write them into that folder.

    The metrics name the versions of libraries, the processor, and the digest of the file `requirements`.  A model with
    classes is evaluated given the images' classes and without, unless `settings.given` is `nothing`.  Written metrics
    of all test images also state the figures of the other splits, and `calibration.json` and `error_curve.json` are
    written with them.  With a number of steps and a curve, the one that is written or `kept`, the metrics have the
    bound of the best grid, too.

    Raises what `flows.evaluation.terms.terms` raises, and OSError that names the file that cannot be written.
    """
    if out:
        out.mkdir(parents=True, exist_ok=True)  # an unwritable folder is reported before the evaluation
    device, digest = find_device(settings.device), images.set.data_sha256  # of these images, not of later ones
    about, columns = None, Columns()
    if classed := is_given_class(model, settings.given, images.set):
        result, without = bounds(model, images, settings, ["class", None])
        about, columns = class_figures(settings, model, images, result, without)
    else:
        (result,) = bounds(model, images, settings, [None])
    metrics = BoundMetrics(
        split=images.name,
        **split_figures(result).model_dump(),
        prior_bpd=result.prior.mean(),
        reconstruction_bpd=result.reconstruction.mean(),
        diffusion_bpd=result.diffusion.mean(),
        seed=settings.seed,
        times_per_image=settings.times_per_image,
        num_timesteps=settings.num_timesteps,
        precision=find_precision(settings.precision, device),
        environment=environment(device, requirements),
        fitted_to=model.fitted_to,
        given="class" if classed else "nothing",
        classes=about,
        model_sha256=model.sha256,
        data_sha256=digest,
        num_train=len(images.set["train"]) or None,
        licence=images.set.description.licence or None,
        ancestors=model.description.ancestors,
    )
    calibration = measured = None
    if out and metrics.split == "test" and images.most is None:
        metrics = metrics.model_copy(update=other_splits(settings, metrics, model, images))
        calibration = calibrate(settings, model, images.set)
        measured = measure_error_curve(settings, model, images, given=metrics.given)
    metrics = metrics.model_copy(update=best_figures(settings, metrics, model, images, measured or kept))
    if out:
        write_evaluation(out, metrics, result, columns, model, images, calibration, measured)
    return metrics


def best_figures(
    settings: "Evaluate", metrics: BoundMetrics, model: TrainedModel, images: Chosen, kept: KeptCurve | None
) -> dict[str, Any]:
    """Return the fields of metrics about the best grid of their number of steps; none in continuous time."""
    if settings.num_timesteps is None or kept is None:
        return {}
    curve, reason = kept.curve_of(model), kept.reason
    if kept.given != metrics.given:
        reason = f"the errors of {model.name} that were kept are given {kept.given}"
    if curve is None or reason:
        log.warning("no best bits/dim in %d steps: %s", settings.num_timesteps, reason)
        return {}
    given: list[Condition] = ["class" if metrics.given == "class" else None]
    (result,) = bounds(model, images, settings, given, fit_grid(curve, settings.num_timesteps))
    bpd, error = finite_or_none(result.bpd.mean()), finite_or_none(result.standard_error)
    return {"best_bpd": bpd, "best_bpd_standard_error": error}


def environment(device: torch.device, requirements: Path) -> Environment:
    """Return what decides the last digits of figures besides data, parameters and code."""
    return Environment(
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        torch=torch.__version__,
        numpy=np.__version__,
        processor=processor(device),
        requirements_sha256=file_sha256(requirements) if requirements.exists() else None,
        pipeline=version("vdm-pipeline"),
    )


def other_splits(settings: "Evaluate", tested: BoundMetrics, model: TrainedModel, images: Chosen) -> dict[str, Any]:
    """Return the fields of metrics about validation and training images, given those about the test images.

    A model that was fitted to the validation images has no figure of them.
    """
    given: list[Condition] = ["class" if tested.given == "class" else None]
    of_training = replace(images, split="train", most=tested.num_images)
    training = split_figures(*bounds(model, of_training, settings, given))
    found: dict[str, Any] = {"training": training}
    if len(images.set["validation"]) and tested.fitted_to != BOTH:
        found["validation"] = split_figures(*bounds(model, replace(images, split="validation"), settings, given))
    if tested.bpd is not None and training.bpd is not None:
        found["generalisation_gap_bpd"] = tested.bpd - training.bpd
        errors = np.array([tested.bpd_standard_error, training.bpd_standard_error], float)  # NaN for null
        found["generalisation_gap_standard_error"] = finite_or_none(math.hypot(*errors))
    return found


def compare(
    settings: "Evaluate",
    first: TrainedModel,
    second: TrainedModel,
    images: Chosen,
    *,
    confidence: float,
    counting: np.ndarray | None = None,
) -> Comparison:
    """Return the difference second - first in bits/dim over the same images, times and noise, with its interval.

    `counting` (N,) says which of the images count, None that all do.  With `settings.given` auto, p(x | c) is compared
    if both models and the images have the same classes, and else p(x).  Raises what `flows.evaluation.terms.terms`
    raises.
    """
    models = first, second
    for model in models:  # errors are reported before the first is evaluated
        require_fitting_images(model, images)
    digest = images.set.data_sha256  # of these images, not of later ones
    classed = [is_given_class(model, "auto", images.set) for model in models]
    if settings.given == "class" and not any(classed):
        reason = f"neither model has classes, or {images.set.name} no labels"
        raise UserError(f"{reason}; leave out --given class", Exit.USAGE)
    given, differing = settings.given, None
    if given == "auto":
        differing = differing_classes(first, second, images) if all(classed) else None
        given = "class" if all(classed) and not differing else "nothing"
    results = [
        bounds(model, images, settings, ["class" if known and given == "class" else None])[0].of(counting)
        for model, known in zip(models, classed, strict=True)
    ]
    figures = [
        ModelFigures(
            model=model.name,
            bpd=result.bpd.mean(),
            bpd_standard_error=result.standard_error,
            model_sha256=model.sha256,
            data_sha256=digest,
        )
        for model, result in zip(models, results, strict=True)
    ]
    paired = paired_difference(*(result.bpd for result in results), confidence=confidence)
    return Comparison(
        split=images.split,
        models=figures,
        difference_bpd=paired.difference,
        difference_standard_error=paired.standard_error,
        confidence=confidence,
        confidence_interval=list(paired.interval),
        num_images=paired.num_images,
        seed=settings.seed,
        times_per_image=settings.times_per_image,
        num_timesteps=settings.num_timesteps,
        given=given,
        classes_differ=differing,
    )


def differing_classes(first: TrainedModel, second: TrainedModel, images: Chosen) -> str | None:
    """Return why the images cannot be given the same classes for both models; None if they can."""
    if first.num_classes != second.num_classes:
        return f"{first.name} has {first.num_classes} classes, and {second.name} {second.num_classes}"
    if first.class_names and second.class_names and first.class_names != second.class_names:
        theirs = f"{list_names(first.class_names)} and {list_names(second.class_names)}"
        return f"{first.name} and {second.name} have other classes: {theirs}"
    try:
        images.classes(first)
        images.classes(second)
    except UserError as error:
        if error.code is not Exit.USAGE:  # the labels are damaged
            raise
        return str(error)
    return None


def write_evaluation(
    out: Path,
    metrics: BoundMetrics,
    result: Evaluation,
    columns: Columns,
    model: TrainedModel,
    images: Chosen,
    calibration: Calibration | None,
    error_curve: KeptCurve | None = None,
) -> None:
    """Write `metrics.json`, the tables, a calibration and a curve of errors, if given, or else none of them.

    `per_image.csv` has the number of every image in the split, its terms in bits/dim, the `columns`, and its file, if
    the set was made of files.  `noise_levels.csv` has time, gamma, and the diffusion term with its standard error in
    bits/dim per unit of time, as in `vdm.evaluation.NoiseLevels`.

    Raises OSError that names the file, and UserError (exit 5) for names of files that cannot be read.
    """
    text = json.dumps(metrics.model_dump(), indent=2, allow_nan=False) + "\n"
    terms = (result.bpd, result.prior, result.reconstruction, result.diffusion)
    more: dict[str, Any] = columns | ({"file": names} if (names := images.names) else {})
    header = " ".join(["image bpd prior_bpd reconstruction_bpd diffusion_bpd", *more])
    levels = result.noise_levels(seed=metrics.seed or 0, num_timesteps=metrics.num_timesteps)
    with torch.inference_mode():
        gamma = model.on(torch.device("cpu")).vdm.schedule(torch.from_numpy(levels.t).float()).numpy()
    noise = csv_table("t gamma diffusion_bpd standard_error", levels.t, gamma, *levels[1:])
    with (
        replace_file_last(out / "metrics.json", text),
        replace_file_last(out / "per_image.csv", csv_table(header, images.numbers.tolist(), *terms, *more.values())),
        replace_file_last(out / "noise_levels.csv", noise),
        replace_file_last(out / CALIBRATION, calibration.as_json()) if calibration else nullcontext(),
        replace_file_last(out / ERROR_CURVE, error_curve.as_json()) if error_curve else nullcontext(),
    ):
        pass


def csv_table(header: str, *columns: Iterable[float | str]) -> str:
    """Return columns as CSV under the names in the header, text and integers as they are, numbers with six decimals."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header.split())
    for row in zip(*columns, strict=True):
        writer.writerow([value if isinstance(value, int | str) else f"{value:.6f}" for value in row])
    return text.getvalue()
