"""Commands that compress images without loss, with a model."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.arguments import AsJson, FitOption, ForceOption, ModelArgument, project
from flows.compression.batches import MOST_BATCH, MOST_TIMESTEPS
from flows.process.streams import say_result
from vdm.choices import Split

commands = typer.Typer()


def require_device(name: str) -> str:
    """Return `name` if it names a device.  Raises BadParameter for any other text."""
    from flows.core.params import device_name

    try:
        return device_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", callback=require_device)]


@commands.command()
def compress(
    images: Annotated[Path, typer.Argument(help="An image set, a folder of pictures, a picture, or an .npy file.")],
    model: ModelArgument = None,
    *,
    out: Annotated[Path, typer.Option(help="The file to write, by convention NAME.vdmz.")],
    fit: FitOption = False,
    split: Annotated[
        Split | None, typer.Option(help="Of an image set: train, validation or test.", show_default="test")
    ] = None,
    num_timesteps: Annotated[
        int, typer.Option(min=1, max=MOST_TIMESTEPS, help="Steps T: more take longer, and the file is smaller.")
    ] = 100,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST_BATCH, help="Most images in a batch.")] = 32,
    device: Device = "auto",
    verify: Annotated[bool, typer.Option(help="Decode the file before it is moved to OUT, and compare.")] = True,
    force: ForceOption = False,
    as_json: AsJson = False,
) -> None:
    """Compress images without loss to a file, near the model's bound in T steps.

    With --fit the changed pictures are what the file holds, and not what they were.

    It takes T evaluations of the network for each image, 32 more for the bound, and T again to verify.
    `vdmctl decompress` needs the same model. It is sure to work only with the versions of torch and NumPy and the
    kind of processor that the file names.
    """
    from flows.commands.summary import quantity
    from flows.compression.files import compress
    from flows.core.files import require_replaceable
    from flows.evaluation.results import format_figure
    from flows.images.user_files import open_named
    from flows.repository.lock_file import require_no_outputs

    require_no_outputs(project().repository, out)
    coder = project().model(model, device)
    require_replaceable(out, images, coder.folder, force=force)
    options = {"num_timesteps": num_timesteps, "batch_size": batch_size}
    with open_named(images, split, coder, transformed=False, fit=fit) as to_compress:
        done = compress(to_compress, coder, out, **options, verify=verify)
    bound = format_figure(done.bound_bpd, done.bound_bpd_standard_error)
    code = "" if done.code_bpd is None else f", {done.code_bpd:.4f} for the images encoded with the model"
    text = (
        f"{done.out}: {quantity(done.num_images, 'image')}, {done.pixel_bytes:,} -> {done.file_bytes:,} bytes,"
        f" {'verified' if done.verified else 'not verified'}\n"
        f"{done.net_bpd:.4f} bits/dim for the whole file{code}\n"
        f"{bound} is the bound in {quantity(done.num_timesteps, 'step')}"
        f"{', given the classes, which are in the file, too' if done.classes else ''}"
    )
    say_result(done.model_dump(), text, as_json)


@commands.command()
def decompress(
    file: Annotated[Path, typer.Argument(help="A file of `vdmctl compress`.")],
    model: ModelArgument = None,
    *,
    out: Annotated[Path, typer.Option(help="The folder to write: images.npy, or PNG files if these were pictures.")],
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it holds decoded images.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the images of a file into a folder, every pixel as it was.

    If the file is cut short or damaged, nothing is written, and the exit code is 5.
    """
    from flows.commands.summary import quantity
    from flows.compression.files import WRITTEN, decompress
    from flows.core.files import require_replaceable
    from flows.repository.lock_file import require_no_outputs

    require_no_outputs(project().repository, out)
    coder = project().model(model, device)
    require_replaceable(out, file, coder.folder, force=force, names=WRITTEN)
    done = decompress(file, coder, out)
    say_result(done.model_dump(), f"{quantity(done.num_images, 'image')} in {done.out}", as_json)
