"""Evaluate the variational bound of a model on a split, as metrics and as a table with a row per image."""

import csv
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch

from flows.core.checkpoint import fitted_to, load_model, model_sha256, read_description
from flows.core.device import compile_long_work, find_device, find_precision, processor
from flows.core.errors import Exit, UserError
from flows.core.files import file_sha256, written_last
from flows.evaluation.results import (
    BOTH,
    BoundMetrics,
    ClassFigures,
    Environment,
    Evaluated,
    SplitFigures,
    finite_or_none,
)
from flows.images.labels import classes_of, given_class
from flows.images.store import ImageSet, data_sha256, load_images, read_file_names, require_levels, spread
from flows.process.progress import bar
from vdm.choices import Split
from vdm.classification import class_losses, classified
from vdm.evaluation import Evaluation, image_terms, shares, standard_error, terms_of_set
from vdm.model import VDM

if TYPE_CHECKING:
    from flows.core.params import Evaluate

log = logging.getLogger(__name__)

Value = TypeVar("Value")
Classes = Sequence[Literal["class"] | None]
"""What an image is given in each of several evaluations: its class, or nothing."""
Columns = dict[str, np.ndarray]


def measure(
    settings: "Evaluate", *, model: Path, images: Path, requirements: Path, split: Split, num_images: int | None = None
) -> tuple[BoundMetrics, Evaluation, Columns]:
    """Return the metrics of the model on images of a split, in bits/dim, the terms of every image, and columns.

    These are `num_images` images, evenly spread, or all for None.  The metrics name the versions of libraries, the
    processor, and the digest of the file `requirements`.  A model with classes is evaluated given the images' classes
    and without, unless `settings.given` is `nothing`; the columns are those of `class_figures`.

    Raises what `in_shares` raises.
    """
    classed, device = given_class(model, settings.given, images), find_device(settings.device)
    results = evaluate_split(settings, model, images, split, ["class", None] if classed else [None], num_images)
    about, columns = class_figures(settings, model, images, split, num_images, results) if classed else (None, {})
    result = results[0]
    metrics = BoundMetrics(
        split=named(images, split),
        **figures(result).model_dump(),
        prior_bpd=result.prior.mean(),
        reconstruction_bpd=result.reconstruction.mean(),
        diffusion_bpd=result.diffusion.mean(),
        seed=settings.seed,
        times_per_image=settings.times_per_image,
        num_timesteps=settings.num_timesteps,
        precision=find_precision(settings.precision, device),
        environment=environment(device, requirements),
        fitted_to=fitted_to(model),
        given="class" if classed else "nothing",
        classes=about,
        **digests(model, images),
    )
    return metrics, result, columns


def named(images: Path, split: Split) -> Evaluated:
    """Return the split; `given` for a set without training images, which is made of files that the user gave."""
    return split if len(load_images(images).train) else "given"


def environment(device: torch.device, requirements: Path) -> Environment:
    """Return what decides the last digits of figures besides data, parameters and code."""
    return Environment(
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        torch=torch.__version__,
        numpy=np.__version__,
        processor=processor(device),
        requirements_sha256=file_sha256(requirements) if requirements.exists() else None,
    )


def other_splits(settings: "Evaluate", tested: BoundMetrics, *, model: Path, images: Path) -> dict[str, Any]:
    """Return the fields of metrics about validation and training images, given those about the test images.

    A model that was fitted to the validation images has no figure of them.  Raises what `measure` raises.
    """
    classes: Classes = ["class" if tested.given == "class" else None]
    training = figures(*evaluate_split(settings, model, images, "train", classes, tested.num_images))
    found: dict[str, Any] = {"training": training}
    if len(load_images(images).validation) and tested.fitted_to != BOTH:
        found["validation"] = figures(*evaluate_split(settings, model, images, "validation", classes))
    if tested.bpd is not None and training.bpd is not None:
        found["generalisation_gap_bpd"] = tested.bpd - training.bpd
        errors = np.array([tested.bpd_standard_error, training.bpd_standard_error], float)  # NaN for null
        found["generalisation_gap_standard_error"] = finite_or_none(math.hypot(*errors))
    return found


def evaluate_split(
    settings: "Evaluate", model: Path, images: Path, split: Split, classes: Classes, num_images: int | None = None
) -> list[Evaluation]:
    """Return the bound of `num_images` images of a split once for each of `classes`, at the same times and noise.

    Raises what `in_shares` raises.
    """
    shared = in_shares(partial(evaluate_part, given=classes), settings, model, images, split, num_images)
    return [terms_of_set(np.concatenate(terms, axis=1)) for terms in zip(*shared, strict=True)]


