"""The stage `sample`: draw images, and compare them, and as many held-out images, with the training images.

The features of Inception, for the true FID and KID, need its weights, a file of the user's; nothing is downloaded.
"""

import json
import logging
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch

from flows.core.device import find_device, find_precision
from flows.core.errors import Exit, UserError, brief
from flows.core.files import file_sha256, replace_file_last
from flows.core.model import TrainedModel
from flows.evaluation.results import QualityFigure, SampleMetrics, SamplerSettings
from flows.images.grids import Stretch, eight_bit, grid, png, stretch_of
from flows.images.image_set import FEWEST_COMPARED, Chosen, ImageSet, chunks, class_numbers, is_given_class, spread
from flows.sampling import film
from flows.sampling.distances import (
    NEIGHBOURS,
    Estimate,
    Measure,
    estimate_error,
    frechet_distance,
    kernel_distance,
    precision,
    probability_nearer,
    recall,
    squared_distances,
)
from flows.sampling.drawing import Drawing, draw
from flows.sampling.features import Embedding, embed, has_learned, share_error

if TYPE_CHECKING:
    from flows.core.params import Quality, Sample

log = logging.getLogger(__name__)

MOST_SHOWN, MOST_PAIRS = 64, 16
CHUNK = 2048
DIGITS = 9
"""The digits of a figure.  More would depend on the processor, for which NumPy's libraries choose an order of sums."""
INCEPTION_BATCH, INCEPTION_LAYER = 32, "2048"


class Pictures(NamedTuple):
    """Samples, as many held-out images, and training images to compare them with, (N,C,H,W) levels each."""

    samples: np.ndarray
    held_out: np.ndarray
    training: np.ndarray


def sample(
    settings: "Sample", quality: "Quality", model: TrainedModel, embedding: Embedding, images: ImageSet, out: Path
) -> SampleMetrics:
    """Write `num_images` samples and their metrics into `out`: all files or none.  Return the metrics.

    samples.npy     the samples (N,C,H,W), as levels; classes in turn, by default those of the test images beside them
    samples.png     the first samples
    neighbours.csv  the nearest training image of each sample that is measured, the nearest pairs first
    neighbours.png  the nearest pairs, each sample above its training image
    denoising.png   the first samples on their way from noise, see `flows.sampling.film.strip`
    metrics.json    the quality of the samples, see `flows.evaluation.results.SampleMetrics`

    Raises UserError (exit 2, 4 or 5), and OSError that names the file.
    """
    out.mkdir(parents=True, exist_ok=True)  # an unwritable folder is reported before sampling
    require_features_fit(settings, quality, model, embedding, images)
    if settings.classes is not None:
        class_numbers(",".join(map(str, settings.classes)), model.num_classes, None)
    elif is_given_class(model, "auto", images):
        compared = Chosen(images, "test", num_compared(settings.num_images, images, quality.num_images))
        settings = settings.model_copy(update={"classes": compared.classes(model).tolist()})
    drawing = Drawing(model, settings)
    drawn = draw(drawing)
    metrics, neighbours = measure_quality(settings, quality, drawn, model, embedding, images)
    contents: dict[str, bytes | str] = {"metrics.json": json.dumps(metrics.model_dump(), indent=2) + "\n"}
    contents |= tables_and_pictures(drawn, neighbours, images, settings.classes)
    contents["denoising.png"] = film.encode_film(film.record(drawing), ".png")
    with ExitStack() as stack:
        for name, content in contents.items():
            stack.enter_context(replace_file_last(out / name, content))
    if metrics.withheld:
        log.warning("no distances, precision and recall: %s", metrics.withheld)
    for name, figure in metrics.figures.items():
        log.info("%s: %s; held-out images: %s", name, figure.of_samples, figure.of_held_out)
    return metrics


def tables_and_pictures(
    drawn: np.ndarray, neighbours: pd.DataFrame, images: ImageSet, classes: list[int] | None = None
) -> dict[str, bytes]:
    """Return the content of the files about the samples except the metrics, by name."""
    shown = drawn[:MOST_SHOWN]
    if classes:
        shown = shown[np.argsort(np.resize(classes, len(shown)), kind="stable")]
    array = BytesIO()
    np.save(array, drawn)
    nearest = neighbours[:MOST_PAIRS]
    pairs = np.concatenate([drawn[nearest["sample"]], images["train"][nearest["train_image"]]])
    if images.num_levels > 256:
        log.info("samples.png: %s", stretch_of(shown, images.num_levels).words)
    return {
        "neighbours.csv": neighbours.to_csv(index=False).encode(),
        "neighbours.png": png(grid(pairs, images.num_levels, len(nearest))),
        "samples.png": png(grid(shown, images.num_levels)),
        "samples.npy": array.getvalue(),
    }


