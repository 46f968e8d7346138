"""Compare samples, and for reference the same number of held-out images, with the training images."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from flows.core.checkpoint import model_sha256, read_description
from flows.core.device import find_device, find_precision
from flows.core.errors import Exit, UserError
from flows.evaluation.results import QualityFigure, SampleMetrics, SamplerSettings
from flows.images.labels import classes_of
from flows.images.store import FEWEST_COMPARED, ImageSet, chunks, data_sha256, load_images, require_levels, spread
from flows.quality.distances import (
    NEIGHBOURS,
    Estimate,
    Measure,
    frechet_distance,
    kernel_distance,
    precision,
    probability_nearer,
    recall,
    squared_distances,
    with_error,
)
from flows.quality.features import embed, learned, load_features, share_error
from flows.quality.inception import inception_features, inception_network, require_inception

if TYPE_CHECKING:
    from flows.core.params import Quality, Sample

CHUNK = 2048
DIGITS = 9
"""The digits of a figure.  More would depend on the processor, for which NumPy's libraries choose an order of sums."""


class Pictures(NamedTuple):
    """Samples, as many held-out images, and training images to compare them with, (N,C,H,W) levels each."""

    samples: np.ndarray
    held_out: np.ndarray
    training: np.ndarray


def measure(
    sample: "Sample", quality: "Quality", drawn: np.ndarray, *, model: Path, features: Path, images: Path
) -> tuple[SampleMetrics, pd.DataFrame]:
    """Return the metrics of samples (N,C,H,W), and a table of the nearest training image of each measured one.

    The table has the nearest pairs first.  The files must have passed `require_fitting`.  Raises CheckpointError and
    UserError (exit 5) for damaged files.
    """
    network, config, digest = load_features(features, find_device(quality.device))
    image_set = load_images(images)
    pictures = choose(drawn, image_set, quality.num_images)
    advice = "more training images or features.steps may help"
    guessing = f"the features' network finds {config.task} not clearly better than a guess; {advice}"
    withheld = None if learned(config.accuracy, config.guess, len(image_set.test)) else guessing
    figures, by_class = dict[str, QualityFigure](), None
    if not withheld:
        embedded = [embed(network, part) for part in pictures]
        figures = feature_figures(*embedded, name=digest[:8], quality=quality)
        if sample.classes:
            by_class = class_figures(embedded, sample.classes, images, digest[:8], quality)
    memorised, neighbours = memorisation(pictures, image_set, quality)
    metrics = SampleMetrics(
        figures=figures | inception_figures(sample, quality, pictures, image_set.num_levels),
        by_class=by_class,
        nearer_than_held_out=memorised.value,
        nearer_than_held_out_standard_error=memorised.standard_error,
        num_images=len(pictures.samples),
        num_training_images=len(pictures.training),
        features_task=config.task,
        features_accuracy=config.accuracy,
        features_accuracy_standard_error=share_error(config.accuracy, len(image_set.test)),
        features_guess=config.guess,
        withheld=withheld,
        features_sha256=digest,
        model_sha256=model_sha256(model),
        data_sha256=config.data_sha256,
        sampler=SamplerSettings(
            precision=find_precision(sample.precision, find_device(sample.device)),
            **sample.model_dump(include=SamplerSettings.model_fields.keys() - {"precision"}),
        ),
    )
    return metrics, neighbours


def require_fitting(sample: "Sample", quality: "Quality", *, model: Path, features: Path, images: Path) -> None:
    """Raise UserError (exit 2) unless the model fits the images, and the features were trained on them.

    Also raises UserError: exit 2 for a missing device and too few images, 4 for invalid images, 5 for damaged files.
    Raises CheckpointError, and what `require_inception` raises.
    """
    described, image_set = read_description(model)["model"], load_images(images)
    if (tuple(described["image_shape"]), described["num_levels"]) != (image_set.image_shape, image_set.num_levels):
        raise UserError(f"{model} is no model of images like those in {images}; run `vdmctl train`", Exit.USAGE)
    if load_features(features, find_device(quality.device))[1].data_sha256 != data_sha256(images):
        raise UserError(f"{features} was trained on other images than {images}; run `vdmctl features`", Exit.USAGE)
    for split in ("train", "test"):
        require_levels(image_set, images, split)
    if sample.inception_weights is not None:
        assert sample.inception_sha256 is not None  # parameters have both or neither
        weights = Path(sample.inception_weights).expanduser()
        require_inception(image_set.image_shape[0], weights, sample.inception_sha256)
    num_compared(sample.num_images, image_set, quality.num_images)


def num_compared(num_samples: int, image_set: ImageSet, most: int) -> int:
    """Return the number of samples and of test images to compare.

    Raises UserError (exit 2) for fewer than ten, from which nothing can be estimated, and for too few training
    images: precision needs the third neighbour of each.
    """
    if (num_training := len(image_set.train)) <= NEIGHBOURS:
        reason = f"the quality of samples needs {NEIGHBOURS + 1} training images, got {num_training}"
        raise UserError(reason, Exit.USAGE)
    count = min(num_samples, len(image_set.test), most)
    if count < FEWEST_COMPARED:
        found = f"{num_samples} samples, {len(image_set.test)} test images and quality.num_images {most}"
        raise UserError(f"the quality of samples needs {FEWEST_COMPARED} of each, got {found}", Exit.USAGE)
    return count


