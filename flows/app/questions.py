"""What a request may ask: JSON of these shapes.

An unknown key, another type or a number out of range is refused.  What is left out, or null, is as in params.yaml.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from flows.process.guard import MOST_BODY_BYTES
from vdm.samplers import SamplerName

MOST_IMAGES, MOST_STEPS, MOST_PICTURES, MOST_TIMES = 256, 1000, 64, 1024

Seed = Annotated[int, Field(ge=0, le=10**12)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Times = Annotated[int, Field(ge=2, le=MOST_TIMES)]  # one time has no known error
Classes = Annotated[list[Annotated[int, Field(ge=0, le=10**6)]], Field(min_length=1, max_length=MOST_IMAGES)]
Guidance = Annotated[float, Field(ge=0, le=100)]


class Question(BaseModel):
    """A base for what is asked."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Sent(Question):
    """A file with a picture or with an array of levels."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    """Its ending says what it is: .png, .jpg, .webp, .tif or .npy.  It is shown, and is no path."""
    data: Annotated[str, Field(max_length=MOST_BODY_BYTES)]
    """The file in base64."""
    fit: bool = False
    """Whether a picture is made to fit the model, as `vdmctl evaluate --fit` does it; a mask never is."""


Pictures = Annotated[list[Sent], Field(min_length=1, max_length=MOST_PICTURES)]


class HowToDraw(Question):
    """What drawings and fillings-in have in common."""

    steps: Steps | None = None
    seed: Seed | None = None
    classes: Classes | None = None
    """Numbers of classes for the images in turn; null: all classes in turn."""
    guidance: Guidance | None = None
    """1: p(x | class); more exaggerates the class."""
    stream: bool = False
    """Whether the steps are answered while they are taken, each as a line of JSON."""


class ToSample(HowToDraw):
    """Images to draw."""

    num_images: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 16
    sampler: SamplerName | None = None


class ToFillIn(HowToDraw):
    """A picture to fill in where the mask is bright, or above 0 in an .npy file."""

    picture: Sent
    mask: Sent
    num_images: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 4


class ToScore(Question):
    """Pictures whose bits/dim are asked."""

    pictures: Pictures
    times: Times | None = None
    """Noise levels per image."""
    seed: Seed | None = None


class ToClassify(Question):
    """Pictures whose classes are asked."""

    pictures: Pictures
    times: Times | None = None
    """Noise levels per image and class."""
    seed: Seed | None = None
    until_sure: bool = False
    """Whether images whose two best classes are close get 2, 4, 8 or 16 times as many."""
