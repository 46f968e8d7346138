"""Classification by likelihood: the bound of log p(x | c) for every class c, at common times and with common noise.

An image is hard or easy in all classes, so the differences between classes have a far smaller Monte Carlo error than
the bounds.  With equally likely classes,

    p(c | x) = exp(-bound_c) / sum_k exp(-bound_k)        -log p(x) <= mixture = -log mean_c exp(-bound_c)
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax

from vdm.evaluation import BoundSettings, image_terms, stratified_variance
from vdm.model import VDM


class Classified(NamedTuple):
    """N images, K classes: p(c | x) and log p(x | c), (N,K); the rest (N,), as the margin of the two best; nats."""

    best: np.ndarray
    probabilities: np.ndarray
    log_likelihoods: np.ndarray
    margin: np.ndarray
    margin_standard_error: np.ndarray
    mixture: np.ndarray
    """-log p(x) by the mixture over the classes."""
    mixture_bias: np.ndarray
    """What the Monte Carlo error adds to the mixture: at most 0, since the sum favours classes that were lucky."""


def class_losses(
    model: VDM,
    pixels: np.ndarray,
    share: range,
    settings: BoundSettings,
    *,
    progress: Callable[[range], Iterable[int]] = iter,
) -> np.ndarray:
    """Return one draw of the bound of every class at each time, (K,M,T) nats, for the images in `share`.

    In continuous time the times are even in gamma, since the bound depends on the ends of the schedule alone (section
    5.1): classes differ where there is much noise, and a schedule learned for the bound has few times there.  The
    arguments are those of `vdm.evaluation.image_terms`, which says what it raises.
    """
    nats = model.num_dims * math.log(2)
    every = (np.full(len(pixels), number) for number in range(model.classes or 0))
    even = replace(settings, even_in_gamma=True)
    terms = (image_terms(model, pixels, share, even, labels=labels, progress=progress) for labels in every)
    return np.stack([nats * each.sum(0) for each in terms])


def classify_draws(losses: np.ndarray) -> Classified:
    """Classify images by draws of the bound of every class at common stratified times, (K,N,T) nats with T above 1."""
    bounds, images = losses.mean(2), np.arange(losses.shape[1])
    best, second = np.argsort(bounds, axis=0, kind="stable")[:2]
    apart = losses[second, images] - losses[best, images]
    mixture = math.log(len(bounds)) - logsumexp(-bounds, axis=0)
    # The second-order term of the expected mixture: minus half the variance of the bounds among the likely classes.
    shares = softmax(-bounds, axis=0)
    likely = np.sqrt(shares)[:, :, None] * (losses - (shares[:, :, None] * losses).sum(0))
    bias = -0.5 * np.stack([stratified_variance(draws) for draws in likely]).sum(0)
    error = np.sqrt(stratified_variance(apart))
    return Classified(best, shares.T, -bounds.T, apart.mean(1), error, mixture, bias)


def classify_alone(losses: np.ndarray) -> Classified:
    """Classify each image as if it were alone: the draws of the others have no part in its error."""
    found = [classify_draws(losses[:, [image]]) for image in range(losses.shape[1])]
    return Classified(*map(np.concatenate, zip(*found, strict=True)))