def choose(samples: np.ndarray, image_set: ImageSet, most: int) -> Pictures:
    """Return the first samples, as many test images, and training images, at most `most` of each.

    The images of the set are evenly spread over their split.
    """
    count = num_compared(len(samples), image_set, most)
    return Pictures(np.array(samples[:count]), spread(image_set.test, count), spread(image_set.train, most))


def feature_figures(
    samples: np.ndarray, held_out: np.ndarray, training: np.ndarray, *, name: str, quality: "Quality"
) -> dict[str, QualityFigure]:
    """Return both distances, with `name` in their keys, and precision and recall, from features (N,D)."""
    measures: dict[str, Measure] = {
        f"fd_{name}": frechet_distance(training),
        f"kd_{name}": kernel_distance(training),
        "precision": precision(training),
        "recall": recall(training),
    }
    return figures_of(measures, samples, held_out, quality)


def class_figures(
    embedded: list[np.ndarray], classes: list[int], images: Path, name: str, quality: "Quality"
) -> dict[str, dict[str, QualityFigure]]:
    """Return the figures within each class that has ten samples, held-out and training images, by its number.

    `embedded` are the features (N,D) of each of these, and `classes` those of the samples, in turn.
    """
    real = [classes_of(images, split, None) for split in ("test", "train")]
    numbers = [np.resize(classes, len(embedded[0])), *map(spread, real, map(len, embedded[1:]))]
    found = {}
    for number in np.unique(numbers[0]).tolist():
        parts = [part[of_part == number] for part, of_part in zip(embedded, numbers, strict=True)]
        if min(map(len, parts)) >= FEWEST_COMPARED:
            found[str(number)] = feature_figures(*parts, name=name, quality=quality)
    return found


def figures_of(
    measures: dict[str, Measure], samples: np.ndarray, held_out: np.ndarray, quality: "Quality"
) -> dict[str, QualityFigure]:
    """Return each measure of the features (N,D) of samples and of held-out images, with its error."""

    def estimate(measure: Measure, images: np.ndarray) -> list[float]:
        found = with_error(lambda chosen: measure(images[chosen]), len(images), quality.resamples, quality.seed)
        return [float(f"{value:.{DIGITS}g}") for value in found]

    figures = {}
    for name, measure in measures.items():
        value, error = estimate(measure, samples)
        reference, reference_error = estimate(measure, held_out)
        figures[name] = QualityFigure(
            samples=value, samples_standard_error=error, held_out=reference, held_out_standard_error=reference_error
        )
    return figures


def inception_figures(
    sample: "Sample", quality: "Quality", pictures: Pictures, num_levels: int
) -> dict[str, QualityFigure]:
    """Return FID and KID if `sample.inception_weights` names the weights; else nothing."""
    if sample.inception_weights is None:
        return {}
    device = find_device(quality.device)
    network = inception_network(Path(sample.inception_weights).expanduser()).to(device)
    samples, held_out, training = (inception_features(part, num_levels, network, device) for part in pictures)
    measures = {"fid": frechet_distance(training), "kid": kernel_distance(training)}
    return figures_of(measures, samples, held_out, quality)


def memorisation(pictures: Pictures, image_set: ImageSet, quality: "Quality") -> tuple[Estimate, pd.DataFrame]:
    """Return the probability that a sample is nearer to the training images than a held-out image, and the pairs."""
    image, distance = nearest(pictures.samples, image_set)
    _, of_held_out = nearest(pictures.held_out, image_set)
    probability = with_error(
        lambda chosen: probability_nearer(distance[chosen], of_held_out[chosen]),
        len(distance),
        quality.resamples,
        quality.seed,
    )
    table = pd.DataFrame({"sample": range(len(image)), "train_image": image, "distance": distance})
    return probability, table.sort_values(["distance", "sample"])


def nearest(images: np.ndarray, image_set: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest training image of every image (N,C,H,W), and its distance, (N,) each.

    The distance is the root of the mean squared difference of pixels, which are scaled to [-1, 1].
    """
    rows = scaled(images, image_set.num_levels)
    best = np.full(len(rows), np.inf)
    index = np.zeros(len(rows), int)
    for first, chunk in chunks(image_set.train, CHUNK):
        distances = squared_distances(rows, scaled(chunk, image_set.num_levels))
        least = distances.min(1)
        closer = least < best
        index[closer] = first + distances.argmin(1)[closer]
        best[closer] = least[closer]
    # From the differences themselves: a product of rows would not give exactly 0 for equal images.
    difference = rows - scaled(image_set.train[index], image_set.num_levels)
    return index, np.sqrt(np.square(difference).mean(1))


def scaled(images: np.ndarray, num_levels: int) -> np.ndarray:
    """Return images as rows (N,D) of float64 numbers in [-1, 1]."""
    return images.reshape(len(images), -1).astype(float) * (2 / (num_levels - 1)) - 1
