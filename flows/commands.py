"""The commands of vdmctl, one function each: it parses, calls a stage, and prints.

Nothing heavy is imported before a command needs it.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.arguments import Commands
from flows.ending import finish
from flows.errors import Exit, UserError
from flows.registry_commands import commands, images_for, model_folder
from flows.serve import serve
from flows.streams import say, say_json
from flows.summary import show, summary
from vdm.files import read_bounded, written_last

if TYPE_CHECKING:
    from flows.params import Params

IMAGES = Path("data/images")
VALIDATION = Path("reports/validation/validation.json")
DATA_DOCS = Path("reports/validation/data_docs")
PICTURE = Path("reports/validation/validation.png")
TRAINED = Path("models/trained")
CURVES = Path("reports/training/curves.csv")
REGISTERED = Path("models/vdm")
CARD = REGISTERED / "README.md"
EVALUATION = Path("reports/evaluation")
SAMPLES = Path("reports/samples/samples.png")
RUNS = Path(".vdm/runs")
DOWNLOADS = Path(".vdm/downloads")
PARAMS = Path("params.yaml")
PRESETS = Path("presets")

IMAGES_HELP = "The image set; its test images are evaluated. Without data/images, a version's own."


class Protocol(StrEnum):
    """How a likelihood is computed."""

    VLB = "vlb"
    ODE = "ode"


class ImportFormat(StrEnum):
    """Whose checkpoint."""

    GOOGLE = "google-vdm"
    ADDTT = "addtt"


app = typer.Typer(
    cls=Commands,
    help="Train, evaluate and ship a Variational Diffusion Model.\n\n"
    "Parameters come from params.yaml in the current folder; `vdmctl preset NAME` writes one. "
    "`dvc repro` runs the stages below in order, and only those whose inputs changed.\n\n"
    "Exit codes: 0 done, 1 a bug, or training that cannot go on (a full disk, a process that keeps dying), "
    "2 usage or parameters, 3 the challenger was not promoted, 4 invalid data, "
    "5 a missing or damaged file, model or version, or one that cannot be written (a full disk), 6 busy, "
    "75 stopped (Ctrl-C, SIGTERM), to be run again.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(commands)


@app.command()
def download() -> None:
    """Fetch or read the image set of `data:` and check its checksums -> data/images."""
    from flows.stages.download import download

    download(params().data, out=IMAGES, downloads=DOWNLOADS)


@app.command()
def validate(
    path: Annotated[Path | None, typer.Argument(help="Other images: a set or a folder.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Images or a validation.json to compare with.")] = None,
    out: Annotated[Path | None, typer.Option(help="With PATH: folder for the report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Check that the images are what a likelihood needs, with `contract:` -> reports/validation.

    With PATH, read with the transforms of `data:`, nothing is written unless --out names a folder.
    """
    read = params()
    from flows.stages.validate import require_success, validate

    if path is None:
        if out or as_json:
            raise UserError("--out and --json need PATH", Exit.USAGE)
        outs = {"out": VALIDATION, "data_docs": DATA_DOCS, "picture": PICTURE}
        validate(read.contract, images=IMAGES, reference=reference, **outs)
        return
    from flows.inspecting import inspect_path

    report = inspect_path(read.data, read.contract, path=path, out=out, reference=reference)
    if as_json:
        say_json(report)
    require_success(report, path, out / "data_docs" if out else None)


@app.command()
def train() -> None:
    """Train a model with `model:` and `train:` -> models/trained, reports/training."""
    read = params()
    from flows.stages.train import train

    train(read.model, read.train, images=IMAGES, validation=VALIDATION, out=TRAINED, curves=CURVES, runs=RUNS)


@app.command()
def register() -> None:
    """Freeze the trained model with its model card -> models/vdm."""
    read = params()
    from flows.stages.register import register

    register(read.data, read.model, read.train, trained=TRAINED, curves=CURVES, images=IMAGES, out=REGISTERED)


