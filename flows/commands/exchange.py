"""Commands that exchange models with others: import another implementation's checkpoint, export to the Hub."""

import logging
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.arguments import ForceOption, ModelArgument, project
from flows.core.errors import Exit, UserError
from flows.process.streams import say

commands = typer.Typer()
log = logging.getLogger(__name__)

FORMAT_HELP = (
    "google-vdm: a flax msgpack file of a model with gamma_min -13.3 and gamma_max 5, which the file does not contain;"
    " addtt: model.pt, with config.yaml in the same folder."
)
SIZE_HELP = "The height and width of the images, which the file does not contain."


@commands.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="The checkpoint of the other implementation.")],
    file_format: Annotated[Literal["google-vdm", "addtt"], typer.Option("--format", help=FORMAT_HELP)],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    image_size: Annotated[tuple[int, int], typer.Option(metavar="HEIGHT WIDTH", help=SIZE_HELP)] = (32, 32),
    num_levels: Annotated[int, typer.Option(help="The number of levels of a pixel.", min=2, max=65536)] = 256,
    averaged: Annotated[bool, typer.Option(help="Import the moving average of the weights, not the last ones.")] = True,
    sha256: Annotated[str | None, typer.Option(help="The sha256 that FILE must have. [default: any]")] = None,
    force: ForceOption = False,
) -> None:
    """Convert another implementation's checkpoint to a model folder for `vdmctl evaluate`."""
    from flows.repository.lock_file import require_no_outputs

    require_no_outputs(project().repository, out)
    if out.exists() and not force:
        raise UserError(f"{out} exists; name another folder, or replace it with --force", Exit.USAGE)
    if min(image_size) < 1:
        raise UserError("--image-size must be two numbers from 1: height and width", Exit.USAGE)
    from flows.exchange.importing import import_checkpoint

    import_checkpoint(
        file, file_format, out=out, image_size=image_size, num_levels=num_levels, averaged=averaged, sha256=sha256
    )
    say(f"{out}: the model of {file}; `vdmctl evaluate {shlex.quote(str(out))}` measures its bits/dim")


LICENCE_HELP = (
    "The Hub's name of the licence that you give the model, as in cc-by-4.0."
    " [default: that of its images if the Hub has it, else unknown]"
)


@commands.command()
def export(
    model: ModelArgument = None,
    *,
    out: Annotated[Path, typer.Option(help="The folder to write. Its name is that of the model on the Hub.")],
    layout_of: Annotated[Literal["hub"], typer.Option("--format", help="hub: that of Hugging Face's Hub.")] = "hub",
    licence: Annotated[str | None, typer.Option("--licence", "--license", help=LICENCE_HELP)] = None,
) -> None:
    """Write MODEL as a folder for the Hugging Face Hub: weights, config.json, and a card with figures and metadata.

    Nothing is uploaded: the command that does it is printed. `flows.api.load` and each command that takes a MODEL read
    the folder, and its digests are those of MODEL.
    """
    if out.exists():
        raise UserError(f"{out} exists; name another folder, or remove it first", Exit.USAGE)
    from flows.dossier.calibration import calibration_of, error_curve_of
    from flows.dossier.opening import dossier_of
    from flows.exchange.exporting import export
    from flows.repository.lock_file import require_no_outputs

    require_no_outputs(project().repository, out)
    exported = project().model(model)
    known, calibration = dossier_of(project(), exported), None
    metrics = known.figures
    with suppress(UserError):  # there is none of an older model
        calibration = calibration_of(known)
    curve = error_curve_of(known)
    stated = export(exported, metrics, out, calibration=calibration, error_curve=curve, licence=licence)
    if not metrics:
        log.warning("the card has no figures, since no evaluation of this model is known")
    if stated == "unknown":
        log.warning("the card states no licence, since that of the images has no name on the Hub; see --licence")
    upload = f"hf upload USER/{shlex.quote(out.name)} {shlex.quote(str(out))} ."
    say(f"{out}: {exported.name} for the Hugging Face Hub, licence {stated}; `{upload}` uploads it")
