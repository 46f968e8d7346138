"""Commands of the pipeline: the stages up to `register`, the report, and the presets."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import ROOT, AsJson, parameters
from flows.core import layout
from flows.core.errors import Exit, UserError, brief
from flows.core.files import read_bounded, written_last
from flows.core.folders import contains
from flows.process.ending import finish
from flows.process.streams import say, say_json, say_on_stderr

if TYPE_CHECKING:
    from flows.registry.reproduction import Reproduction

commands = typer.Typer()


def kept(folder: Path) -> Path:
    """Return `folder`; in the copy that DVC makes for an experiment, and deletes, return the project's own one."""
    project, copy, _ = str(Path.cwd()).partition("/.dvc/tmp/exps/")
    return Path(project, folder) if copy else folder


@commands.command()
def download() -> None:
    """Download or read the image set that `data:` names, check its checksums, and write data/images."""
    from flows.stages.download import download

    download(parameters().data, out=layout.IMAGES, downloads=kept(layout.DOWNLOADS))


@commands.command()
def validate(
    path: Annotated[
        Path | None, typer.Argument(help="An image set or a folder of images to check instead of data/images.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="An image set or a validation.json to measure drift from.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With PATH: folder for the report; without it no report is written.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the images against the limits in `contract:`, and write reports/validation.

    A folder of images at PATH is read with the transforms of `data:`, an image set as it is. Nothing is written unless
    --out names a folder.
    """
    params = parameters()
    from flows.stages.validate import validate
    from flows.validation.inspection import require_success
    from flows.validation.report import REPORT

    if path is None:
        if out or as_json:
            raise UserError("--out and --json need PATH", Exit.USAGE)
        if reference and contains(layout.VALIDATION, reference / REPORT if reference.is_dir() else reference):
            command = shlex.join(["vdmctl", "validate", str(layout.IMAGES), "--reference", str(reference)])
            advice = f"`{command}` compares and writes nothing"
            raise UserError(f"the report would replace --reference {reference}; {advice}", Exit.USAGE)
        validate(params.contract, images=layout.IMAGES, out=layout.VALIDATION.parent, reference=reference)
        return
    from flows.commands.inspecting import inspect_path

    report = inspect_path(params.data, params.contract, path=path, out=out, reference=reference)
    if as_json:
        say_json(report.model_dump())
    require_success(report, path, out)


@commands.command()
def train() -> None:
    """Train a model with the parameters `model:` and `train:`; write models/trained and reports/training."""
    params = parameters()
    from flows.stages.train import train

    train(
        params.model,
        params.train,
        images=layout.IMAGES,
        validation=layout.VALIDATION,
        out=layout.TRAINED,
        curves=layout.CURVES,
        runs=kept(layout.STATES),
    )


@commands.command()
def register() -> None:
    """Write models/vdm: the trained model with its model card."""
    params = parameters()
    from flows.core.checkpoint import model_sha256
    from flows.stages.register import register
    from flows.training.runs import forget

    register(
        params.data,
        params.model,
        params.train,
        trained=layout.TRAINED,
        curves=layout.CURVES,
        images=layout.IMAGES,
        out=layout.REGISTERED,
    )
    forget(kept(layout.STATES), model_sha256(layout.REGISTERED))


@commands.command()
def report(
    first: Annotated[
        str | None,
        typer.Argument(
            help="With --out: a model folder, a version (vdm@v1.2.0) or `champion`.", show_default="the workspace"
        ),
    ] = None,
    second: Annotated[str | None, typer.Argument(help="With --out: another model, to compare it with.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file to write. reports/report.html without a model is the stage's output."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the metrics of the last `dvc repro` and whether its outputs equal the commit's; with --out, write a page.

    The page has all results of the last run, of a version, or of two models side by side, and needs no network, no
    script and no other file. The stage `report` writes reports/report.html.
    """
    if out is not None and as_json:
        raise UserError("--json prints the metrics, and belongs to `vdmctl report` without --out", Exit.USAGE)
    if out is not None:
        from flows.commands.reporting import write_page

        write_page([model for model in (first, second) if model], out, force=force)
        say(f"report: {out}")
    elif first or force:
        raise UserError("a model and --force need --out FILE", Exit.USAGE)
    else:
        print_results(as_json)


def print_results(as_json: bool) -> None:
    """Print the metrics, the paths of pictures, and whether the outputs equal the commit's.  Raises UserError."""
    from flows.commands.summary import summary
    from flows.core.documents import read
    from flows.evaluation.results import BoundMetrics

    metrics = read(BoundMetrics, layout.METRICS, "run `dvc repro`")
    compared = compared_with_commit()
    if as_json:
        say_json({"metrics": metrics.model_dump(), "reproduction": compared._asdict() if compared else None})
        return
    say(summary(metrics))
    outdated = compared.outdated_stages if compared else []
    docs = layout.DATA_DOCS / "index.html"
    for title, path, stage in (
        ("report", layout.PAGE, "report"),
        ("samples", layout.SAMPLES, "sample"),
        ("model card", layout.CARD, "register"),
        ("validation", docs if docs.is_file() else layout.VALIDATION, "validate"),
        ("curves", layout.CURVES, "train"),
    ):
        if not path.is_file():
            found = f"{path} is missing; `dvc repro {stage}` makes it"
        elif stage in outdated:
            found = f"{path} is older than its inputs; `dvc repro {stage}` makes it again"
        else:
            found = "`dvc plots show` draws them" if path == layout.CURVES else str(path)
        say(f"{title}: {found}")
    if compared:
        say(compared.line)


def compared_with_commit() -> "Reproduction | None":
    """Return how the outputs differ from the commit's.  If that is unknown, print why on stderr and return None."""
    from dvc.exceptions import DvcException

    from flows.registry.reproduction import reproduction

    try:
        return reproduction(ROOT)
    except (DvcException, OSError, UserError) as error:
        say_on_stderr(f"the outputs are not compared with those of a commit: {brief(error)}")
    return None


@commands.command()
def preset(
    name: Annotated[str, typer.Argument(help="The name of a file in presets/ without .yaml, such as digits.")],
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a params.yaml that differs from every preset.")
    ] = False,
) -> None:
    """Write params.yaml from presets/NAME.yaml."""
    presets = {path.stem: path for path in sorted(layout.PRESETS.glob("*.yaml"))}
    if name not in presets:
        listed = ", ".join(presets) or f"no files in {layout.PRESETS}/; run vdmctl in the project's folder"
        raise UserError(f"no preset {name!r}: {listed}", Exit.USAGE)
    known = [path.read_bytes() for path in presets.values()]
    if not force and layout.PARAMS.exists() and read_bounded(layout.PARAMS) not in known:
        raise UserError(f"{layout.PARAMS} differs from every preset; --force overwrites it", Exit.USAGE)
    with written_last(layout.PARAMS, presets[name].read_bytes()):
        finish()
    say(f"{layout.PARAMS}: the preset {name}; `dvc repro` runs the pipeline with it")
