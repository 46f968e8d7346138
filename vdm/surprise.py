"""How odd an image is: losses, scores and plain statistics, compared with those of held-out images.

Bits/dim do not say it: simple images of another kind have fewer (Nalisnick et al. 2019, arXiv 1810.09136).  The curve
of the loss over the noise levels does.  Its L levels are even in gamma, and the same, with the same noise, for all
images, so that the noise adds nothing to a difference between two images:

    loss_l(x) = log |eps_l - eps_hat(alpha_l x + sigma_l eps_l; gamma_l)|^2
    norm_l(x) = log |eps_hat(alpha_l x; gamma_l)|^2

The second is the norm of the score at the image itself, without noise, which MSMA compares (Mahmood et al. 2021, arXiv
2010.13132).  `STATISTICS` of the pixels, which need no network, are features, too.  One half of the held-out images
says where features lie:

    score(x) = distance of features(x), standardised by this half, to the 5th nearest of this half

and the other half, n images, how rare a score is (conformal p-values, Bates et al. 2023, arXiv 2104.08279, eq. 1):

    p(x) = (1 + number of the other half with at least this score) / (1 + n)

Over draws of the held-out images, p <= a has a probability of at most a if x is exchangeable with them: of the same
mix of kinds, and no neighbour of theirs in a film.  Given these held-out images the probability is another one, of
which the distribution is known: the number of p <= a among N further images is beta-binomial (same source).
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy import spatial, stats
from torch import Tensor

from vdm.discretization import pixels_to_x
from vdm.evaluation import image_noise
from vdm.model import VDM
from vdm.schedule import alpha
from vdm.vlb import bits_per_dim, prior_loss, squared_error

NEIGHBOUR = 5
STATISTICS = ("brightness", "contrast", "variety", "change downwards", "change sideways", "height", "place sideways")
"""Features that need no network.

Mean and standard deviation of the levels, the entropy of their shares, the mean step between neighbours in a column and
in a row, and where the centre of brightness lies: its row and its column.
"""
BANDS = {"fine texture": -math.inf, "parts": 2 * math.log(0.1), "composition": 0.0}
"""What is lost in the noise of a level, by the lowest gamma: noise of at least 0.1 times, and once, the pixels' range.

