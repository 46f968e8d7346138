"""The figures that evaluations leave, as documents: likelihoods and a comparison in bits/dim, and samples' quality."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from flows.core.ancestry import Ancestor
from flows.core.documents import Count, Document, Figure, Number, Sha256
from vdm.choices import Dequantisation, Given, GridKind, Precision, Split, TrainingImages

if TYPE_CHECKING:
    from vdm.evaluation import Evaluation


def format_figure(value: float | None, error: float | None = None, form: str = ".4f") -> str:
    """Return a figure as text, with its standard error if it has one; "not finite" for None, which is null in JSON."""
    shown = "not finite" if value is None else format(value, form)
    return shown if error is None else f"{shown} +- {error:.4f}"


BOTH: TrainingImages = "train_and_validation"
Evaluated = Split | Literal["other"]
"""A split, or images that the user gave: files in a folder."""


class SplitFigures(Document):
    """The variational bound on some images of a split."""

    bpd: Figure
    bpd_standard_error: Figure
    bpd_monte_carlo_standard_error: Figure
    num_images: Count


class Likelihood(Document):
    """A likelihood, of which images and of which model."""

    bpd: Figure = None
    bpd_standard_error: Figure = None
    num_images: Count | None = None
    data_sha256: Sha256 | None = None
    model_sha256: Sha256 | None = None
    given: Given = "nothing"


class Metrics(Likelihood):
    """What the registry reads from the metrics.json of any version of the pipeline."""

    fitted_to: TrainingImages | None = None
    validation: SplitFigures | None = None
    num_train: Count | None = None
    """Training images of the set; null for files that are no image set."""
    licence: str | None = None
    """Of the images, as their source states it."""
    ancestors: list[Ancestor] | None = None
    """The model from which the training began, then the one from which that began, back to the first."""


class Environment(Document):
    """Versions of Python, torch, NumPy and this package, and the processor.

    `requirements_sha256` is the digest of requirements.lock, and None where that file is missing.
    """

    python: str
    torch: str
    numpy: str
    processor: str
    requirements_sha256: Sha256 | None
    pipeline: str | None = None
    """The version of this package."""


def split_figures(result: "Evaluation") -> SplitFigures:
    """Return the means of an evaluation with their errors."""
    return SplitFigures(
        bpd=result.bpd.mean(),
        bpd_standard_error=result.standard_error,
        bpd_monte_carlo_standard_error=result.monte_carlo_standard_error,
        num_images=len(result.bpd),
    )


class ClassFigures(Document):
    """The likelihood without the classes, what they are worth, and how well the likelihood finds them.

    `without` are the figures of p(x) by "no class"; the gain is these minus those given the class, paired.
    `num_classified` images were classified at `class_times` noise levels each; without any, what follows is null.
    `mixture_bpd` is their -log p(x) by the mixture of equally likely classes, of which `mixture_bias_bpd` is a bias.
    """

    num_classes: Count
    without: SplitFigures
    gain_bpd: Figure
    gain_standard_error: Figure
    num_classified: Count
    class_times: Count
    accuracy: Figure = None
    accuracy_standard_error: Figure = None
    mixture_bpd: Figure = None
    mixture_standard_error: Figure = None
    mixture_bias_bpd: Figure = None


class BoundMetrics(Metrics):
    """metrics.json: the variational bound on the images of a split, its terms and its errors.

    The file of the pipeline is about the test images.  It also has the figures of the validation images, if there are
    any to which the model was not fitted, and of as many training images as test images, at the same times and with the
    same noise.  The generalisation gap is that of the test images minus that of the training images: far above its
    standard error, the model overfits.  With `classes`, all figures are of p(x | c), but for those in `classes`.
    """

    protocol: Literal["vlb"] = "vlb"
    split: Evaluated = "test"
    bpd: Figure
    bpd_standard_error: Figure
    bpd_monte_carlo_standard_error: Figure = None
    prior_bpd: Figure
    reconstruction_bpd: Figure
    diffusion_bpd: Figure
    num_images: Count
    seed: Count | None = None
    times_per_image: Count
    num_timesteps: Count | None
    precision: Precision | None = None
    environment: Environment | None = None
    best_bpd: Figure = None
    """With the ends and the variances of the steps that suit the model best, which were fitted to validation images.

    `bpd` in a number of steps is the paper's: the steps are even in t, with the variance of q(z_s | z_t, x)."""
    best_bpd_standard_error: Figure = None
    training: SplitFigures | None = None
    generalisation_gap_bpd: Figure = None
    generalisation_gap_standard_error: Figure = None
    classes: ClassFigures | None = None


