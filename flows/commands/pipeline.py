"""Commands of the pipeline: the stages up to `register`, the report, and the presets."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import MODEL_HELP, AsJson, ForceOption, project
from flows.core import layout
from flows.core.errors import Exit, UserError, brief
from flows.core.escaping import visible
from flows.core.files import replace_file, scratch_folder, write_whole
from flows.process.inputs import content
from flows.process.streams import say, say_json, say_on_stderr, say_result

if TYPE_CHECKING:
    from flows.core.model import TrainedModel

commands = typer.Typer()
log = logging.getLogger(__name__)

SIGNED = "# `vdmctl preset` wrote the lines above, and writes others over them while their sha256 is "
"""What the last line of a params.yaml for a folder of images says, before the digest."""


def outside_experiment(folder: Path) -> Path:
    """Return `folder`; in the copy that DVC makes for an experiment, and deletes, return the project's own one."""
    project, copy, _ = str(Path.cwd()).partition("/.dvc/tmp/exps/")
    return Path(project, folder) if copy else folder


@commands.command()
def download() -> None:
    """Download or read the image set that `data:` names, check its checksums, and write data/images."""
    from flows.images.download import download

    download(project().params.data, out=layout.IMAGES, downloads=outside_experiment(layout.DOWNLOADS))


@commands.command()
def validate(
    path: Annotated[
        Path | None, typer.Argument(help="A set or a folder of images to check instead of data/images.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="A set or a findings.json to measure drift from.")] = None,
    out: Annotated[Path | None, typer.Option(help="With PATH: folder for the report, if one is to be written.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the images against the limits in `contract:`, and write reports/contract.

    A folder of images at PATH is read with the transforms of `data:`, an image set as it is. Nothing is written unless
    --out names a folder.
    """
    if path is not None:
        validate_path(path, reference, out, as_json)
    elif out or as_json:
        raise UserError("--out and --json need PATH", Exit.USAGE)
    else:
        run_validate(reference)


def run_validate(reference: Path | None) -> None:
    """Run the stage, which replaces its output.  Raises UserError (exit 4) for images that the contract refuses."""
    from flows.contract.drift import read_reference
    from flows.contract.inspection import validate
    from flows.images.image_set import open_images

    images, expected = open_images(layout.IMAGES), read_reference(reference) if reference else None
    validate(project().params.contract, images=images, out=layout.FINDINGS.parent, reference=expected)


def validate_path(path: Path, reference: Path | None, out: Path | None, as_json: bool) -> None:
    """Check a set or a folder of images, and write the report into `out`, if it is given.

    Raises UserError: exit 4 for images that the contract refuses, 2 for an `out` that would replace what is needed.
    """
    from flows.contract.drift import read_reference
    from flows.contract.inspection import inspect_images, require_success, write_findings
    from flows.images.download import write_images
    from flows.images.image_set import is_image_set, open_images

    params = project().params
    if out:
        require_apart(out, path, reference)
        out.mkdir(parents=True, exist_ok=True)  # fails before the images are read
    profile = read_reference(reference) if reference else None  # fails before the images are read
    with scratch_folder() as scratch:
        folder = path if is_image_set(path) else scratch / "images"
        if folder != path:
            data = params.data.model_copy(update={"name": "image_folder"})
            origin = write_images(data, source=path, out=folder, downloads=scratch)
            log.info("%s: transforms: %s", visible(str(path)), origin["transforms"])
        inspection = inspect_images(params.contract, open_images(folder, str(path)), profile)
        if out:
            write_findings(inspection, out)
    if as_json:
        say_json(inspection.findings.model_dump(exclude_unset=True))
    require_success(inspection.findings, str(path), out)


def require_apart(out: Path, path: Path, reference: Path | None) -> None:
    """Raise UserError (exit 2) if a report in the folder `out` would be among the images, or replace what is needed."""
    from flows.core.files import contains
    from flows.repository.lock_file import require_no_outputs

    require_no_outputs(project().repository, out)
    if contains(path, out):
        raise UserError(f"--out {out} lies in {path}, whose pictures are images of the set", Exit.USAGE)
    if reference and contains(out, reference):
        raise UserError(f"--out {out} would replace --reference {reference}; choose another --out", Exit.USAGE)


@commands.command()
def train() -> None:
    """Train a model with the parameters `model:` and `train:`; write models/trained and reports/training."""
    params = project().params
    from flows.images.image_set import open_images
    from flows.training.fitting import train

    paths = {"out": layout.TRAINED, "curves": layout.CURVES, "trainings": outside_experiment(layout.TRAININGS)}
    checked, start = project().verdict, model_to_start_from(params.train.start_from)
    train(params.model, params.train, open_images(layout.IMAGES), checked, **paths, start=start)


def model_to_start_from(name: str | None) -> "TrainedModel | None":
    """Return the model that `train.start_from` names; None for null.

    Raises UserError: exit 2 for an output of the pipeline, and for the champion, which is another one tomorrow; 5 for a
    model or a version that is missing or damaged.
    """
    if name is None:
        return None
    from flows.core.params import CHAMPION
    from flows.repository.lock_file import output_at

    where = "train.start_from"
    if "#" in name or name == CHAMPION:
        advice = "`champion` is for runs of `vdmctl serve`; name a version, as `vdmctl models` lists them"
        raise UserError(f"{where}: {name}: {advice}", Exit.USAGE)
    try:
        version = project().version(name)
        if not version and (output := output_at(project().repository, Path(name))):
            reason = f"{output} is an output of the pipeline, which training replaces"
            raise UserError(f"{name}: {reason}; name a version or a copy", Exit.USAGE)
        return project().model(version.name if version else name)
    except UserError as error:
        raise type(error)(f"{where}: {error}", error.code) from error


@commands.command()
def register() -> None:
    """Register the trained model, with its card, as models/vdm: of this artifact `gto register vdm` makes versions."""
    params = project().params
    from flows.core.model import open_model
    from flows.images.image_set import open_images
    from flows.training.registering import register
    from flows.training.states import forget

    sections = params.data, params.model, params.train
    trained = open_model(layout.TRAINED)
    register(
        *sections, trained, open_images(layout.IMAGES), project().verdict, curves=layout.CURVES, out=layout.REGISTERED
    )
    forget(outside_experiment(layout.TRAININGS), trained.sha256)


@commands.command()
def report(
    first: Annotated[str | None, typer.Argument(help=f"With --out: {MODEL_HELP}", show_default="the workspace")] = None,
    second: Annotated[str | None, typer.Argument(help="With --out: another model, to compare it with.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file to write; the stage's is reports/report.html.")
    ] = None,
    force: ForceOption = False,
    as_json: AsJson = False,
) -> None:
    """Print the metrics of the last `dvc repro` and whether its outputs equal the commit's; with --out, write a page.

    The page has all results of the last run, of a version, or of two models side by side, and needs no network, no
    script and no other file. The stage `report` writes reports/report.html. A model folder that is copied elsewhere
    takes its results along if it holds them as reports/ does: `cp -r reports/. FOLDER`.
    """
    if out is None:
        if first or force:
            raise UserError("a model and --force need --out FILE", Exit.USAGE)
        print_results(as_json)
        return
    if as_json:
        raise UserError("--json prints the metrics, and belongs to `vdmctl report` without --out", Exit.USAGE)
    models = [model for model in (first, second) if model]
    if not models and out == layout.PAGE:
        run_report()
    else:
        write_page(models, out, force=force)
    say(f"report: {out}")


def run_report() -> None:
    """Run the stage, which replaces its output and its charts."""
    from flows.dossier.places import Outputs
    from flows.report.page import report

    here = project()
    report(Outputs(here.folder, lambda: here.shown_params), out=layout.PAGE, pictures=layout.PICTURES)


def write_page(models: list[str], out: Path, *, force: bool) -> None:
    """Write the page about the project's outputs, about one model, or about two.

    Raises UserError: exit 2 if the file exists and `force` is not set, or if it lies in an output of the pipeline, 5 if
    results are missing or damaged; OSError that names `out`.
    """
    from flows.dossier.opening import open_dossier
    from flows.report.page import page
    from flows.repository.lock_file import require_no_outputs

    require_no_outputs(project().repository, out)
    if out.exists() and not force:
        raise UserError(f"{out} exists; --force overwrites it", Exit.USAGE)
    found = [open_dossier(project(), name) for name in models] or [open_dossier(project())]
    write_whole(out, page(*found).html)


def print_results(as_json: bool) -> None:
    """Print the metrics, where the results are, and whether the outputs equal the commit's.  Raises UserError.

    If the outputs cannot be compared with a commit, print why on stderr.
    """
    from flows.commands.summary import summary
    from flows.core.documents import read_document
    from flows.evaluation.results import BoundMetrics
    from flows.registry.verification import reproduction

    metrics = read_document(BoundMetrics, layout.METRICS, "run `dvc repro`")
    compared = None
    try:
        compared = reproduction(project().repository)
    except (OSError, UserError) as error:
        say_on_stderr(f"the outputs are not compared with those of a commit: {brief(error)}")
    lines = [summary(metrics)]
    docs = layout.DATA_DOCS / "index.html"  # which a stage that was restored does not write
    for title, path, stage in (
        ("report", layout.PAGE, "report"),
        ("samples", layout.SAMPLES, "sample"),
        ("model card", layout.CARD, "register"),
        ("contract", docs if docs.is_file() else layout.FINDINGS, "validate"),
        ("curves", layout.CURVES, "train"),
    ):
        state = ""
        if not path.is_file():
            state = f" is missing; `dvc repro {stage}` makes it"
        elif compared and stage in compared.outdated_stages:
            state = f" is older than its inputs; `dvc repro {stage}` makes it again"
        lines.append(f"{title}: {path}{state}")
    if compared:
        lines.append(compared.line)
    found = {"metrics": metrics.model_dump(), "reproduction": compared._asdict() if compared else None}
    say_result(found, "\n".join(lines), as_json)


@commands.command()
def preset(
    name: Annotated[
        str | None, typer.Argument(help="The name of a file in presets/ without .yaml, such as digits.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Your images: a folder, a zip or Parquet of pictures, or an .npy file.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="With --images: minutes of training on this machine, as busy as it is now. The other stages take "
            "about as long again, and a minute or two more to start and to train the features.",
            show_default="10",
        ),
    ] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="With --images: a model that is named the class, a folder for each.")
    ] = False,
    start_from: Annotated[
        str | None, typer.Option(help="With --images, instead of NAME: a model folder or a version to continue from.")
    ] = None,
    without_copies: Annotated[
        bool, typer.Option("--without-copies", help="With --images: leave out images that equal another one.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a params.yaml that somebody edited.")] = False,
) -> None:
    """Write params.yaml for a preset: presets/digits.yaml with the values that presets/NAME.yaml names.

    With --images, the values suit a folder of images and so many minutes of training: training steps are measured,
    transparency gets a background, and photographs, or images of several sizes, are cropped and resized. Each value
    that differs from the preset has its reason. What `validate` would refuse is found before steps are measured: a
    limit that accepts it is written with a warning, or the command says what to do. With --start-from, training
    continues from a model: its network and its transforms are taken, and learning rate and steps suit continuing.
    """
    from flows.core.params_file import WHOLE, preset_names, read_preset

    named = {"--classes": classes, "--minutes": minutes is not None, "--start-from": start_from is not None}
    named["--without-copies"] = without_copies
    for option, is_named in named.items():
        if images is None and is_named:
            raise UserError(f"{option} needs --images FOLDER", Exit.USAGE)
    if name is None and start_from is None:
        raise UserError(f"name a preset: {', '.join(preset_names())}", Exit.USAGE)
    if name is not None and start_from is not None:
        raise UserError("--start-from takes the place of a preset; name one of the two", Exit.USAGE)
    if classes and start_from is not None:
        raise UserError("--start-from takes the classes of its model; leave out --classes", Exit.USAGE)
    name = name or WHOLE
    text = read_preset(name)
    present = content(layout.PARAMS)
    if not force and present is not None:
        before = present.decode(errors="replace")
        if before != sign(before) and all(read_preset(each) != before for each in preset_names()):
            reason = f"{layout.PARAMS} differs from every preset, and from what `vdmctl preset --images` wrote"
            raise UserError(f"{reason}; --force overwrites it", Exit.USAGE)
    with replace_file(layout.PARAMS) as file:  # a folder that cannot be written is reported before minutes of measuring
        if images is not None:
            from flows.training.planning import plan

            start = model_to_start_from(start_from)
            chosen = {"classes": classes, "without_copies": without_copies}
            text = sign(plan(name, images, 10 if minutes is None else minutes, start, **chosen))
        if content(layout.PARAMS) != present:
            raise UserError(f"{layout.PARAMS} changed meanwhile, so it stays as it is; run again", Exit.USAGE)
        file.write(text.encode())
    what = f"continuing from {start_from}" if start_from else f"the preset {name}"
    runs = "`dvc repro` runs the pipeline with it"
    if not layout.DVC_GRAPH.exists():
        stages = "`vdmctl download`, `validate`, `train`, `register` and `evaluate` run one after the other"
        runs = f"no {layout.DVC_GRAPH} is here, so {stages}; versions and runs need a clone of the project"
    say(f"{layout.PARAMS}: {what}; {runs}")


def sign(text: str) -> str:
    """Return the text of a params.yaml with its digest in the last line, in place of an earlier one."""
    text = text.partition(SIGNED)[0]
    return f"{text}{SIGNED}{hashlib.sha256(text.encode()).hexdigest()}\n"