sigma/alpha = exp(gamma/2), and x reaches from -1 to 1.
"""


MOST_COUNTS = 2**20
"""Numbers of pixels by image and level in memory at a time."""
PRECISION = 1e-5
"""Of a feature: of its size, and of 1.  The losses are logarithms in float32, and features are kept with six digits."""


class HeldOut(NamedTuple):
    """What the features of held-out images say about those of others, F for each image; made by `reference`."""

    mean: np.ndarray
    deviation: np.ndarray
    """Mean and standard deviation of the features of the first half, (F,); 1 for a feature that all of them share."""
    neighbours: spatial.KDTree
    """The standardised features of the first half."""
    scores: np.ndarray
    """The scores of the other half, (n,), rising."""

    def standardised(self, features: np.ndarray) -> np.ndarray:
        """Return how far features (N,F) are from their means, in standard deviations: (N,F)."""
        return (features - self.mean) / self.deviation  # type: ignore[no-any-return]

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return the score of each image by its features (N,F): (N,)."""
        rank = min(NEIGHBOUR, self.neighbours.n)
        distances, _ = self.neighbours.query(self.standardised(features), [rank])
        return np.asarray(distances[:, 0])

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return the p-value of each score (N,), as above."""
        count = len(self.scores)
        return np.asarray((1 + count - np.searchsorted(self.scores, scores)) / (1 + count))


def reference(features: np.ndarray, first: np.ndarray) -> HeldOut:
    """Return the reference of held-out images by their features (N,F); `first` (N,) says which are in the first half.

    Raises ValueError unless both halves have images, and all features are finite.
    """
    if not (first.any() and not first.all()):
        raise ValueError(f"both halves need images, got {first.sum()} of {len(first)} in the first one")
    if not np.isfinite(features).all():
        raise ValueError("the features of held-out images are not finite")
    mean, deviation = features[first].mean(0), features[first].std(0)
    # Of equal values rounding leaves some 1e-15, by which another's rounding must not be divided.
    deviation = np.where(deviation > PRECISION * np.maximum(np.abs(mean), 1.0), deviation, 1.0)
    made = HeldOut(mean, deviation, spatial.KDTree((features[first] - mean) / deviation), np.zeros(0))
    return made._replace(scores=np.sort(made.score(features[~first])))


def middle_levels(model: VDM, count: int) -> Tensor:
    """Return `count` levels gamma, (L,), rising: the middles of equal parts of the way from gamma_0 to gamma_1."""
    gamma_0, gamma_1 = model.schedule.gamma_0, model.schedule.gamma_1
    middles = (torch.arange(count, device=gamma_0.device, dtype=gamma_0.dtype) + 0.5) / count
    return (gamma_0 + (gamma_1 - gamma_0) * middles).detach()


@torch.inference_mode()
def image_features(
    model: VDM,
    pixels: np.ndarray,
    *,
    levels: int,
    seed: int,
    batch_size: int,
    progress: Callable[[range], Iterable[int]] = iter,
) -> np.ndarray:
    """Return the features of images (N,C,H,W): (N, 2 L + 7) float64, losses, norms, and then `STATISTICS`.

    It takes 2 L evaluations of the network for each image, of p(x) if the model has classes.  `progress` gets the
    batches' first indices.  Raises TypeError and ValueError unless they are images of the model, and for a model in
    training mode.
    """
    model.require_evaluation_mode()
    model.require_images(pixels)
    like = next(model.parameters())
    gammas = middle_levels(model, levels)
    noise = torch.from_numpy(image_noise(seed, range(1), levels, model.image_shape)).to(like)
    parts = [torch.zeros(0, 2 * levels + len(STATISTICS), dtype=torch.float64, device=like.device)]
    for start in progress(range(0, len(pixels), batch_size)):
        batch = torch.from_numpy(np.array(pixels[start : start + batch_size])).to(like.device)
        x = pixels_to_x(batch, model.num_levels, like.dtype)
        squares = [
            squared_error(x, eps.expand_as(x), gamma.expand(len(x)), model.network)
            for gamma, eps in zip(gammas, noise, strict=True)
        ]
        squares += [
            model.network(alpha(gamma) * x, gamma.expand(len(x))).square().flatten(1).sum(1) for gamma in gammas
        ]
        # A loss of 0, which the exact predictor of one image has, has a logarithm, too.
        logarithms = torch.stack(squares, dim=1).double().clamp(min=torch.finfo(torch.float32).tiny).log()
        parts.append(torch.cat([logarithms, pixel_statistics(batch, model.num_levels)], dim=1))
    return torch.cat(parts).cpu().numpy()


def pixel_statistics(pixels: Tensor, num_levels: int) -> Tensor:
    """Return `STATISTICS` of images (B,C,H,W): (B,7) float64."""
    levels = pixels.double()
    flat, (height, width) = levels.flatten(1), levels.shape[2:]
    # Of a black image the centre is the middle.
    weights = (levels + 1e-9).sum(1)
    weights = weights / weights.sum((1, 2), keepdim=True)
    columns = [
        flat.mean(1),
        flat.std(1, correction=0),
        torch.cat([level_entropy(some, num_levels) for some in pixels.split(max(1, MOST_COUNTS // num_levels))]),
        *(levels.diff(dim=axis).abs().flatten(1).sum(1) / flat.shape[1] for axis in (2, 3)),
        weights.sum(2) @ torch.arange(height, dtype=torch.float64, device=flat.device),
        weights.sum(1) @ torch.arange(width, dtype=torch.float64, device=flat.device),
    ]
    return torch.stack(columns, dim=1)


def level_entropy(pixels: Tensor, num_levels: int) -> Tensor:
    """Return the entropy of the shares of the levels in images (B,C,H,W): (B,) nats, float64."""
    flat = pixels.flatten(1).long()
    place = torch.arange(len(flat), device=flat.device)[:, None] * num_levels
    counts = torch.bincount((flat + place).flatten(), minlength=len(flat) * num_levels)
    shares = counts.reshape(-1, num_levels) / flat.shape[1]
    entropy: Tensor = torch.special.entr(shares.double()).sum(1)
    return entropy


@torch.inference_mode()
def bound_of(model: VDM, pixels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return about -VLB of images (N,C,H,W), from their features (N, 2 L + 7): (N,) bits/dim.

    The diffusion term is the integral over gamma (eq. 17, section 5.1) by the midpoint rule, at one draw of the noise.
    """
    first, last = model.schedule.gamma_0, model.schedule.gamma_1
    batch = torch.from_numpy(np.array(pixels)).to(first.device)
    prior = prior_loss(pixels_to_x(batch, model.num_levels, first.dtype), last)
    losses = np.exp(features[:, : (features.shape[1] - len(STATISTICS)) // 2])
    diffusion = 0.5 * (last - first).item() * losses.mean(1)
    nats = (prior + model.reconstruction_loss(batch)).double().cpu() + torch.from_numpy(diffusion)
    return bits_per_dim(nats, model.num_dims).numpy()


class Expected(NamedTuple):
    """How many of N images have p <= a by chance, and an interval that has this number with probability 1 - chance."""

    mean: float
    low: int
    high: int


def expected_count(num_images: int, calibrated: int, level: float, chance: float) -> Expected:
    """Return how many of so many exchangeable images have p <= level, with n `calibrated` images: beta-binomial.

    With k = floor(level (n + 1)) the probability of p <= level, given these n, has the distribution Beta(k, n + 1 - k).
    """
    k = math.floor(level * (calibrated + 1) + 1e-9)  # a product such as 0.01 * 100 may be rounded down
    if not 0 < k <= calibrated:
        every = num_images if k else 0
        return Expected(float(every), every, every)
    count = stats.betabinom(num_images, k, calibrated + 1 - k)
    return Expected(float(count.mean()), int(count.ppf(chance / 2)), int(count.ppf(1 - chance / 2)))


def p_of_batch(scores: np.ndarray, calibrated: np.ndarray) -> float:
    """Return the probability that exchangeable images have scores so high on the whole: Mann and Whitney's test.

    It finds a batch of images each of which is only a little odd.
    """
    return float(stats.mannwhitneyu(scores, calibrated, alternative="greater").pvalue)