class OdeMetrics(Likelihood):
    """The likelihood of the probability-flow ODE on images of a split.

    `bpd_numerical_error` is what the solver's tolerance adds to `bpd`; a negative error flatters the model.  It is
    measured on the first `num_repeated` images, against a tenth of the tolerance.
    """

    protocol: Literal["ode"] = "ode"
    split: Evaluated = "test"
    bpd: Figure
    bpd_standard_error: Figure
    bpd_numerical_error: Figure
    num_images: Count
    num_repeated: Count
    seed: Count
    num_draws: Count
    num_probes: Count
    dequantisation: Dequantisation
    tolerance: Number
    batch_size: Count


class SamplerSettings(Document):
    """How samples were drawn; see `vdm.sampling.Solver`."""

    seed: Count
    num_timesteps: Count
    order: Count
    eta: Number
    grid: GridKind
    clip: bool
    precision: Precision
    guidance: Number = 1.0

    def is_like(self, other: "SamplerSettings") -> bool:
        """Whether both draw in the same way, except for the seed and the precision."""
        ignored = {"seed", "precision"}
        return self.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)


class QualityFigure(Document):
    """A measure of the samples, and of the same number of held-out real images, with their standard errors."""

    samples: Figure
    samples_standard_error: Figure
    held_out: Figure
    held_out_standard_error: Figure

    @property
    def of_samples(self) -> str:
        """The samples' figure with its standard error, as text."""
        return format_figure(self.samples, self.samples_standard_error)

    @property
    def of_held_out(self) -> str:
        """The held-out images' figure with its standard error, as text."""
        return format_figure(self.held_out, self.held_out_standard_error)


class SampleMetrics(Document):
    """The samples' metrics.json: `num_images` samples, and as many test images, against the training images.

    `figures` has `fd_<8 hex>` and `kd_<8 hex>`, the Frechet and the kernel distance in the features of the network
    whose digest begins with these digits.  `precision` and `recall` are in the same features.  `fid` and `kid` need the
    weights of Inception.  `nearer_than_held_out` is the probability that a sample is nearer to its nearest training
    image, in pixels, than a held-out image is to its own.  Above 0.5, the model repeats training images, or its samples
    are smoother than real images.  `by_class` has the figures within each class, by number, of a model with classes.
    """

    figures: dict[str, QualityFigure]
    by_class: dict[str, dict[str, QualityFigure]] | None = None
    nearer_than_held_out: Figure
    nearer_than_held_out_standard_error: Figure
    num_images: Count
    num_training_images: Count
    features_task: Literal["labels", "symmetries"]
    features_accuracy: Figure
    features_accuracy_standard_error: Figure = None
    features_guess: Figure = None
    """The accuracy of the best guess."""
    withheld: str | None = None
    """Why there are no figures from the features."""
    features_sha256: Sha256
    model_sha256: Sha256
    data_sha256: Sha256
    sampler: SamplerSettings

    @property
    def frechet_name(self) -> str:
        """The key of the Frechet distance in the features of the pipeline."""
        return f"fd_{self.features_sha256[:8]}"

    @property
    def frechet(self) -> QualityFigure | None:
        """The Frechet distance in the features of the pipeline, if it was measured."""
        return self.figures.get(self.frechet_name)


class ModelFigures(Document):
    """One of the two models of a comparison."""

    model: str
    bpd: Figure
    bpd_standard_error: Figure
    model_sha256: Sha256
    data_sha256: Sha256


class Comparison(Document):
    """The difference second - first over the same images, times and noise."""

    protocol: Literal["vlb"] = "vlb"
    split: Split = "test"
    models: Annotated[list[ModelFigures], Field(min_length=2, max_length=2)]
    difference_bpd: Figure
    difference_standard_error: Figure
    confidence: Number
    confidence_interval: Annotated[list[Figure], Field(min_length=2, max_length=2)]
    num_images: Count
    seed: Count
    times_per_image: Count
    num_timesteps: Count | None
    given: Given
    classes_differ: str | None = None
    """Why p(x) was compared, although both models have classes."""
    samples: dict[str, list[QualityFigure]] | None = None
    """The quality of both models' samples, by the name of the figure; None unless both were measured alike."""


def common_figures(first: SampleMetrics | None, second: SampleMetrics | None) -> dict[str, list[QualityFigure]] | None:
    """Return the figures that both models' samples have, or None if they cannot be compared.

    They can if the features, the held-out images, the numbers of images and the sampler are the same.
    """
    if first is None or second is None:
        return None
    alike = ("features_sha256", "data_sha256", "num_images", "num_training_images")
    if any(getattr(first, name) != getattr(second, name) for name in alike):
        return None
    if not first.sampler.is_like(second.sampler):
        return None
    shared = [name for name in first.figures if name in second.figures]
    return {name: [first.figures[name], second.figures[name]] for name in shared}


def bits(result: Likelihood | SplitFigures | ModelFigures) -> str:
    """Return the mean with its standard error, if there is one, as text."""
    return f"{format_figure(result.bpd, result.bpd_standard_error)} bits/dim"
