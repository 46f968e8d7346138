"""Commands about samples: draw them, measure them, and train the features that compare them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.arguments import MODEL_HELP, AsJson, ForceOption, override, project
from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.process.streams import say_result
from vdm.samplers import SAMPLERS, SamplerName

commands = typer.Typer()

DRAWN, OUT = 64, Path("samples.png")

SAMPLER_HELP = (
    ". ".join(f"{name}: {sampler.purpose}" for name, sampler in SAMPLERS.items())
    + ". [default: sample.order and sample.eta]"
)
CLASS_HELP = "Classes for the images in turn, a row each in a grid: numbers or names, as in 3,7 or cat,dog, or none."
GUIDANCE_HELP = "1: p(x | class); more exaggerates the class, 0 forgets it. [default: sample.guidance]"
OUT_HELP = "The output, by its ending: a grid (.png), an array of levels (.npy), or a folder of PNG files."
FILM_HELP = "Also write z_t and x_hat of the first images at several steps: a strip (.png) or a film (.gif)."


@commands.command()
def sample(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP, show_default="run the stage")] = None,
    num_images: Annotated[
        int | None, typer.Option("-n", "--num-images", min=1, help="Number of images.", show_default=str(DRAWN))
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Steps from noise to image. [default: sample.num_timesteps]")
    ] = None,
    sampler: Annotated[SamplerName | None, typer.Option(help=SAMPLER_HELP)] = None,
    classes: Annotated[str | None, typer.Option("--class", help=CLASS_HELP, show_default="all in turn")] = None,
    guidance: Annotated[float | None, typer.Option(help=GUIDANCE_HELP)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the noise. [default: sample.seed]")] = None,
    out: Annotated[Path | None, typer.Option(help=OUT_HELP, show_default=str(OUT))] = None,
    film: Annotated[Path | None, typer.Option(help=FILM_HELP)] = None,
    known: Annotated[
        Path | None, typer.Option(help="A picture, or an .npy file of levels, to keep where the mask is dark.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="The pixels to fill in: white in a picture, or above 0 in an .npy file.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. [default: sample.device]")] = None,
    force: ForceOption = False,
    as_json: AsJson = False,
) -> None:
    """Draw images from MODEL. Without MODEL, run the stage (`sample:`, `quality:`), which writes reports/samples.

    The stage also compares the samples with the training images, in the features of `vdmctl features`.

    Image i of a seed is the same picture, however many images are drawn.

    --known and --mask fill in a picture, ten times slower: an approximation, for which the model was not trained. A
    grid then begins with the picture and the mask.
    """
    options: dict[str, Any] = {"num_images": num_images, "num_timesteps": steps, "seed": seed, "device": device}
    options |= {"guidance": guidance} | (SAMPLERS[sampler].settings if sampler else {})
    if sampler and known:
        raise UserError("--sampler does not apply to --known: pixels are filled in by ancestral sampling", Exit.USAGE)
    chosen = {name: value for name, value in options.items() if value is not None}
    if model is None:
        if chosen or classes or out or film or known or mask or force or as_json:
            raise UserError(f"options need a MODEL, such as {layout.REGISTERED}; without it the stage runs", Exit.USAGE)
        run_sample()
        return
    from flows.commands.summary import quantity
    from flows.repository.lock_file import require_no_outputs
    from flows.sampling.request import Request, answer

    for place in filter(None, (out, film)):
        require_no_outputs(project().repository, place)
    settings = override(project().params.sample, {"num_images": DRAWN} | chosen)
    places = {"film": film, "known": known, "mask": mask}
    done = answer(
        Request(project().model(model, settings.device), settings, out or OUT, **places, force=force, classes=classes)
    )
    text = f"{quantity(done.num_images, 'image')} in {done.out}" + (f", their film in {film}" if film else "")
    say_result(done.model_dump(), text, as_json)


def run_sample() -> None:
    """Run the stage, which replaces its outputs."""
    from flows.core.model import open_model
    from flows.images.image_set import open_images
    from flows.sampling.features import open_features
    from flows.sampling.measuring import sample

    params = project().params
    opened = open_model(layout.REGISTERED), open_features(layout.FEATURES), open_images(layout.IMAGES)
    sample(params.sample, params.quality, *opened, layout.SAMPLES.parent)


@commands.command()
def features() -> None:
    """Train the classifier whose features compare images (parameters `features:`), and write models/features."""
    params = project().params
    from flows.images.image_set import open_images
    from flows.sampling.features import features

    features(params.features, open_images(layout.IMAGES), project().verdict, layout.FEATURES)
