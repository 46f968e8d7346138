"""The errors of a model on validation images over the noise levels, from which grids of any number of steps are fitted.

error_curve.json is kept beside the model's figures.  See `vdm.fitted_grids`.  Networks in float32 differ in the last
digits between kinds of processors, so its bytes do, too.
"""

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, model_validator

from flows.core.device import find_device, find_precision
from flows.core.documents import Count, Document, Number, Sha256
from flows.core.errors import Exit, UserError
from flows.core.model import TrainedModel
from flows.evaluation.results import BOTH
from flows.images.image_set import Chosen
from flows.process.streams import bar
from vdm.choices import Given
from vdm.fitted_grids import ErrorCurve, error_curve

if TYPE_CHECKING:
    from flows.core.params import Evaluate

ERROR_CURVE = "error_curve.json"
NUM_INTERVALS = 64
"""Of noise levels that are even in gamma, between which the errors are measured."""
MOST_NUMBERS = 2**20
"""Of a curve in the file.  Where images have more dimensions, all of them have the mean error of their level."""
MOST_IMAGES = 1000
LARGEST_ERROR, LARGEST_SPAN = 1e9, 200.0
"""Of an error and of gamma_1 - gamma_0 in a file, far above those of any model that has learned."""
SquaredError = Annotated[Number, Field(ge=0, le=LARGEST_ERROR)]


class KeptCurve(Document):
    """error_curve.json: the mean of (eps - eps_hat)^2 of each dimension at noise levels even in gamma.

    `errors` has a row for each level from gamma_0 to gamma_1, in the order of the pixels, or of one number for all.  It
    is empty, and `reason` says why, for a model without validation images.
    """

    model_sha256: Sha256
    data_sha256: Sha256
    given: Given
    """Whether the errors are of p(x | class) or of p(x)."""
    num_images: Count
    span: Annotated[Number, Field(gt=0, le=LARGEST_SPAN)]
    """gamma_1 - gamma_0."""
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    """Channels, height and width of the errors of a level."""
    errors: list[list[SquaredError]]
    reason: str | None = None

    @model_validator(mode="after")
    def consistent(self) -> "KeptCurve":
        if any(len(row) != math.prod(self.shape) for row in self.errors):
            raise ValueError(f"a level has not {math.prod(self.shape)} errors")
        if len(self.errors) == 1 or bool(self.errors) != bool(self.num_images):
            raise ValueError(f"a curve of {len(self.errors)} levels by {self.num_images} images")
        return self

    def curve_of(self, model: TrainedModel) -> ErrorCurve | None:
        """Return the curve to fit grids to; None without errors.

        Raises UserError (exit 5) if it is of another model.
        """
        if self.model_sha256 != model.sha256 or self.shape not in ([1, 1, 1], [*model.vdm.image_shape]):
            reason = f"{ERROR_CURVE} is about another model than {model.name}"
            raise UserError(f"{reason}; evaluate the model again, or remove the file", Exit.MISSING)
        if not self.errors:
            return None
        return ErrorCurve(np.array(self.errors).reshape(-1, *self.shape), self.span, self.num_images)

    def as_json(self) -> str:
        """Return the content of the file, with a line for each level."""
        described = self.model_dump(exclude={"errors"})
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in described.items()]
        parts.append('"errors": [\n' + ",\n".join(map(json.dumps, self.errors)) + "\n]")
        return "{\n" + ",\n".join(parts) + "\n}\n"


def measure_error_curve(settings: "Evaluate", model: TrainedModel, images: Chosen, *, given: Given) -> KeptCurve:
    """Return the curve of at most `MOST_IMAGES` validation images of the set of `images`, never of others."""
    device = find_device(settings.device)
    known = model.on(device)
    span = float(known.vdm.schedule.gamma_1.item() - known.vdm.schedule.gamma_0.item())
    kept = KeptCurve(
        model_sha256=model.sha256,
        data_sha256=images.set.data_sha256,
        given=given,
        num_images=0,
        span=span,
        shape=[1, 1, 1],
        errors=[],
    )
    if not len(images.set["validation"]):
        return kept.model_copy(update={"reason": "the set has no validation images"})
    if model.fitted_to == BOTH:
        return kept.model_copy(update={"reason": "the model was fitted to the validation images"})
    held_out = replace(images, split="validation", most=MOST_IMAGES)
    classes = held_out.classes(model) if given == "class" else None
    try:
        curve = error_curve(
            known.vdm,
            held_out.pixels,
            levels=NUM_INTERVALS,
            seed=settings.seed,
            batch_size=settings.batch_size,
            classes=classes,
            precision=find_precision(settings.precision, device),
            progress=bar("fitting"),
        )
    except ArithmeticError as error:
        return kept.model_copy(update={"reason": str(error)})
    errors = curve.errors
    if errors.size > MOST_NUMBERS:
        errors = errors.mean((1, 2, 3), keepdims=True)
    rows = [[float(f"{value:.5g}") for value in level] for level in errors.reshape(len(errors), -1).tolist()]
    return kept.model_copy(update={"num_images": curve.num_images, "shape": list(errors.shape[1:]), "errors": rows})
