"""How odd images are to a model: `vdm.surprise`, with the held-out images of calibration.json."""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flows.core.device import find_device
from flows.core.model import TrainedModel
from flows.evaluation.calibration import Calibration, features_of
from flows.evaluation.odd import CHANCE, LOW_P, OddBatch, OddImage, Surprise
from flows.images.image_set import Chosen
from flows.images.splitting import digest_of
from vdm.surprise import BANDS, STATISTICS, bound_of, expected_count, p_of_batch

if TYPE_CHECKING:
    from flows.core.params import Evaluate

FEWEST_CALIBRATED = 99
"""Held-out images below which no p is given: the lowest one would be above 0.01."""
FAR, MOST_WORDS = 2.0, 3
"""Standard deviations from the mean of held-out images from which on a feature is told in words, and how many are."""


class Compared(NamedTuple):
    """How odd N images are, in their order; p is NaN where it would not be valid."""

    scores: np.ndarray
    p: np.ndarray
    deviations: np.ndarray
    """Of each feature, (N, 2 L + 7)."""
    bpd: np.ndarray
    words: list[str]


def surprise(
    settings: "Evaluate", model: TrainedModel, images: Chosen, calibration: Calibration, seen: Collection[bytes] = ()
) -> Surprise:
    """Return how odd the images are.  `seen` are digests of images that the model was trained on.

    Raises UserError if model and images do not fit (exit 2), for invalid images (4), and for a calibration that is
    damaged (5).
    """
    images.set.require_fitting(model)
    images.require_valid()
    model.on(find_device(settings.device))
    of_set = calibration.data_sha256 == images.set.data_sha256 and images.name in ("train", calibration.split)
    found = compare_with_held_out(model, images.pixels, calibration, None if of_set else seen, settings.batch_size)
    numbers, names = images.numbers.tolist(), images.names
    listed = [
        OddImage(
            number=numbers[place],
            file=names[place] if names else None,
            score=found.scores[place],
            p=found.p[place],
            bpd=found.bpd[place],
            deviations=found.deviations[place].tolist(),
            words=found.words[place],
        )
        for place in np.argsort(-found.scores, kind="stable").tolist()
    ]
    return summarize_batch(model, calibration, listed)


def summarize_batch(model: TrainedModel, calibration: Calibration, images: list[OddImage]) -> Surprise:
    """Return images that were compared, with what is said of them all together."""
    why, calibrated = reason_without_p(calibration), calibration.reference.scores
    judged = [each for each in images if each.p is not None and each.score is not None]
    return Surprise(
        model=model.name,
        model_sha256=model.sha256,
        calibrated_on=calibration.split,
        num_calibrated=len(calibrated),
        seed=calibration.seed,
        gamma=calibration.gamma,
        names=names_of(calibration.gamma),
        without_p=why,
        num_seen=0 if why else len(images) - len(judged),
        batch=batch_of(judged, calibrated) if judged else None,
        images=images,
    )


def compare_with_held_out(
    model: TrainedModel,
    pixels: np.ndarray,
    calibration: Calibration,
    seen: Collection[bytes] | None,
    batch_size: int,
) -> Compared:
    """Return how odd images (N,C,H,W) are; `seen` None stands for images that the model has all seen.

    Raises UserError (exit 5) for a calibration that is damaged.
    """
    held_out = calibration.reference
    levels, seed = len(calibration.gamma), calibration.seed
    features = features_of(model, pixels, levels=levels, seed=seed, batch_size=batch_size)
    scores, deviations = held_out.score(features), held_out.standardised(features)
    known = None if seen is None else {*seen, *map(bytes.fromhex, calibration.digests)}
    invalid = [known is None or digest_of(image) in known for image in pixels]
    if reason_without_p(calibration):
        invalid = [True] * len(pixels)
    return Compared(
        scores,
        np.where(invalid, np.nan, held_out.p_values(scores)),
        deviations,
        bound_of(model.vdm, pixels, features),
        [describe_deviations(calibration.gamma, row) for row in deviations],
    )


def reason_without_p(calibration: Calibration) -> str | None:
    """Return why the images of a calibration give no p; None if they do."""
    if not calibration.held_out:
        return f"the model was fitted to the {calibration.split} images with which others are compared"
    if (count := len(calibration.reference.scores)) < FEWEST_CALIBRATED:
        return f"{count} held-out images are fewer than {FEWEST_CALIBRATED}"
    return None


def batch_of(images: list[OddImage], calibrated: np.ndarray) -> OddBatch:
    """Return how odd images with a p are all together, given the scores of held-out images."""
    by_chance = expected_count(len(images), len(calibrated), LOW_P, CHANCE)
    return OddBatch(
        num_images=len(images),
        num_odd=sum(each.p is not None and each.p <= LOW_P for each in images),
        expected_odd=by_chance.mean,
        most_odd=by_chance.high,
        p=p_of_batch(np.array([each.score for each in images], float), calibrated),
    )


def names_of(gamma: list[float]) -> list[str]:
    """Return the names of the features at these noise levels."""
    return [f"{what} at gamma {level:.2f}" for what in ("loss", "norm") for level in gamma] + list(STATISTICS)


def describe_deviations(gamma: list[float], deviations: np.ndarray) -> str:
    """Return what is far from held-out images, the farthest first, by the deviation of each feature."""
    names, of_levels = list(BANDS), deviations[: 2 * len(gamma)]
    bands = np.searchsorted(list(BANDS.values()), 2 * gamma, side="right") - 1
    found = {names[band]: max(of_levels[bands == band], key=abs) for band in set(bands.tolist())}
    found |= dict(zip(STATISTICS, deviations[2 * len(gamma) :], strict=True))
    farthest = sorted(found.items(), key=lambda item: -abs(item[1]))[:MOST_WORDS]
    return ", ".join(f"{name} {value:+.1f}" for name, value in farthest if abs(value) >= FAR)
