"""What the classes of a model are worth, and which class each image has by its likelihood."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.core.documents import Count, Document, Figure, Sha256
from flows.core.model import TrainedModel
from flows.evaluation.results import ClassFigures, split_figures
from flows.evaluation.terms import Advance, terms
from flows.images.image_set import Chosen, is_given_class, spread
from vdm.classification import classify_alone, classify_draws
from vdm.evaluation import Evaluation, standard_error

if TYPE_CHECKING:
    from flows.core.params import Evaluate

SURE, MOST_DOUBLINGS = 3, 4
Columns = dict[str, np.ndarray]


class Classification(Document):
    """Lists with an entry for each image: its best class, and the log-likelihood given each class, up to a constant.

    The classes are equally likely at first.  The margin between the two best ones is in nats, as the likelihoods.
    """

    files: list[str] | None
    """The file of each image, if the set was made of files."""
    best: list[Count]
    names: list[str] | None
    times: list[Count]
    margin: list[Figure]
    margin_standard_error: list[Figure]
    log_likelihoods: list[list[Figure]]
    probabilities: list[list[Figure]]
    seed: Count
    num_timesteps: Count | None
    model_sha256: Sha256


def classify(
    settings: "Evaluate",
    model: TrainedModel,
    images: Chosen,
    *,
    until_sure: bool,
    most_times: float = math.inf,
    progress: Advance | None = None,
) -> Classification:
    """Classify the images at `class_times` noise levels each, every image as if it were alone.

    With `until_sure`, each image whose two best classes are less than `SURE` standard errors apart is classified anew
    at twice as many, up to `MOST_DOUBLINGS` times and to `most_times` levels.  Raises UserError (exit 2) for a model
    without classes, and what `flows.evaluation.terms.terms` raises.
    """
    is_given_class(model, "class", images.set)
    options: dict[str, Any] = {"alone": True, "progress": progress}
    result = classify_alone(losses_of_classes(settings, model, images, settings.class_times, **options))
    times = np.full(len(result.best), settings.class_times)
    for _ in range(MOST_DOUBLINGS if until_sure else 0):
        unsure = np.flatnonzero((result.margin < SURE * result.margin_standard_error) & (2 * times <= most_times))
        times[unsure] *= 2
        for image in unsure.tolist():
            part = [range(image, image + 1)]
            losses = losses_of_classes(settings, model, images, int(times[image]), part, **options)
            for whole, one in zip(result, classify_draws(losses), strict=True):
                whole[image] = one[0]
    columns, names, best = {"times": times, **result._asdict()}, model.class_names, result.best.tolist()
    return Classification(
        files=images.names,
        names=[names[number] if number < len(names) else str(number) for number in best] if names else None,
        seed=settings.seed,
        num_timesteps=settings.num_timesteps,
        model_sha256=model.sha256,
        **{key: columns[key].tolist() for key in columns.keys() & Classification.model_fields.keys()},
    )


def losses_of_classes(
    settings: "Evaluate",
    model: TrainedModel,
    images: Chosen,
    times: int,
    parts: Sequence[range] | None = None,
    **options: Any,
) -> np.ndarray:
    """Return the draws of the bound given each class at so many times, (K,N,T) nats.

    Parts and options are those of `flows.evaluation.terms.terms`.
    """
    settings = settings.model_copy(update={"times_per_image": times})
    (losses,) = terms(model, images, settings, ["each class"], parts, **options)
    return losses


def class_figures(
    settings: "Evaluate", model: TrainedModel, images: Chosen, given: Evaluation, without: Evaluation
) -> tuple[ClassFigures, Columns]:
    """Return what the classes of a model are worth and how well the likelihood finds them, and columns with both.

    `given` and `without` are the bounds of all `images` given their classes and without.  At most `class_images` of
    them are classified, or all if they are a choice already.  The others have NaN in the columns, (N,) each.
    """
    gain = without.bpd - given.bpd
    every = images.most is not None and settings.class_images != 0
    numbers = spread(np.arange(len(gain)), None if every else settings.class_images)
    found: dict[str, Any] = {"num_classified": len(numbers), "class_times": settings.class_times}
    columns = {"without_bpd": without.bpd}
    if len(numbers):
        nats = math.prod(model.image_shape) * math.log(2)
        some = replace(images, most=len(numbers))
        classes = classify_draws(losses_of_classes(settings, model, some, settings.class_times))
        labels = images.classes(model)
        right, mixture = (classes.best == labels[numbers]).astype(float), classes.mixture / nats
        found |= {"accuracy": right.mean(), "accuracy_standard_error": standard_error(right)}
        found |= {"mixture_bpd": mixture.mean(), "mixture_standard_error": standard_error(mixture)}
        found["mixture_bias_bpd"] = classes.mixture_bias.mean() / nats
        for name, values in (("label", labels[numbers]), ("best", classes.best), ("margin", classes.margin)):
            columns[name] = np.full(len(labels), math.nan)
            columns[name][numbers] = values
    about = ClassFigures(
        num_classes=model.num_classes or 0,
        without=split_figures(without),
        gain_bpd=gain.mean(),
        gain_standard_error=standard_error(gain),
        **found,
    )
    return about, columns