def losses_of_classes(
    settings: "Evaluate", model: Path, images: Path, split: Split, num_images: int | None = None
) -> np.ndarray:
    """Return the draws of the bound given each class at `class_times` times for `num_images` images of a split.

    They are (K,N,T) nats, see `vdm.classification.class_losses`.  Raises what `in_shares` raises.
    """
    settings = settings.model_copy(update={"times_per_image": settings.class_times})
    return np.concatenate(in_shares(classify_part, settings, model, images, split, num_images), axis=1)


def in_shares(
    part: Callable[..., Value],
    settings: "Evaluate",
    model: Path,
    images: Path,
    split: Split,
    num_images: int | None,
) -> list[Value]:
    """Return what `part` returns for each share of `num_images` images of a split, in at most `num_devices` processes.

    Raises what `load_fitting` raises, and UserError (exit 2) for devices.
    """
    find_device(settings.device, settings.num_devices)  # refuses what the machine does not have, before processes start
    warn_if_seen(model, split)
    image_set = load_images(images)
    require_valid(image_set, images, split)
    parts = shares(
        len(spread(getattr(image_set, split), num_images)),
        settings.num_devices,
        batch_size=settings.batch_size,
        times_per_image=settings.times_per_image,
    )
    job = partial(part, settings, model, images, split, num_images, parts)
    if len(parts) == 1:
        return [job()]
    from flows.training.distributed import launch

    return launch(job, num_processes=len(parts))


def evaluate_part(
    settings: "Evaluate",
    model: Path,
    images: Path,
    split: Split,
    most: int | None,
    parts: list[range],
    *,
    given: Classes,
) -> list[np.ndarray]:
    """Return the terms of the images of this process for each of `given`, see `vdm.evaluation.image_terms`."""
    vdm, options = open_part(settings, model, images, split, most, parts, evaluations=len(given))
    own = spread(classes_of(images, split, model), most) if "class" in given else None
    return [image_terms(vdm, **options, labels=own if each else None) for each in given]


def classify_part(
    settings: "Evaluate", model: Path, images: Path, split: Split, most: int | None, parts: list[range]
) -> np.ndarray:
    """Return the draws of every class for the images of this process."""
    num_classes = read_description(model)["model"]["classes"]
    vdm, options = open_part(settings, model, images, split, most, parts, evaluations=num_classes)
    return class_losses(vdm, **options)


