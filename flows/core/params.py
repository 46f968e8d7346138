"""The sections of params.yaml, strictly typed.  `flows.core.params_file` reads the file."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from flows.core.documents import Sha256
from flows.core.errors import brief
from vdm.choices import (
    MOST_BLOCKS,
    Compile,
    Dequantisation,
    Given,
    GridKind,
    ImagesOn,
    Keep,
    LearningRateDecay,
    OptimizerKind,
    Precision,
    ScheduleKind,
    TrainingImages,
    Transform,
)


def device_name(name: str) -> str:
    """Return the name.  Raises ValueError unless it is auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", name):  # torch reads cuda:256 as cuda:0
        raise ValueError(f"must be auto, cpu, cuda or cuda:N, got {brief(name, 60)!r}")
    return name


def local_path(text: str) -> str:
    """Return the text.  Raises ValueError for a URL."""
    if "://" in text:
        raise ValueError(f"must name a folder or a file of this machine, got {brief(text, 60)!r}; download it first")
    return text


def colour(text: str) -> str:
    """Return the text.  Raises ValueError unless it is white, black or #rrggbb."""
    if not re.fullmatch(r"white|black|#[0-9a-fA-F]{6}", text):
        raise ValueError(f'must be white, black or "#rrggbb", got {brief(text, 60)!r}')
    return text


def require_devices(device: str, num_devices: int) -> None:
    """Raise ValueError if `device` names one card and `num_devices` is above 1."""
    if num_devices > 1 and ":" in device:
        raise ValueError(f"device {device} is one device, but num_devices is {num_devices}")


Positive = Annotated[int, Field(ge=1, le=10**12)]
NonNegative = Annotated[int, Field(ge=0, le=10**12)]
BatchSize = Annotated[int, Field(ge=1, le=10**6)]
Timesteps = Annotated[int, Field(ge=1, le=100_000)]  # float32 does not separate the noise levels of more
Share = Annotated[float, Field(ge=0, le=1)]
MOST_SURPRISE_LEVELS = 64  # a picture needs twice as many evaluations of the network
Gamma = Annotated[float, Field(ge=-60, le=60)]
Source = Annotated[str, Field(min_length=1), AfterValidator(local_path)]
Device = Annotated[str, AfterValidator(device_name)]
Devices = Annotated[int, Field(ge=1, le=4096)]
PUBLISHED_FOLDER = "data/published"
"""The folder that stands for the published files, which `vdmctl download` downloads."""
CHAMPION = "champion"
"""The value of `train.start_from` that a run replaces by the champion's name."""
ImageNet = Literal["imagenet32", "imagenet64", "imagenet32_2016", "imagenet64_2016"]


class Section(BaseModel):
    """A section in which an unknown, missing or mistyped key is an error, and so are NaN and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    """The image set and its transforms; see data/README.md."""

    name: Literal["digits", "mnist", "fashion_mnist", "cifar10", "svhn", ImageNet, "image_folder"]
    source: Source
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)]
    split_seed: NonNegative
    without_copies: bool
    max_damaged: Annotated[int, Field(ge=0)] | Share
    """A number of files, or a share of them."""
    background: Annotated[str, AfterValidator(colour)] | None
    grayscale: bool
    gray_as_rgb: bool
    crop: Literal["center"] | None
    resize: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)] | None
    pad: Annotated[int, Field(ge=0, le=1024)]
    stored_bits: Annotated[int, Field(ge=1, le=15)] | None
    num_bits: Annotated[int, Field(ge=1, le=16)] | None

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.name == "digits" and not self.is_published:
            raise ValueError(f"digits needs source: {PUBLISHED_FOLDER}")
        if self.name == "image_folder" and self.is_published:
            raise ValueError("image_folder needs source: the folder of images")
        if self.background and self.name != "image_folder":
            raise ValueError("background needs name: image_folder, since published sets have no transparency")
        if self.without_copies and self.name != "image_folder":
            raise ValueError("without_copies needs name: image_folder, since published sets are compared as a whole")
        if self.max_damaged and self.name != "image_folder":
            raise ValueError("max_damaged needs name: image_folder, since files of published sets have known digests")
        if self.stored_bits and self.name != "image_folder":
            raise ValueError("stored_bits needs name: image_folder, since published sets have 8 bits")
        if self.grayscale and self.gray_as_rgb:
            raise ValueError("grayscale and gray_as_rgb exclude each other; set one to false")
        return self

    @property
    def background_hex(self) -> str | None:
        """The background as #rrggbb, in which a colour is written in one way only."""
        named = {"white": "#ffffff", "black": "#000000"}
        return self.background and named.get(self.background, self.background.lower())

    @property
    def background_colour(self) -> tuple[int, int, int] | None:
        """The background as red, green and blue, 0 to 255."""
        if self.background_hex is None:
            return None
        red, green, blue = bytes.fromhex(self.background_hex[1:])
        return red, green, blue

    @property
    def is_published(self) -> bool:
        """Whether the source stands for the published files."""
        return self.source == PUBLISHED_FOLDER


