"""Commands about likelihoods: evaluate a model, compare two models."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from flows.commands.arguments import MODEL_HELP, AsJson, FitOption, ForceOption, ModelArgument, override, project
from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.files import require_replaceable
from flows.process.streams import say_result
from vdm.choices import Given, Split

if TYPE_CHECKING:
    from flows.core.model import TrainedModel
    from flows.images.image_set import Chosen

commands = typer.Typer()
log = logging.getLogger(__name__)

IMAGES_HELP = "The image set. If data/images is missing, a version is evaluated on its own images."
ImagesOption = Annotated[Path | None, typer.Option(help=IMAGES_HELP, show_default="data/images")]
PICTURES_HELP = f"{IMAGES_HELP} Or pictures or an .npy file, to be transformed as the model's images, as its card says."
SPLIT_HELP = "train, validation or test: the images to evaluate. Make every choice on validation images."
SplitOption = Annotated[Split, typer.Option(help=SPLIT_HELP)]
PROTOCOL_HELP = (
    "vlb: the variational bound (parameters `evaluate:`); ode: the probability-flow ODE (`ode:`), and the numerical"
    " error, measured on 8 images at a tenth of ode.tolerance."
)
STEPS_HELP = (
    "vlb: number of steps T, or `continuous`. Several, as in 10,100,continuous, are evaluated in turn."
    " [default: evaluate.num_timesteps]"
)
PROBES_HELP = (
    "ode: random probes that estimate the divergence; 0: exact, as slow as C x H x W probes. [default: ode.num_probes]"
)
GIVEN_HELP = "Of models with classes: class, for p(x | class), or nothing, for p(x). [default: `given` in params.yaml]"
GivenOption = Annotated[Given | None, typer.Option(help=GIVEN_HELP)]
SURE_HELP = (
    "Take 2, 4, 8 or 16 times as many where the two best classes are less than 3 standard errors apart. As measured,"
    " the true difference lies beyond these in 2.7% of images at 8 noise levels, and in 0.3% at 128."
)
LABELS_HELP = (
    "Of an image set with labels, by a model with classes: sort by p(label | image), the least likely first, to find"
    " wrong labels. It takes as long as `vdmctl classify`. Name images on which the model was not trained."
)
SURPRISE_OUT_HELP = "A file to write, too: a table of all images (.csv), or a page with the oddest ones (.html)."
OUT_HELP = "vlb: folder for metrics.json, calibration.json, error_curve.json and the tables, which are replaced."


@commands.command()
def evaluate(
    model: ModelArgument = None,
    images: Annotated[Path | None, typer.Option(help=PICTURES_HELP, show_default="data/images")] = None,
    fit: FitOption = False,
    split: Annotated[Split | None, typer.Option(help=SPLIT_HELP, show_default="test, of an image set")] = None,
    given: GivenOption = None,
    protocol: Annotated[Literal["vlb", "ode"], typer.Option(help=PROTOCOL_HELP)] = "vlb",
    times_per_image: Annotated[
        int | None, typer.Option(help="vlb: noise levels per image. [default: evaluate.times_per_image]")
    ] = None,
    num_timesteps: Annotated[str | None, typer.Option(help=STEPS_HELP)] = None,
    num_images: Annotated[
        int | None, typer.Option(min=1, help="Most images, evenly spread. [default: vlb: all; ode: ode.num_images]")
    ] = None,
    num_draws: Annotated[
        int | None, typer.Option(help="ode: dequantisation draws per image. [default: ode.num_draws]")
    ] = None,
    num_probes: Annotated[int | None, typer.Option(help=PROBES_HELP)] = None,
    dequantisation: Annotated[
        str | None, typer.Option(help="ode: uniform or truncated_normal noise. [default: ode.dequantisation]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of times and noise. [default: the protocol's]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. [default: the protocol's]")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=OUT_HELP, show_default="reports/evaluation for the test images of data/images without MODEL"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the bits/dim of the test images (parameters `evaluate:`), and write reports/evaluation.

    With MODEL, other images, another split or --num-images, nothing is written unless --out names a folder. Written
    metrics of all test images also have the figures of the validation images, and the gap to as many training images.
    Options replace parameters of params.yaml; an option that the protocol does not have is an error.

    A model with classes is evaluated given the images' classes and without them, and images are classified by it.
    """
    if out:
        from flows.repository.lock_file import require_no_outputs

        require_no_outputs(project().repository, out)
    if fit and images is None:
        raise UserError("--fit is for pictures; name them with --images", Exit.USAGE)
    options = {
        "times_per_image": times_per_image,
        "num_draws": num_draws,
        "num_probes": num_probes,
        "dequantisation": dequantisation,
        "given": given,
        "seed": seed,
        "device": device,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    asked = Asked(model, images, split, num_images, fit)
    if protocol == "vlb":
        evaluate_bound(asked, chosen, timesteps(num_timesteps) if num_timesteps else None, out, as_json)
    elif num_timesteps or out:
        raise UserError("--num-timesteps and --out need --protocol vlb", Exit.USAGE)
    else:
        evaluate_ode(asked, chosen, as_json)


class Asked(NamedTuple):
    """The model and the images that are to be evaluated, as the user named them."""

    model: str | None
    images: Path | None
    split: Split | None
    num_images: int | None
    fit: bool

    @contextmanager
    def opened(self) -> "Iterator[tuple[TrainedModel, Chosen]]":
        """Yield the model and the images.  Raises UserError for what is missing, damaged or does not fit."""
        from flows.images.user_files import open_named

        model = project().model(self.model)
        if self.images is None:
            yield model, images_for(self.split or "test", self.model, most=self.num_images)
            return
        with open_named(self.images, self.split, model, self.num_images, fit=self.fit) as chosen:
            yield model, chosen


def evaluate_ode(asked: Asked, options: dict[str, Any], as_json: bool) -> None:
    """Print the likelihood of the probability-flow ODE, with the parameters `ode:` and the options."""
    from flows.commands.summary import show
    from flows.evaluation.ode import ode

    settings = override(project().params.ode, options | ({"num_images": asked.num_images} if asked.num_images else {}))
    with asked._replace(num_images=settings.num_images).opened() as (model, images):
        result = ode(settings, model, images)
        show(result, as_json)
        compare_with_png([result.bpd], images)


def evaluate_bound(
    asked: Asked, options: dict[str, Any], steps: list[int | None] | None, out: Path | None, as_json: bool
) -> None:
    """Print the bound, with the parameters `evaluate:` and the options, at each of the numbers of steps.

    All test images of data/images without a model are those of the stage, whose output is written.
    """
    from flows.commands.summary import show, summary
    from flows.dossier.calibration import error_curve_of
    from flows.dossier.opening import dossier_of
    from flows.evaluation.bound import evaluate

    parameters = project().params.evaluate
    if steps and len(steps) > 1:
        options = options | {"class_images": 0}
    sweep = [override(parameters, options | {"num_timesteps": step}) for step in steps or [parameters.num_timesteps]]
    with asked.opened() as (model, images):
        folder = images.set.folder
        of_pipeline = folder is not None and folder.resolve() == layout.IMAGES.resolve() and images.split == "test"
        if asked.model is None and of_pipeline and asked.num_images is None:
            out = out or layout.EVALUATION
        if len(sweep) > 1 and out:
            reason = "several values of --num-timesteps write no files"
            raise UserError(f"{reason}: name a MODEL, and leave out --out", Exit.USAGE)
        kept = error_curve_of(dossier_of(project(), model)) if any(each.num_timesteps for each in sweep) else None
        results = [
            evaluate(settings, model, images, requirements=layout.REQUIREMENTS, out=out, kept=kept)
            for settings in sweep
        ]
        if len(results) == 1:
            show(results[0], as_json)
        else:
            swept = {"protocol": "vlb", "sweep": [result.model_dump() for result in results]}
            say_result(swept, "\n".join(map(summary, results)), as_json)
        compare_with_png([result.bpd for result in results], images)


def compare_with_png(figures: "list[float | None]", images: "Chosen") -> None:
    """Warn if none of a model's figures of the images in bits/dim is as good as what they take in a PNG."""
    from flows.images.as_png import measure_png

    png = measure_png(images.pixels)
    if all(map(png.is_better, figures)):
        log.warning("worse than PNG: train longer; in one PNG %s take %.4f bits/dim", png.words, png.bpd)


def timesteps(text: str) -> list[int | None]:
    """Parse numbers of steps such as `10,100,continuous`; None is continuous time.  Raises UserError (exit 2)."""
    try:
        return [None if part == "continuous" else int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--num-timesteps: {text!r} is not like 10,100,continuous", Exit.USAGE) from error


@commands.command()
def classify(
    images: Annotated[Path, typer.Argument(help=PICTURES_HELP)],
    model: ModelArgument = None,
    fit: FitOption = False,
    split: Annotated[Split | None, typer.Option(help=SPLIT_HELP, show_default="test, of an image set")] = None,
    times: Annotated[int | None, typer.Option(min=2, help="Noise levels. [default: evaluate.class_times]")] = None,
    until_sure: Annotated[bool, typer.Option("--until-sure", help=SURE_HELP)] = False,
    as_json: AsJson = False,
) -> None:
    """Classify images by their likelihood given each class (parameters `evaluate:`), each as if it were alone.

    The margin is the difference of the two highest log-likelihoods, in nats, with its standard error over times and
    noise, which are the same for all classes. All classes are equally likely at first.
    """
    settings = override(project().params.evaluate, {"class_times": times} if times else {})
    from flows.core.tables import table
    from flows.evaluation.classes import classify
    from flows.evaluation.results import format_figure
    from flows.images.user_files import open_named

    classifier = project().model(model)
    with open_named(images, split, classifier, fit=fit) as to_classify:
        found = classify(settings, classifier, to_classify, until_sure=until_sure)
    columns = {
        "image": map(str, range(len(found.best))),
        "file": found.files,
        "class": found.names or map(str, found.best),
        "probability": (f"{each[best]:.4f}" for each, best in zip(found.probabilities, found.best, strict=True)),
        "margin, nats": map(format_figure, found.margin, found.margin_standard_error),
        "times": map(str, found.times),
    }
    shown = {title: cells for title, cells in columns.items() if cells is not None}
    text = table([*shown], list(zip(*shown.values(), strict=True)))
    say_result(found.model_dump(), text, as_json)


@commands.command()
def surprise(
    images: Annotated[Path, typer.Argument(help=PICTURES_HELP)],
    model: ModelArgument = None,
    fit: FitOption = False,
    split: Annotated[Split | None, typer.Option(help=SPLIT_HELP, show_default="test, of an image set")] = None,
    num_images: Annotated[
        int | None, typer.Option(min=1, help="Most images, evenly spread.", show_default="all")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=SURPRISE_OUT_HELP)] = None,
    force: ForceOption = False,
    labels: Annotated[bool, typer.Option("--labels", help=LABELS_HELP)] = False,
    as_json: AsJson = False,
) -> None:
    """Sort images by how odd they are to MODEL, the oddest first.

    The loss of an image at some noise levels, and statistics of its pixels, are compared with those of held-out images,
    which `vdmctl evaluate` kept. p is the share of these that are at least as odd: of images like them, one in a
    hundred has p <= 0.01. docs/surprise.md says what this finds, and what it does not.
    """
    settings = project().params.evaluate
    from flows.commands.summary import describe_surprise
    from flows.dossier.calibration import calibration_of, images_seen_by
    from flows.dossier.opening import dossier_of
    from flows.evaluation.surprise import surprise
    from flows.images.user_files import open_named
    from flows.report.odd import write_odd
    from flows.repository.lock_file import require_no_outputs

    if out:
        require_no_outputs(project().repository, out)
        if out.suffix not in (".csv", ".html"):
            raise UserError(f"--out {out} must end in .csv or .html", Exit.USAGE)
        require_replaceable(out, images, force=force)
    compared = project().model(model)
    if labels:
        if out:
            raise UserError("--labels prints, and writes no --out", Exit.USAGE)
        from flows.commands.summary import describe_labels
        from flows.evaluation.labels import unlikely_labels

        with open_named(images, split, compared, num_images, fit=fit) as chosen:
            labelled = unlikely_labels(settings, compared, chosen)
        say_result(labelled.model_dump(), describe_labels(labelled), as_json)
        return
    calibration = calibration_of(dossier_of(project(), compared))
    with open_named(images, split, compared, num_images, fit=fit) as chosen:
        transforms = chosen.set.description.transforms
        seen = images_seen_by(project(), compared, transforms, calibration.data_sha256)
        found = surprise(settings, compared, chosen, calibration, seen.digests)
        if found.batch and seen.unknown:
            log.warning("not all images that %s was trained on are known; p of one of them is not valid", compared.name)
        if out:
            write_odd(found, chosen, out)
    say_result(found.model_dump(), describe_surprise(found), as_json)


@commands.command()
def compare(
    first: Annotated[str, typer.Argument(help=MODEL_HELP)],
    second: Annotated[str, typer.Argument(help="The model to compare it with, named in the same way.")],
    images: ImagesOption = None,
    split: SplitOption = "test",
    given: GivenOption = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the interval, between 0 and 1.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Compare two models: SECOND - FIRST in bits/dim, same images, times and noise (parameters `evaluate:`).

    Also print the quality of both models' samples, if both were drawn by the same sampler and measured in the same
    features, with the same images.
    """
    if not 0 < confidence < 1:
        raise UserError(f"--confidence must lie between 0 and 1, got {confidence}", Exit.USAGE)
    settings = override(project().params.evaluate, {"given": given} if given else {})
    from flows.commands.summary import show
    from flows.dossier.opening import dossier_of
    from flows.evaluation.bound import compare
    from flows.evaluation.results import common_figures
    from flows.images.image_set import Chosen, open_images

    models = project().model(first), project().model(second)
    chosen = Chosen(open_images(images), split) if images else images_for(split, first, second)
    samples = common_figures(*(dossier_of(project(), model).sample_metrics for model in models))
    compared = compare(settings, *models, chosen, confidence=confidence)
    show(compared.model_copy(update={"samples": samples}), as_json)


def images_for(split: Split, *models: str | None, most: int | None = None) -> "Chosen":
    """Return the images to evaluate models on: of data/images, or if that is missing, those of the last version.

    Log a warning for a version that was trained with another image set, which may contain the evaluated images.
    """
    from flows.images.image_set import Chosen, open_images

    versions = [version for model in models if model and (version := project().version(model))]
    if versions and not layout.IMAGES.exists():
        from flows.registry.fetching import fetch_images

        images = fetch_images(project().repository, versions[-1])
    else:
        images = open_images(layout.IMAGES)
    for version in versions:
        if version.metrics.data_sha256 not in (None, images.data_sha256):
            log.warning("%s was trained with other images than %s, and may have seen these", version.name, images.name)
    return Chosen(images, split, most)