@app.command()
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="A model folder, a version (vdm@v1.2.0) or `champion`.", show_default="models/vdm"),
    ] = None,
    images: Annotated[Path | None, typer.Option(help=IMAGES_HELP, show_default="data/images")] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="vlb: the variational bound; ode: the probability-flow ODE, with `ode:`.")
    ] = Protocol.VLB,
    times_per_image: Annotated[int | None, typer.Option(help="vlb: noise levels per image, stratified.")] = None,
    num_timesteps: Annotated[
        str | None, typer.Option(help="vlb: steps T, or `continuous`; several, with commas, are a sweep.")
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="ode: so many of the test images.")] = None,
    num_draws: Annotated[int | None, typer.Option(help="ode: dequantisation draws per image.")] = None,
    num_probes: Annotated[int | None, typer.Option(help="ode: probes of the divergence; 0 is exact.")] = None,
    dequantisation: Annotated[str | None, typer.Option(help="ode: uniform or truncated_normal.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of times and noise.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    out: Annotated[Path | None, typer.Option(help="vlb: folder for metrics.json and per_image.csv.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Bits/dim of every test image, with `evaluate:` -> reports/evaluation.

    With MODEL nothing is written unless --out names a folder. Options take the place of parameters; one that the
    protocol does not have is an error.
    """
    from flows.params import override, timesteps

    read, folder = params(), model_folder(model) if model else REGISTERED
    if model is None and not folder.is_dir():
        raise UserError(f"{folder}: no model yet; `dvc repro` trains one", Exit.MISSING)
    images = images or images_for(model)
    given: dict[str, Any] = {"times_per_image": times_per_image, "num_images": num_images, "num_draws": num_draws}
    given |= {"num_probes": num_probes, "dequantisation": dequantisation, "seed": seed, "device": device}
    given = {key: value for key, value in given.items() if value is not None}
    if protocol is Protocol.ODE:
        if num_timesteps or out:
            raise UserError("--num-timesteps and --out belong to --protocol vlb", Exit.USAGE)
        from flows.protocols import ode

        show(ode(override(read.ode, given), model=folder, images=images), as_json)
        return
    steps = timesteps(num_timesteps) if num_timesteps else [read.evaluate.num_timesteps]
    if len(steps) > 1 and (out or model is None):
        raise UserError("a sweep of --num-timesteps needs MODEL, and has no --out", Exit.USAGE)
    settings = [override(read.evaluate, given | {"num_timesteps": step}) for step in steps]
    from flows.stages.evaluate import evaluate

    default_out = EVALUATION if model is None else None
    results = [evaluate(setting, model=folder, images=images, out=out or default_out) for setting in settings]
    show(results[0] if len(results) == 1 else {"protocol": "vlb", "sweep": results}, as_json)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A model folder, a version (vdm@v1.2.0) or `champion`.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    images: Annotated[Path | None, typer.Option(help=IMAGES_HELP, show_default="data/images")] = None,
    confidence: Annotated[float, typer.Option(help="Of the interval, between 0 and 1.")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """The difference SECOND - FIRST in bits/dim, image by image under the same times and noise, with `evaluate:`."""
    if not 0 < confidence < 1:
        raise UserError(f"--confidence must lie between 0 and 1, got {confidence}", Exit.USAGE)
    settings = params().evaluate
    from flows.protocols import compare

    folders = {"first": model_folder(first), "second": model_folder(second)}
    show(compare(settings, **folders, images=images or images_for(second), confidence=confidence), as_json)


@app.command()
def sample() -> None:
    """Draw a grid of samples with `sample:` -> reports/samples/samples.png."""
    read = params()
    from flows.stages.sample import sample

    sample(read.sample, model=REGISTERED, out=SAMPLES)


@app.command()
def report() -> None:
    """Print the metrics of the last `dvc repro` and where its pictures are."""
    from flows.documents import Evaluated, read

    say(summary({"protocol": "vlb"} | read(Evaluated, EVALUATION / "metrics.json", "run `dvc repro`").model_dump()))
    for title, path, shown, stage in (
        ("samples", SAMPLES, SAMPLES, "sample"),
        ("model card", CARD, CARD, "register"),
        ("validation", DATA_DOCS / "index.html", DATA_DOCS / "index.html", "validate"),
        ("curves", CURVES, "dvc plots show", "train"),
    ):
        say(f"{title}: {shown if path.is_file() else f'{path} is missing; `dvc repro {stage}` makes it'}")


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="The other implementation's checkpoint.")],
    file_format: Annotated[
        ImportFormat, typer.Option("--format", help="google-vdm: flax msgpack; addtt: model.pt beside config.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    image_size: Annotated[tuple[int, int], typer.Option(help="Height and width, which weights do not tell.")] = (
        32,
        32,
    ),
    num_levels: Annotated[int, typer.Option(help="Levels of a pixel.", min=2, max=65536)] = 256,
    averaged: Annotated[bool, typer.Option(help="Take the moving average of the weights.")] = True,
    sha256: Annotated[str | None, typer.Option(help="What the file must be; flax has no checksum of its own.")] = None,
) -> None:
    """Turn another implementation's checkpoint into a model folder for `vdmctl evaluate`."""
    from flows.importing import import_checkpoint

    options: dict[str, Any] = {"out": out, "image_size": image_size, "num_levels": num_levels}
    options |= {"averaged": averaged, "sha256": sha256}
    import_checkpoint(file, file_format.value, **options)


@app.command()
def preset(
    name: Annotated[str, typer.Argument(help="A file in presets/, without .yaml.")],
    force: Annotated[bool, typer.Option(help="Overwrite a params.yaml that is not itself a preset.")] = False,
) -> None:
    """Write params.yaml from presets/NAME.yaml."""
    presets = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if name not in presets:
        raise UserError(f"no preset {name!r}: {', '.join(presets) or f'{PRESETS}/ holds none'}", Exit.USAGE)
    unchanged = not PARAMS.exists() or any(read_bounded(PARAMS) == path.read_bytes() for path in presets.values())
    if not unchanged and not force:
        raise UserError(f"{PARAMS} has changes that no preset holds; --force overwrites them", Exit.USAGE)
    with written_last(PARAMS, presets[name].read_bytes()):
        finish()


app.command()(serve)


def params() -> "Params":
    """params.yaml of the current folder."""
    from flows.params import read_params

    return read_params(PARAMS)