class Contract(Section):
    """Limits for the validation of images; see `flows.contract.checks`."""

    max_leaked: Share
    max_duplicates: Share
    near_duplicate_distance: Share
    max_constant: Share
    max_label_ratio: Annotated[float, Field(ge=1)]
    max_gaps: Share
    max_peaks: Share
    max_skipped: Share
    max_lost_detail: Share
    max_jpeg_grid: Share
    max_shift: Annotated[float, Field(ge=0)]
    max_drift: Share
    on_drift: Literal["warn", "fail"]
    max_odd: Share | None


class Model(Section):
    """The noise schedule and the noise predictor; see `vdm.model.VDM`."""

    schedule: ScheduleKind
    gamma_0: Gamma
    gamma_1: Gamma
    width: Annotated[int, Field(ge=4, le=2**14, multiple_of=2)]
    blocks: Annotated[int, Field(ge=1, le=MOST_BLOCKS)]
    attention_everywhere: bool
    fourier_exponents: list[Annotated[int, Field(ge=-8, le=16)]]
    norm_groups: Positive
    norm_eps: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    augmentation_input: bool
    classes: Annotated[int, Field(ge=2)] | Literal["auto"] | None
    network: Annotated[str, Field(pattern=r"^[\w.]+:[\w.<>]+$")] | None
    """A network of the user's own, which takes the place of that with the parameters from `width` on."""
    options: dict[str, Any]

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.gamma_0 >= self.gamma_1:
            raise ValueError(f"gamma_0 must lie below gamma_1, got {self.gamma_0} and {self.gamma_1}")
        if self.width % self.norm_groups:
            raise ValueError(f"width must be a multiple of norm_groups, got {self.width} and {self.norm_groups}")
        if self.width == self.norm_groups:  # the norm of one channel takes away what gamma_t adds to it
            raise ValueError(f"norm_groups must be less than width, or the network ignores gamma_t; got {self.width}")
        return self


class Train(Section):
    """The settings of the optimisation; see `vdm.training.trainer` and `vdm.training.validation`."""

    images: TrainingImages
    start_from: Source | None
    """A version, a model folder, or in runs `CHAMPION`; None for random weights."""
    images_on: ImagesOn
    seed: NonNegative
    device: Device
    num_devices: Devices
    max_restarts: NonNegative
    precision: Literal["auto", Precision]
    compile: Literal["auto", Compile]
    activation_checkpointing: bool
    steps: Positive
    batch_size: BatchSize
    accumulation: Positive
    augmentation: list[Transform]
    class_dropout: Share
    optimizer: OptimizerKind
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup_steps: NonNegative
    learning_rate_decay: LearningRateDecay
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_gradient_norm: Annotated[float, Field(gt=0)] | None
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    log_every: Positive
    samples_every_steps: Positive | None
    tracker: Literal["tensorboard"] | None
    validate_every_steps: Positive | None
    validation_times: Annotated[int, Field(ge=2, le=10**6)]  # one time has no known error
    keep: Keep
    patience: Positive | None
    checkpoint_every_steps: Positive
    checkpoint_every_minutes: Annotated[float, Field(gt=0)]
    keep_checkpoints: Positive

    @model_validator(mode="after")
    def consistent(self) -> Self:
        parts = self.num_devices * self.accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size must be a multiple of num_devices x accumulation = {parts}, got {self.batch_size}"
            )
        require_devices(self.device, self.num_devices)
        if self.validate_every_steps is None and (self.keep == "best" or self.patience is not None):
            raise ValueError("keep: best and patience need validate_every_steps, the steps between validations")
        if self.validate_every_steps is not None and self.images == "train_and_validation":
            raise ValueError("images: train_and_validation leaves no images for validate_every_steps; set it to null")
        return self