def measure_quality(
    sample: "Sample",
    quality: "Quality",
    drawn: np.ndarray,
    model: TrainedModel,
    embedding: Embedding,
    images: ImageSet,
) -> tuple[SampleMetrics, pd.DataFrame]:
    """Return the metrics of samples (N,C,H,W), and a table of the nearest training image of each measured one.

    The table has the nearest pairs first.  Model, embedding and images must have passed `require_features_fit`.
    """
    config, name = embedding.config, embedding.sha256[:8]
    network = embedding.network.to(find_device(quality.device))
    pictures = choose(drawn, images, quality.num_images)
    advice = "more training images or features.steps may help"
    guessing = f"the features' network finds {config.task} not clearly better than a guess; {advice}"
    withheld = None if has_learned(config.accuracy, config.guess, len(images["test"])) else guessing
    figures, by_class = dict[str, QualityFigure](), None
    if not withheld:
        embedded = [embed(network, part) for part in pictures]
        figures = feature_figures(*embedded, name=name, quality=quality)
        if sample.classes:
            by_class = quality_by_class(embedded, sample.classes, images, name, quality)
    memorised, neighbours = memorisation(pictures, images, quality)
    metrics = SampleMetrics(
        figures=figures | inception_figures(sample, quality, pictures, images.num_levels),
        by_class=by_class,
        nearer_than_held_out=memorised.value,
        nearer_than_held_out_standard_error=memorised.standard_error,
        num_images=len(pictures.samples),
        num_training_images=len(pictures.training),
        features_task=config.task,
        features_accuracy=config.accuracy,
        features_accuracy_standard_error=share_error(config.accuracy, len(images["test"])),
        features_guess=config.guess,
        withheld=withheld,
        features_sha256=embedding.sha256,
        model_sha256=model.sha256,
        data_sha256=config.data_sha256,
        sampler=SamplerSettings(
            precision=find_precision(sample.precision, find_device(sample.device)),
            **sample.model_dump(include=SamplerSettings.model_fields.keys() - {"precision"}),
        ),
    )
    return metrics, neighbours


def require_features_fit(
    sample: "Sample", quality: "Quality", model: TrainedModel, embedding: Embedding, images: ImageSet
) -> None:
    """Raise UserError (exit 2) unless the model fits the images, and the features were trained on them.

    Features are trained on valid images only.  Also raises UserError (exit 2) for a missing device and too few images,
    and what `require_inception` raises.
    """
    find_device(quality.device)
    if (model.image_shape, model.num_levels) != (images.image_shape, images.num_levels):
        reason = f"{model.name} is no model of images like those in {images.name}"
        raise UserError(f"{reason}; run `vdmctl train`", Exit.USAGE)
    if embedding.config.data_sha256 != images.data_sha256:
        reason = f"{embedding.name} was trained on other images than {images.name}"
        raise UserError(f"{reason}; run `vdmctl features`", Exit.USAGE)
    if sample.inception_weights is not None:
        assert sample.inception_sha256 is not None  # parameters have both or neither
        weights = Path(sample.inception_weights).expanduser()
        require_inception(images.image_shape[0], weights, sample.inception_sha256)
    num_compared(sample.num_images, images, quality.num_images)


def num_compared(num_samples: int, images: ImageSet, most: int) -> int:
    """Return the number of samples and of test images to compare.

    Raises UserError (exit 2) for fewer than ten, from which nothing can be estimated, and for too few training
    images: precision needs the third neighbour of each.
    """
    if (num_training := len(images["train"])) <= NEIGHBOURS:
        reason = f"the quality of samples needs {NEIGHBOURS + 1} training images, got {num_training}"
        raise UserError(reason, Exit.USAGE)
    num_test = len(images["test"])
    count = min(num_samples, num_test, most)
    if count < FEWEST_COMPARED:
        found = f"{num_samples} samples, {num_test} test images and quality.num_images {most}"
        raise UserError(f"the quality of samples needs {FEWEST_COMPARED} of each, got {found}", Exit.USAGE)
    return count


def choose(samples: np.ndarray, images: ImageSet, most: int) -> Pictures:
    """Return the first samples, as many test images, and training images, at most `most` of each.

    The images of the set are evenly spread over their split.
    """
    count = num_compared(len(samples), images, most)
    return Pictures(np.array(samples[:count]), spread(images["test"], count), spread(images["train"], most))


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


