"""What the app answers: documents, which docs/json.md lists.  An image is the base64 of a PNG file."""

from typing import Any, Literal

from flows.core.documents import Count, Document, Figure, Sha256
from flows.evaluation.results import BoundMetrics, SampleMetrics
from vdm.choices import Given, GridKind, Precision


class Problem(Document):
    """Why a request is not answered."""

    error: str


class Refused(Document):
    """A picture that does not fit the model, and why."""

    name: str
    error: str
    fit: Literal["shades", "size"] | None
    """What `fit` would change: shades and colours, or the size, too; null if it would not help."""


class ScoredImage(Document):
    """The bound of an image, and what the model saw of it."""

    name: str
    """The file that was sent."""
    number: Count
    """Of the image in its file."""
    seen: str
    """The image as the model sees it."""
    changed: str | None
    """How the picture was made to fit, in words; null if it was not changed."""
    bpd: Figure
    bpd_standard_error: Figure
    """From the draws of times and noise; null if it is not known."""
    prior_bpd: Figure
    reconstruction_bpd: Figure
    diffusion_bpd: Figure
    score: Figure
    """How odd it is: its distance from held-out images; null if none are kept with the model."""
    p: Figure
    """The share of held-out images with at least this score; null if it would not be valid."""
    words: str
    """In what it differs most from held-out images, in standard deviations."""
    png_bpd: Figure
    """Bits/dim of a PNG file of the image; null unless it is gray or in colour."""
    gamma: list[Figure]
    """The noise levels at which it was evaluated."""
    level_bpd: list[Figure]
    """The diffusion term at each noise level, in bits/dim per unit of time; its mean is `diffusion_bpd`."""


class Scores(Document):
    """The bounds of the images that were sent."""

    model: str
    model_sha256: Sha256
    given: Given
    seed: Count
    times_per_image: Count
    num_timesteps: Count | None
    transforms: str
    """How the pixels were changed, in words, as the model's card says."""
    num_calibrated: Count | None
    """The held-out images of which `p` is a share; null if none are kept with the model."""
    without_p: str | None
    """Why no image has a p; null if some may have one."""
    images: list[ScoredImage]
    refused: list[Refused]


class ClassifiedImage(Document):
    """The class of an image by its likelihood given each class."""

    name: str
    number: Count
    seen: str
    changed: str | None
    best: Count
    class_name: str
    """The name of the best class, or its number if classes have no names."""
    probabilities: list[Figure]
    log_likelihoods: list[Figure]
    margin: Figure
    margin_standard_error: Figure
    times: Count
    """Noise levels that were needed."""
    sure: bool
    """Whether the margin is at least 3 standard errors."""


class Classes(Document):
    """The classes of the images that were sent."""

    model: str
    model_sha256: Sha256
    seed: Count
    num_timesteps: Count | None
    images: list[ClassifiedImage]
    refused: list[Refused]


class Frame(Document):
    """A step on the way from noise to the images; of some steps also z_t and x_hat(z_t), of the first images."""

    event: Literal["step"] = "step"
    step: Count
    steps: Count
    gamma: Figure
    """After the step."""
    z: list[str] | None
    x_hat: list[str] | None


class Drawn(Document):
    """Images that were drawn, or filled in."""

    model: str
    model_sha256: Sha256
    num_images: Count
    seed: Count
    num_timesteps: Count
    order: Count
    eta: Figure
    grid: GridKind
    clip: bool
    precision: Precision
    classes: list[Count] | None
    guidance: Figure
    approximate: bool
    """Whether known pixels were filled in around."""
    seconds: Figure
    images: list[str]
    """With shades from black to white."""
    npy: str
    """The base64 of an .npy file of levels, (N,C,H,W)."""


class NoiseSchedule(Document):
    """The noise schedule at even times."""

    t: list[Figure]
    gamma: list[Figure]


class About(Document):
    """The model that answers."""

    name: str
    """The version, or the folder."""
    model_sha256: Sha256
    num_parameters: Count
    image_shape: list[Count]
    """Channels, height and width."""
    num_levels: Count
    num_classes: Count | None
    class_names: list[str] | None
    card: str | None
    """Its card, in Markdown."""
    lineage: dict[str, Any] | None
    """Of a version, as `vdmctl lineage --json` prints it."""
    judgement: list[str]
    """What the figures mean, in words, the most important first; none without figures."""
    figures: BoundMetrics | None
    """Its evaluation, if that is with the model."""
    samples: SampleMetrics | None
    """The quality of its samples, if that is with the model."""
    problem: str | None
    """Why results of the model cannot be shown."""
    schedule: NoiseSchedule
    report: bool
    """Whether `GET /report` has the report page."""
    num_calibrated: Count | None
    """Held-out images with which pictures are compared; null if none are kept with the model."""
    device: str
    defaults: dict[str, Any]
    """What a request may leave out; `times` is null until the model's own evaluation was read."""
    samplers: dict[str, str]
    """By their names, their titles."""
    limits: dict[str, Count]
    """The most that a request may ask: `images`, `steps`, `pictures`, `times`, `bytes`, `pixels` of all pictures,
    `evaluations` of the network."""


class Example(Document):
    """A test image of the model."""

    name: str
    data: str
    """The base64 of an .npy file of levels, as a request takes it."""
    seen: str


class Examples(Document):
    """A few test images, to try the model with; none where none are known."""

    images: list[Example]


class Health(Document):
    """Whether the app answers, and with which model."""

    status: Literal["ok"] = "ok"
    model: str
    model_sha256: Sha256
    follows_champion: bool
    problem: str | None
    """Why the app does not change to the present champion."""
    waiting: Count
    """Requests that wait or are worked on."""
    device: str
