"""vdmctl: one command per stage of the pipeline.  It parses, calls the stage, and translates errors.

Nothing heavy is imported before a command needs it.
"""

import json
import logging
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.errors import Exit, UserError

if TYPE_CHECKING:
    from flows.params import Params

IMAGES = Path("data/images")
VALIDATION = Path("reports/validation/validation.json")
DATA_DOCS = Path("reports/validation/data_docs")
TRAINED = Path("models/trained")
CURVES = Path("reports/training/curves.csv")
REGISTERED = Path("models/vdm")
EVALUATION = Path("reports/evaluation")
SAMPLES = Path("reports/samples/samples.png")
PARAMS = Path("params.yaml")
PRESETS = Path("presets")


class ImportFormat(StrEnum):
    """Whose checkpoint."""

    GOOGLE = "google-vdm"
    ADDTT = "addtt"


app = typer.Typer(
    help="Train, evaluate and ship a Variational Diffusion Model.\n\n"
    "Parameters come from params.yaml in the current folder; `vdmctl preset NAME` writes one. "
    "`dvc repro` runs the stages below in order, and only those whose inputs changed.\n\n"
    "Exit codes: 0 done, 1 a bug, 2 usage or parameters, 4 invalid data, 5 a missing or damaged file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def download() -> None:
    """Fetch or read the image set of `data:` and check its checksums -> data/images."""
    from flows.stages.download import download

    download(params().data, out=IMAGES)


@app.command()
def validate() -> None:
    """Check that the images are what a likelihood needs -> reports/validation."""
    from flows.stages.validate import validate

    validate(images=IMAGES, out=VALIDATION, data_docs=DATA_DOCS)


@app.command()
def train() -> None:
    """Train a model with `model:` and `train:` -> models/trained, reports/training."""
    read = params()
    from flows.stages.train import train

    train(read.model, read.train, images=IMAGES, validation=VALIDATION, out=TRAINED, curves=CURVES)


@app.command()
def register() -> None:
    """Freeze the trained model with its model card -> models/vdm."""
    read = params()
    from flows.stages.register import register

    register(read.data, read.model, read.train, trained=TRAINED, curves=CURVES, images=IMAGES, out=REGISTERED)


@app.command()
def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(help="A folder with weights.safetensors and config.json.", show_default="models/vdm"),
    ] = None,
    images: Annotated[Path, typer.Option(help="The image set; its test images are evaluated.")] = IMAGES,
    times_per_image: Annotated[int | None, typer.Option(help="Noise levels per image, stratified.", min=1)] = None,
    num_timesteps: Annotated[
        int | None, typer.Option(help="Evaluate the T-step model; 0 is continuous time.", min=0)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of times and noise.", min=0)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and per_image.csv.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Bits/dim of every test image, with `evaluate:` -> reports/evaluation.

    With MODEL nothing is written unless --out names a folder. Options take the place of parameters.
    """
    read = params()
    from flows.stages.evaluate import evaluate

    given = {"times_per_image": times_per_image, "num_timesteps": num_timesteps, "seed": seed, "device": device}
    settings = override(read.evaluate, **{key: value for key, value in given.items() if value is not None})
    default_out = EVALUATION if model is None else None
    metrics = evaluate(settings, model=model or REGISTERED, images=images, out=out or default_out)
    print(json.dumps(metrics, indent=2) if as_json else summary(metrics))


@app.command()
def sample() -> None:
    """Draw a grid of samples with `sample:` -> reports/samples/samples.png."""
    read = params()
    from flows.stages.sample import sample

    sample(read.sample, model=REGISTERED, out=SAMPLES)


@app.command()
def report() -> None:
    """Print the metrics of the last `dvc repro` and where its pictures are."""
    try:
        metrics = json.loads((EVALUATION / "metrics.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{EVALUATION / 'metrics.json'}: {error}; run `dvc repro`", Exit.MISSING) from error
    print(summary(metrics))
    for title, path in (
        ("samples", SAMPLES),
        ("model card", REGISTERED / "README.md"),
        ("validation", DATA_DOCS / "index.html"),
    ):
        print(f"{title}: {path}")
    print("curves: dvc plots show")


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
    num_levels: Annotated[int, typer.Option(help="Levels of a pixel.", min=2)] = 256,
    averaged: Annotated[bool, typer.Option(help="Take the moving average of the weights.")] = True,
) -> None:
    """Turn another implementation's checkpoint into a model folder for `vdmctl evaluate`."""
    from flows.importing import import_checkpoint

    import_checkpoint(file, file_format.value, out=out, image_size=image_size, num_levels=num_levels, averaged=averaged)


@app.command()
def preset(
    name: Annotated[str, typer.Argument(help="A file in presets/, without .yaml.")],
    force: Annotated[bool, typer.Option(help="Overwrite a params.yaml that is not itself a preset.")] = False,
) -> None:
    """Write params.yaml from presets/NAME.yaml."""
    presets = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if name not in presets:
        raise UserError(f"no preset {name!r}: {', '.join(presets) or f'{PRESETS}/ holds none'}", Exit.USAGE)
    unchanged = not PARAMS.exists() or any(PARAMS.read_bytes() == path.read_bytes() for path in presets.values())
    if not unchanged and not force:
        raise UserError(f"{PARAMS} has changes that no preset holds; --force overwrites them", Exit.USAGE)
    shutil.copyfile(presets[name], PARAMS)


def params() -> "Params":
    """params.yaml of the current folder."""
    from flows.params import read_params

    return read_params(PARAMS)


def override(section: Any, **values: Any) -> Any:
    """The section with values from the command line, checked as in params.yaml."""
    from pydantic import ValidationError

    if values.get("num_timesteps") == 0:
        values["num_timesteps"] = None
    try:
        return type(section).model_validate(section.model_dump() | values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UserError(f"{option}: {first['msg']}, got {first['input']!r}", Exit.USAGE) from error


def summary(metrics: dict[str, Any]) -> str:
    """The metrics for people."""
    error = metrics["bpd_standard_error"]
    steps = "continuous time" if metrics["num_timesteps"] is None else f"{metrics['num_timesteps']} steps"
    return (
        f"{metrics['bpd']:.4f}{'' if error is None else f' +- {error:.4f}'} bits/dim"
        f" = {metrics['prior_bpd']:.4f} prior + {metrics['reconstruction_bpd']:.4f} reconstruction"
        f" + {metrics['diffusion_bpd']:.4f} diffusion\n"
        f"{metrics['num_images']} images, {metrics['times_per_image']} times each, {steps}"
    )


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run vdmctl and return its exit code: a user's error is one line on stderr, a bug keeps its traceback."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("flows").setLevel(logging.INFO)
    try:
        app(arguments)
    except SystemExit as finished:
        return int(finished.code or 0)
    except UserError as error:
        return fail(str(error), error.code)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        return fail(str(error), code)
    return Exit.DONE


def exit_code(error: Exception) -> Exit | None:
    """The exit code of an error that `vdm` raises; None for a bug.

    Looked up in the modules that are loaded: an error of a module that is not cannot have been raised.
    """
    codes = {
        ("vdm.images", "ImageSetError"): Exit.MISSING,
        ("vdm.checkpoint", "CheckpointError"): Exit.MISSING,
        ("vdm.training", "TrainingDiverged"): Exit.USAGE,
    }
    return codes.get((type(error).__module__, type(error).__name__))


def fail(message: str, code: Exit) -> Exit:
    """Say why in one line on stderr; returns the code."""
    print(f"vdmctl: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