def quality_by_class(
    embedded: list[np.ndarray], classes: list[int], images: ImageSet, name: str, quality: "Quality"
) -> dict[str, dict[str, QualityFigure]]:
    """Return the figures within each class that has ten samples, held-out and training images, by its number.

    `embedded` are the features (N,D) of each of these, and `classes` those of the samples, in turn.
    """
    real = [images.classes("test"), images.classes("train")]
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
        found = estimate_error(lambda chosen: measure(images[chosen]), len(images), quality.resamples, quality.seed)
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


def memorisation(pictures: Pictures, images: ImageSet, quality: "Quality") -> tuple[Estimate, pd.DataFrame]:
    """Return the probability that a sample is nearer to the training images than a held-out image, and the pairs."""
    # The training images, which may be many, are read once for both halves.
    found = nearest_training(np.concatenate([pictures.samples, pictures.held_out]), images)
    (image, _), (distance, of_held_out) = (np.split(each, 2) for each in found)
    probability = estimate_error(
        lambda chosen: probability_nearer(distance[chosen], of_held_out[chosen]),
        len(distance),
        quality.resamples,
        quality.seed,
    )
    table = pd.DataFrame({"sample": range(len(image)), "train_image": image, "distance": distance})
    return probability, table.sort_values(["distance", "sample"])


def nearest_training(samples: np.ndarray, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest training image of every sample (N,C,H,W), and its distance, (N,) each.

    The distance is the root of the mean squared difference of pixels, which are scaled to [-1, 1].
    """
    rows = scale(samples, images.num_levels)
    best = np.full(len(rows), np.inf)
    index = np.zeros(len(rows), int)
    for first, chunk in chunks(images["train"], CHUNK):
        distances = squared_distances(rows, scale(chunk, images.num_levels))
        least = distances.min(1)
        closer = least < best
        index[closer] = first + distances.argmin(1)[closer]
        best[closer] = least[closer]
    # From the differences themselves: a product of rows would not give exactly 0 for equal images.
    difference = rows - scale(images["train"][index], images.num_levels)
    return index, np.sqrt(np.square(difference).mean(1))


def scale(images: np.ndarray, num_levels: int) -> np.ndarray:
    """Return images as rows (N,D) of float64 numbers in [-1, 1]."""
    return images.reshape(len(images), -1).astype(float) * (2 / (num_levels - 1)) - 1


def inception_network(weights: Path) -> torch.nn.Module:
    """Return torch-fidelity's Inception, which gives the published FID's values, with the weights of the file.

    Raises UserError (exit 5) if the file is not of this network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network: torch.nn.Module
    try:
        # torch-fidelity would unpickle anything; this reads tensors only, and fails for other files.
        torch.load(weights, map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3(
            "inception", [INCEPTION_LAYER], feature_extractor_weights_path=str(weights)
        )
    except Exception as error:
        raise UserError(
            f"{weights}: not the weights of torch-fidelity's Inception: {brief(error)}", Exit.MISSING
        ) from error
    return network


def inception_features(
    images: np.ndarray, num_levels: int, network: torch.nn.Module, device: torch.device
) -> np.ndarray:
    """Return the pooled features (N,2048) of images (N,C,H,W), gray or in colour, by the network on the device."""
    # Samples and other images get the same shades, whatever levels they fill.
    pixels = eight_bit(images, num_levels, Stretch(0, num_levels - 1))
    batches = torch.from_numpy(pixels).expand(-1, 3, -1, -1).split(INCEPTION_BATCH)
    return torch.cat([network(batch.to(device))[0].double().cpu() for batch in batches]).numpy()


def require_inception(num_channels: int, weights: Path, sha256: str) -> None:
    """Raise UserError unless images with this number of channels can be embedded.

    Its exit code is 2 if the number is not 1 or 3, or if torch-fidelity is not installed, and 5 if the weights have
    another digest.  Raises OSError if they cannot be read.
    """
    if num_channels not in (1, 3):
        raise UserError(f"Inception takes images of 1 or 3 channels, not {num_channels}", Exit.USAGE)
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        advice = "pip install 'vdm-pipeline[metrics]'"
        raise UserError(f"sample.inception_weights needs torch-fidelity: {advice}", Exit.USAGE) from error
    if (found := file_sha256(weights)) != sha256:
        raise UserError(f"{weights}: its sha256 is {found}, sample.inception_sha256 says {sha256}", Exit.MISSING)