def open_part(
    settings: "Evaluate",
    model: Path,
    images: Path,
    split: Split,
    most: int | None,
    parts: list[range],
    *,
    evaluations: int,
) -> tuple[VDM, dict[str, Any]]:
    """Return the model and the arguments of `vdm.evaluation.image_terms` of this process, for so many evaluations."""
    from flows.training.distributed import local_rank

    rank = local_rank()
    device = find_device(settings.device, len(parts), rank)
    vdm, pixels = load_fitting(model, images, device, split, most)
    options = settings.model_dump(include={"seed", "times_per_image", "num_timesteps", "batch_size"})
    options |= {"precision": find_precision(settings.precision, device), "progress": bar("evaluating", shown=rank == 0)}
    compile_long_work(vdm, evaluations * len(parts[rank]) * settings.times_per_image // settings.batch_size)
    return vdm, options | {"pixels": pixels, "share": parts[rank]}


def class_figures(
    settings: "Evaluate", model: Path, images: Path, split: Split, num_images: int | None, results: list[Evaluation]
) -> tuple[ClassFigures, Columns]:
    """Return what the classes of a model are worth and how well the likelihood finds them, and columns with both.

    At most `class_images` images are classified, or all `num_images` of both evaluations, unless they are None.  The
    others have NaN in these columns, (N,) each.  Raises what `in_shares` raises.
    """
    given, without = results
    gain = without.bpd - given.bpd
    every = num_images is not None and settings.class_images != 0
    numbers = spread(np.arange(len(given.bpd)), None if every else settings.class_images)
    found: dict[str, Any] = {"num_classified": len(numbers), "class_times": settings.class_times}
    columns = {"without_bpd": without.bpd}
    if len(numbers):
        nats = math.prod(load_images(images).image_shape) * math.log(2)
        classes = classified(losses_of_classes(settings, model, images, split, len(numbers)))
        labels = spread(classes_of(images, split, model), num_images)
        right, mixture = (classes.best == labels[numbers]).astype(float), classes.mixture / nats
        found |= {"accuracy": right.mean(), "accuracy_standard_error": standard_error(right)}
        found |= {"mixture_bpd": mixture.mean(), "mixture_standard_error": standard_error(mixture)}
        found["mixture_bias_bpd"] = classes.mixture_bias.mean() / nats
        for name, values in (("label", labels[numbers]), ("best", classes.best), ("margin", classes.margin)):
            columns[name] = np.full(len(labels), math.nan)
            columns[name][numbers] = values
    return ClassFigures(
        num_classes=read_description(model)["model"]["classes"],
        without=figures(without),
        gain_bpd=gain.mean(),
        gain_standard_error=standard_error(gain),
        **found,
    ), columns


def figures(result: Evaluation) -> SplitFigures:
    """Return the means of an evaluation with their errors."""
    return SplitFigures(
        bpd=result.bpd.mean(),
        bpd_standard_error=result.standard_error,
        bpd_monte_carlo_standard_error=result.monte_carlo_standard_error,
        num_images=len(result.bpd),
    )


def load_fitting(
    model: Path, images: Path, device: torch.device, split: Split, num_images: int | None = None
) -> tuple[VDM, np.ndarray]:
    """Load the model, and `num_images` images of the split, evenly spread, or all for None.

    Raises CheckpointError, UserError if model and images do not fit each other (exit 2), and what
    `require_valid` raises.
    """
    vdm, image_set = load_model(model, device), load_images(images)
    ours = kind(vdm.image_shape, vdm.num_levels)
    theirs = kind(image_set.image_shape, image_set.num_levels)
    if ours != theirs:
        reason = f"{model} is a model of images of {ours}; {images} holds {theirs}"
        raise UserError(f"{reason}; name the model's images with --images", Exit.USAGE)
    require_valid(image_set, images, split)
    return vdm, spread(getattr(image_set, split), num_images)


def warn_if_seen(model: Path, split: Split) -> None:
    """Warn if the model was fitted to the validation images and is evaluated on them."""
    if split == "validation" and fitted_to(model) == BOTH:
        log.warning("%s was fitted to the validation images, too, so they say nothing about other images", model)


def require_valid(image_set: ImageSet, images: Path, split: Split) -> None:
    """Raise UserError if the split has no validation images (exit 2), or is invalid, such as an empty test split (4).

    `images` is the folder of the set.
    """
    if split == "validation" and not len(image_set.validation):
        advice = "set data.validation_fraction and run `dvc repro`"
        raise UserError(f"{images} has no validation images; {advice}", Exit.USAGE)
    require_levels(image_set, images, split)


def kind(shape: tuple[int, ...], num_levels: int) -> str:
    """Return shape and number of levels as text, such as "1x8x8 with 17 levels"."""
    return "x".join(map(str, shape)) + f" with {num_levels} levels"


def digests(model: Path, images: Path) -> dict[str, Any]:
    """Return the sha256 of the model and of the images."""
    return {"model_sha256": model_sha256(model), "data_sha256": data_sha256(images)}


def write(
    out: Path, metrics: BoundMetrics, result: Evaluation, columns: Columns, *, model: Path, images: Path, split: Split
) -> None:
    """Write `metrics.json`, `per_image.csv` and `noise_levels.csv`, or else none of them.

    `per_image.csv` has the number of every image in the split, its terms in bits/dim, the `columns`, and its file, if
    the set was made of files.  `noise_levels.csv` has time, gamma, and the diffusion term with its standard error in
    bits/dim per unit of time, as in `vdm.evaluation.NoiseLevels`.

    Raises CheckpointError, and OSError that names the file.
    """
    text = json.dumps(metrics.model_dump(), indent=2, allow_nan=False) + "\n"
    terms = (result.bpd, result.prior, result.reconstruction, result.diffusion)
    numbers = spread(np.arange(len(getattr(load_images(images), split))), len(result.bpd)).tolist()
    names = read_file_names(images, split, set(numbers))
    more: dict[str, Any] = columns | ({"file": [names[number] for number in numbers]} if names else {})
    header = " ".join(["image bpd prior_bpd reconstruction_bpd diffusion_bpd", *more])
    levels = result.noise_levels(seed=metrics.seed or 0, num_timesteps=metrics.num_timesteps)
    with torch.inference_mode():
        gamma = load_model(model).schedule(torch.from_numpy(levels.t).float()).numpy()
    noise = table("t gamma diffusion_bpd standard_error", levels.t, gamma, *levels[1:])
    with (
        written_last(out / "metrics.json", text),
        written_last(out / "per_image.csv", table(header, numbers, *terms, *more.values())),
        written_last(out / "noise_levels.csv", noise),
    ):
        pass


def table(header: str, *columns: Iterable[float | str]) -> str:
    """Return columns as CSV under the names in the header, text and integers as they are, numbers with six decimals."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header.split())
    for row in zip(*columns, strict=True):
        writer.writerow([value if isinstance(value, int | str) else f"{value:.6f}" for value in row])
    return text.getvalue()
