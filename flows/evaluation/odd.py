"""How odd images are to a model, as documents."""

from flows.core.documents import Count, Document, Figure, Number, Sha256
from vdm.choices import Split

LOW_P = 0.01
CHANCE = 0.001
"""Probability with which chance alone gives so many low p, or so odd a batch."""


class OddImage(Document):
    """How odd an image is."""

    number: Count
    """Of the image in its split, or among the files."""
    file: str | None
    """Its file, if the images were made of files."""
    score: Figure
    """Its distance from held-out images; lists are sorted by it."""
    p: Figure
    """The share of held-out images with at least this score; null if it would not be valid."""
    bpd: Figure
    """About its bits/dim, from the same noise levels."""
    deviations: list[Figure]
    """How far each feature is from the mean of held-out images, in standard deviations; see `names`."""
    words: str
    """In what it differs most: bands of noise levels with an unusual loss, and unusual statistics of the pixels."""


class OddBatch(Document):
    """How many images have a low p, and how odd they are all together."""

    num_images: Count
    """Those with a p."""
    num_odd: Count
    """Of which p <= 0.01."""
    expected_odd: Number
    """By chance."""
    most_odd: Count
    """More of them come about by chance with a probability of at most 0.0005."""
    p: Number
    """The probability by chance of scores that are so high on the whole."""

    @property
    def alarms(self) -> bool:
        """Whether chance alone hardly explains them."""
        return self.num_odd > self.most_odd or self.p < CHANCE


class Surprise(Document):
    """Images sorted by how odd they are to a model, the oddest first."""

    model: str
    model_sha256: Sha256
    calibrated_on: Split
    num_calibrated: Count
    """The held-out images n of which p is a share: the lowest p is 1 / (1 + n)."""
    seed: Count
    gamma: list[Number]
    """The noise levels."""
    names: list[str]
    """Of the features: the loss at each noise level, the norm of the score at each, and statistics of the pixels."""
    without_p: str | None
    """Why no image has a p; null if some may have one."""
    num_seen: Count
    """Images without a p, since the model was trained on them or compares with them."""
    batch: OddBatch | None
    """Null if no image has a p."""
    images: list[OddImage]

    @property
    def sentences(self) -> list[str]:
        """What is said of the images all together."""
        found = []
        if of := self.batch:
            number = f"{of.num_odd:,} of {of.num_images:,} images have p <= {LOW_P:g}"
            chance = f"by chance {of.expected_odd:.1f} would, and hardly more than {of.most_odd:,}"
            found.append(f"{number}; {chance} (against {self.num_calibrated:,} held-out images)")
            found.append(f"all together: p = {of.p:.2g}")
        if self.without_p:
            found.append(f"an order only, without p: {self.without_p}")
        elif self.num_seen:
            found.append(f"without p: {self.num_seen:,} images that {self.model} was trained on or compares with")
        return found


class LabelledImage(Document):
    """How likely the label of an image is."""

    number: Count
    """Of the image in its split."""
    file: str | None
    label: str
    """Its name, or its number."""
    p_label: Figure
    """The probability of the label given the image, if all classes are equally likely at first."""
    likeliest: str
    """The likeliest class: its name, or its number."""
    p_likeliest: Figure


class Labelled(Document):
    """Images sorted by how likely their label is, the least likely first."""

    model: str
    model_sha256: Sha256
    seed: Count
    times: Count
    """Noise levels of each image and class."""
    images: list[LabelledImage]
