"""What the figures of a model mean, in words: what a page, the app and a card say first.

Nothing is said of a figure that is not known.
"""

import math
from typing import NamedTuple

LITTLE = 0.1
"""A model that saves a smaller share of the bits of equally likely levels has learned almost nothing."""
WHOLE = 1.0
"""Epochs after which a training has seen every image."""
CLEARLY = 2.0
"""How many standard errors a difference must have to be told."""
OVERFIT = 0.05
"""The share of their bits that test images cost more than training images, from which a model overfits."""


class Remark(NamedTuple):
    """A sentence about a model, and whether it is a reason not to use the model."""

    text: str
    bad: bool = False


class Cost(NamedTuple):
    """What images cost with a model, in bits/dim: which images these are, and with what the figure compares."""

    bpd: float | None
    of: str
    num_levels: int | None = None
    png_bpd: float | None = None
    epochs: float | None = None
    """How often the training saw every image."""
    gap: float | None = None
    """Test images minus training images."""
    gap_error: float | None = None


class Accuracy(NamedTuple):
    """How often a model finds the class of an image, with its standard error, and how often a guess does."""

    share: float
    error: float | None
    guess: float


class Quality(NamedTuple):
    """The Frechet distances of samples and of held-out images from training images, with their standard errors."""

    samples: float
    samples_error: float | None
    held_out: float
    held_out_error: float | None
    num_timesteps: int
    """In which the samples were drawn."""


def judgement(
    known: Cost, accuracy: Accuracy | None = None, quality: Quality | None = None, *, may_copy: bool = False
) -> list[Remark]:
    """Return what the figures mean, the most important first.

    `may_copy` says that samples are nearer to training images than new images are, which makes their distance no merit.
    """
    said = [judge_cost(known)]
    if known.epochs is not None and known.epochs < WHOLE and not said[0].bad:
        said.append(Remark(f"The training has not seen every image yet: {describe_epochs(known.epochs)}.", bad=True))
    if known.bpd and known.gap and known.gap > max(OVERFIT * known.bpd, CLEARLY * (known.gap_error or 0)):
        text = f"It overfits: {known.of} cost {known.gap:.2f} bits/dim more than training images."
        said.append(Remark(text, bad=True))
    if accuracy:
        said.append(judge_accuracy(accuracy))
    if may_copy:
        said.append(Remark("Its samples may be copies of training images, or are too smooth.", bad=True))
    elif quality:
        said.append(judge_quality(quality))
    return said


def judge_cost(known: Cost) -> Remark:
    """Return what the bits/dim say by themselves, beside a PNG, and beside levels that are all equally likely."""
    if known.bpd is None:
        return Remark("The likelihood is not finite: something went wrong in the training.", bad=True)
    uniform = math.log2(known.num_levels) if known.num_levels else 0
    figures = f"{known.of} cost {known.bpd:.2f} bits/dim, and {uniform:.2f} if every level is equally likely"
    if uniform and known.bpd > (1 - LITTLE) * uniform:
        reason = "" if known.epochs is None else f": {describe_epochs(known.epochs)}"
        return Remark(f"It has learned almost nothing{reason}. {figures}.", bad=True)
    if known.png_bpd is not None:
        figures = f"{known.of} cost {known.bpd:.2f} bits/dim, and {known.png_bpd:.2f} in one PNG"
        if known.bpd > known.png_bpd:
            reason = "train longer" if known.epochs is None else f"train longer than {describe_epochs(known.epochs)}"
            return Remark(f"Worse than PNG: {reason}. {figures}.", bad=True)
        return Remark(f"Better than PNG by {1 - known.bpd / known.png_bpd:.0%}: {figures}.")
    if uniform:
        return Remark(f"It saves {1 - known.bpd / uniform:.0%} of the bits: {figures}.")
    return Remark(f"It needs {known.bpd:.2f} bits/dim for {known.of}.")


def judge_accuracy(accuracy: Accuracy) -> Remark:
    """Return how often the class is found, beside a guess."""
    found, guess = f"{100 * accuracy.share:.3g}%", f"{100 * accuracy.guess:.3g}%"
    if accuracy.share - CLEARLY * (accuracy.error or 0) > accuracy.guess:
        return Remark(f"It finds the class of {found} of the images, where a guess finds {guess}.")
    return Remark(f"It finds classes no better than a guess: {found}, where a guess finds {guess}.", bad=True)


def judge_quality(quality: Quality) -> Remark:
    """Return how good the samples are beside held-out images, as far as they show it."""
    error = math.hypot(quality.samples_error or 0, quality.held_out_error or 0)
    figures = f"a Fréchet distance of {quality.samples:.2f}, and {quality.held_out:.2f} for real images"
    if quality.samples - quality.held_out > CLEARLY * error:
        steps = f"drawn in {quality.num_timesteps} steps"
        return Remark(f"Its samples can be told from real images: {figures}; {steps}.")
    return Remark(f"Its samples are as good as {quality.num_timesteps} steps can show: {figures}.")


def describe_epochs(epochs: float) -> str:
    """Return how long a training was, such as "half an epoch"."""
    if epochs >= WHOLE:
        return f"{epochs:.0f} epochs" if round(epochs) > 1 else "one epoch"
    return "half an epoch" if 0.4 <= epochs <= 0.6 else f"{min(epochs, 0.99):.2g} of an epoch"