class Computation(Section):
    """A section of a computation with random draws."""

    seed: NonNegative
    device: Device


class Shared(Computation):
    """A section of a computation that several devices can share."""

    num_devices: Devices
    precision: Literal["auto", Precision]

    @model_validator(mode="after")
    def one_for_each(self) -> Self:
        require_devices(self.device, self.num_devices)
        return self


class Evaluate(Shared):
    """The settings of the variational bound; see `vdm.evaluation.BoundSettings`."""

    times_per_image: Positive
    num_timesteps: Timesteps | None
    batch_size: BatchSize
    given: Literal["auto", Given]
    class_images: NonNegative | None
    class_times: Annotated[int, Field(ge=2, le=10**6)]  # one time has no known error
    surprise_images: Annotated[int, Field(ge=2, le=10**6)]
    surprise_levels: Annotated[int, Field(ge=1, le=MOST_SURPRISE_LEVELS)]


class Ode(Computation):
    """The settings of the ODE likelihood of `vdmctl evaluate --protocol ode`; see `vdm.ode.evaluate_ode`."""

    num_images: Positive | None
    num_draws: Positive
    num_probes: NonNegative
    dequantisation: Dequantisation
    given: Literal["auto", Given]
    tolerance: Annotated[float, Field(ge=1e-9, lt=1)]  # below, the rounding of a float32 network makes steps tiny
    batch_size: BatchSize


class Promote(Section):
    """The conditions for a version to become the champion; see `flows.registry.promotion`."""

    min_improvement_bpd: Annotated[float, Field(ge=0)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    max_frechet: Annotated[float, Field(gt=0)] | None
    approval: Literal["person", "few_images"] | None


class Sample(Shared):
    """The samples, and how to draw them; see `vdm.sampling.Solver`."""

    num_images: Positive
    batch_size: BatchSize
    num_timesteps: Timesteps
    order: Literal[1, 2]
    eta: Share
    grid: GridKind
    clip: bool
    classes: list[NonNegative] | None
    guidance: Annotated[float, Field(ge=0, le=100)]
    inception_weights: Source | None
    inception_sha256: Sha256 | None

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if (self.inception_weights is None) != (self.inception_sha256 is None):
            raise ValueError("inception_weights and inception_sha256 belong together: the file and its digest")
        return self


class Features(Computation):
    """The classifier whose features compare images; see `flows.sampling.features`."""

    task: Literal["auto", "labels", "symmetries"]
    width: Annotated[int, Field(ge=4, le=1024, multiple_of=4)]
    steps: Positive
    batch_size: BatchSize
    learning_rate: Annotated[float, Field(gt=0, le=1)]


class Quality(Computation):
    """The comparison of samples and test images with training images; see `flows.sampling.measuring`."""

    num_images: Annotated[int, Field(ge=10, le=10**5)]
    resamples: Annotated[int, Field(ge=2, le=10**4)]


class Params(Section):
    """All sections of params.yaml."""

    data: Data
    contract: Contract
    model: Model
    train: Train
    evaluate: Evaluate
    ode: Ode
    sample: Sample
    features: Features
    quality: Quality
    promote: Promote

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.data.source.startswith("~"):
            raise ValueError(f"data.source must be a path as DVC reads it; write {Path(self.data.source).expanduser()}")
        if self.model.network and (self.train.augmentation or self.train.optimizer == "muon"):
            raise ValueError("model.network is for train.augmentation: [] and train.optimizer: adamw")
        if self.model.network and self.train.activation_checkpointing:
            reason = (
                "is for the blocks of this package's network; in that of model.network, torch.utils.checkpoint does it"
            )
            raise ValueError(f"train.activation_checkpointing {reason}")
        if self.model.options and not self.model.network:
            raise ValueError("model.options are those of model.network, which is null")
        if self.train.augmentation and not self.model.augmentation_input:
            raise ValueError("train.augmentation needs model.augmentation_input: true, so that the model sees the flag")
        if self.train.validate_every_steps and not self.data.validation_fraction and self.data.name != "image_folder":
            raise ValueError("data.validation_fraction must be above 0, or train.validate_every_steps null")
        return self
