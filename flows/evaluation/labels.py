"""Images whose label is unlikely: p(label | x) by the likelihood given each class."""

from typing import TYPE_CHECKING

import numpy as np

from flows.core.model import TrainedModel
from flows.evaluation.classes import classify
from flows.evaluation.odd import Labelled, LabelledImage
from flows.images.image_set import Chosen

if TYPE_CHECKING:
    from flows.core.params import Evaluate


def unlikely_labels(settings: "Evaluate", model: TrainedModel, images: Chosen) -> Labelled:
    """Return how likely the label of each image is, at `class_times` noise levels of each class.

    Raises UserError (exit 2) for a model without classes and for images without labels, and what
    `flows.evaluation.classes.classify` raises.
    """
    found = classify(settings, model, images, until_sure=False)
    labels, names = images.classes(model), model.class_names or []
    named = [*names, *(str(number) for number in range(len(names), model.num_classes or 0))]
    probabilities = np.array(found.probabilities, float)
    of_label = probabilities[np.arange(len(labels)), labels]
    numbers, files = images.numbers.tolist(), images.names
    # Where several are 0 as far as a float goes, the likelihoods still tell them apart.
    likelihoods = np.array(found.log_likelihoods, float)
    behind = likelihoods[np.arange(len(labels)), labels] - likelihoods.max(1)
    return Labelled(
        model=model.name,
        model_sha256=model.sha256,
        seed=settings.seed,
        times=settings.class_times,
        images=[
            LabelledImage(
                number=numbers[place],
                file=files[place] if files else None,
                label=named[labels[place]],
                p_label=of_label[place],
                likeliest=named[found.best[place]],
                p_likeliest=probabilities[place, found.best[place]],
            )
            for place in np.argsort(behind, kind="stable").tolist()
        ],
    )
