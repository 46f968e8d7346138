"""The features of held-out images, which are kept beside a model's figures so that others can be compared with them.

calibration.json makes that possible without the image set.  Networks in float32 differ in the last digits between kinds
of processors, so its bytes do, too; the order of images and p hardly do.
"""

import json
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from flows.core.device import find_device
from flows.core.documents import Document, Number, Sha256, finite_or_none
from flows.core.errors import Exit, UserError
from flows.core.model import TrainedModel
from flows.core.params import MOST_SURPRISE_LEVELS, NonNegative
from flows.evaluation.results import BOTH
from flows.images.image_set import Chosen, ImageSet
from flows.images.splitting import DIGEST_BYTES, digest_of
from flows.process.streams import bar
from vdm.choices import Split
from vdm.surprise import STATISTICS, HeldOut, image_features, middle_levels, reference

if TYPE_CHECKING:
    from flows.core.params import Evaluate

CALIBRATION = "calibration.json"
LARGEST_FEATURE = 1e6
"""Above every logarithm, and every statistic of images of 65,536 levels."""
Feature = Annotated[
    Annotated[Number, Field(ge=-LARGEST_FEATURE, le=LARGEST_FEATURE)] | None, BeforeValidator(finite_or_none)
]
Digest = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * DIGEST_BYTES}}}$")]


class Calibration(Document):
    """calibration.json: the features of images with which others are compared; see `vdm.surprise`."""

    model_sha256: Sha256
    data_sha256: Sha256 | None
    """Of the image set; null for images in memory."""
    split: Split
    held_out: bool
    """Whether the model was not fitted to these images.  If it was, scores have an order, and no p."""
    seed: NonNegative
    gamma: Annotated[list[Number], Field(min_length=1, max_length=MOST_SURPRISE_LEVELS)]
    """The noise levels."""
    digests: list[Digest]
    """Of the images.  The half with the smaller ones is the first."""
    features: list[list[Feature]]
    """Of each image the losses and the norms at the noise levels, as logarithms, and `vdm.surprise.STATISTICS`."""

    @model_validator(mode="after")
    def consistent(self) -> "Calibration":
        if len(self.digests) != len(self.features):
            raise ValueError(f"{len(self.digests)} digests and features of {len(self.features)} images")
        if any(len(row) != 2 * len(self.gamma) + len(STATISTICS) for row in self.features):
            raise ValueError(f"an image has not 2 x {len(self.gamma)} + {len(STATISTICS)} features")
        return self

    @cached_property
    def reference(self) -> HeldOut:
        """What the features say about those of other images.

        Raises UserError (exit 5) for fewer than two images, and for features that are not finite.
        """
        order = sorted(range(len(self.digests)), key=self.digests.__getitem__)
        first = np.zeros(len(order), bool)
        first[order[: len(order) // 2]] = True
        try:
            return reference(np.array(self.features, float).reshape(len(order), -1), first)
        except ValueError as error:
            raise UserError(f"{CALIBRATION}: no image can be compared: {error}", Exit.MISSING) from error

    def as_json(self) -> str:
        """Return the content of the file, with a line for each image."""
        described = self.model_dump(exclude={"digests", "features"})
        lists = {"digests": map(json.dumps, self.digests), "features": map(json.dumps, self.features)}
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in described.items()]
        parts += [f"{json.dumps(key)}: [\n" + ",\n".join(rows) + "\n]" for key, rows in lists.items()]
        return "{\n" + ",\n".join(parts) + "\n}\n"


def calibrate(settings: "Evaluate", model: TrainedModel, images: ImageSet) -> Calibration:
    """Return the features of at most `settings.surprise_images` validation images of the model's set.

    Without validation images they are those of training images.
    """
    split: Split = "validation" if len(images["validation"]) > 1 else "train"
    return calibration_with(
        model.on(find_device(settings.device)),
        Chosen(images, split, settings.surprise_images).pixels,
        levels=settings.surprise_levels,
        seed=settings.seed,
        batch_size=settings.batch_size,
        data_sha256=images.data_sha256,
        split=split,
        held_out=split == "validation" and model.fitted_to != BOTH,
    )


def calibration_with(
    model: TrainedModel, pixels: np.ndarray, *, levels: int, seed: int, batch_size: int, **about: Any
) -> Calibration:
    """Return the features of images (N,C,H,W); `about` says which they are."""
    features = features_of(model, pixels, levels=levels, seed=seed, batch_size=batch_size)
    return Calibration(
        model_sha256=model.sha256,
        seed=seed,
        gamma=middle_levels(model.vdm, levels).tolist(),
        digests=[digest_of(image).hex() for image in pixels],
        features=[[float(f"{value:.6g}") for value in row] for row in features.tolist()],
        **about,
    )


def features_of(model: TrainedModel, pixels: np.ndarray, **settings: int) -> np.ndarray:
    """Return the features of images, computed in float32 on any machine, since others are compared with them."""
    return image_features(model.vdm, pixels, progress=bar("comparing"), **settings)
