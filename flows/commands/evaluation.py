"""vdmctl's commands about likelihoods: evaluate a model, compare two, import another implementation's checkpoint.

Nothing heavy is imported before a command needs it.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.arguments import parameters
from flows.commands.registry import images_for, model_folder
from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.process.streams import say, say_json

if TYPE_CHECKING:
    from flows.core.params import Evaluate

commands = typer.Typer()

IMAGES_HELP = "The image set; its test images are evaluated. Without data/images, a version's own."


class Protocol(StrEnum):
    """How a likelihood is computed."""

    VLB = "vlb"
    ODE = "ode"


class ImportFormat(StrEnum):
    """Which implementation wrote a checkpoint."""

    GOOGLE = "google-vdm"
    ADDTT = "addtt"


@commands.command()
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
    num_images: Annotated[int | None, typer.Option(help="ode: how many of the test images.")] = None,
    num_draws: Annotated[int | None, typer.Option(help="ode: dequantisation draws per image.")] = None,
    num_probes: Annotated[int | None, typer.Option(help="ode: probes of the divergence; 0 is exact.")] = None,
    dequantisation: Annotated[str | None, typer.Option(help="ode: uniform or truncated_normal.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of times and noise.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    out: Annotated[Path | None, typer.Option(help="vlb: folder for metrics.json and per_image.csv.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Bits/dim of every test image, with `evaluate:` -> reports/evaluation.

    With MODEL nothing is written unless --out names a folder. Options replace parameters; an option
    that the protocol does not have is an error.
    """
    read, folder = parameters(), model_folder(model) if model else layout.REGISTERED
    if model is None and not folder.is_dir():
        raise UserError(f"{folder}: no model yet; `dvc repro` trains one", Exit.MISSING)
    options = {
        "times_per_image": times_per_image,
        "num_images": num_images,
        "num_draws": num_draws,
        "num_probes": num_probes,
        "dequantisation": dequantisation,
        "seed": seed,
        "device": device,
    }
    given = {name: value for name, value in options.items() if value is not None}
    images = images or images_for(model)
    if protocol is Protocol.VLB:
        out = out or (layout.EVALUATION if model is None else None)
        show_bound(read.evaluate, given, num_timesteps, model=folder, images=images, out=out, as_json=as_json)
        return
    if num_timesteps or out:
        raise UserError("--num-timesteps and --out belong to --protocol vlb", Exit.USAGE)
    from flows.commands.summary import show
    from flows.core.params import override
    from flows.evaluation.protocols import ode

    show(ode(override(read.ode, given), model=folder, images=images), as_json)


def show_bound(
    settings: "Evaluate",
    given: dict[str, Any],
    num_timesteps: str | None,
    *,
    model: Path,
    images: Path,
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate the bound with the options that were given, once for each number of steps, and print it.

    Raises UserError (exit 2) for several numbers of steps with an `out`, which has a place for one result.
    """
    from flows.commands.summary import show, summary
    from flows.core.params import override, timesteps
    from flows.evaluation.bound import measure
    from flows.stages.evaluate import evaluate

    steps = timesteps(num_timesteps) if num_timesteps else [settings.num_timesteps]
    sweep = [override(settings, given | {"num_timesteps": step}) for step in steps]
    arguments = {"model": model, "images": images, "requirements": layout.REQUIREMENTS}
    if len(sweep) == 1:
        result = evaluate(sweep[0], **arguments, out=out) if out else measure(sweep[0], **arguments)[0]
        show(result, as_json)
        return
    if out:
        raise UserError("a sweep of --num-timesteps needs MODEL, and has no --out", Exit.USAGE)
    results = [measure(each, **arguments)[0] for each in sweep]
    if as_json:
        say_json({"protocol": "vlb", "sweep": [result.model_dump() for result in results]})
    else:
        say("\n".join(map(summary, results)))


@commands.command()
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
    settings = parameters().evaluate
    from flows.commands.summary import show
    from flows.evaluation.protocols import compare

    folders = {"first": model_folder(first), "second": model_folder(second)}
    show(compare(settings, **folders, images=images or images_for(second), confidence=confidence), as_json)


@commands.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="The other implementation's checkpoint.")],
    file_format: Annotated[
        ImportFormat, typer.Option("--format", help="google-vdm: flax msgpack; addtt: model.pt beside config.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    image_size: Annotated[tuple[int, int], typer.Option(help="Height and width, which are not in the file.")] = (
        32,
        32,
    ),
    num_levels: Annotated[int, typer.Option(help="Levels of a pixel.", min=2, max=65536)] = 256,
    averaged: Annotated[bool, typer.Option(help="Take the moving average of the weights.")] = True,
    sha256: Annotated[str | None, typer.Option(help="The sha256 that FILE must have.")] = None,
) -> None:
    """Turn another implementation's checkpoint into a model folder for `vdmctl evaluate`."""
    from flows.evaluation.importing import import_checkpoint

    options: dict[str, Any] = {"out": out, "image_size": image_size, "num_levels": num_levels}
    options |= {"averaged": averaged, "sha256": sha256}
    import_checkpoint(file, file_format.value, **options)
