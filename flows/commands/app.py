"""The command that serves a model in a browser and over HTTP."""

from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import MODEL_HELP, override, project
from flows.process.streams import say_on_stderr

if TYPE_CHECKING:
    from flows.registry.versions import Version

PORT = 4210
MOST_EVALUATIONS = 100_000
DEVICE_HELP = "auto, cpu, cuda or cuda:N. auto is the GPU, unless a training has it."

commands = typer.Typer()


@commands.command()
def app(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP, show_default="champion, else models/vdm")] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 is all interfaces, which need a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = PORT,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which browsers reach the app with its password, such as a proxy's; repeatable."),
    ] = None,
    most_evaluations: Annotated[
        int, typer.Option(min=1, help="Evaluations of the network that a request may take, each of one image.")
    ] = MOST_EVALUATIONS,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    share: Annotated[
        bool, typer.Option("--share", help="Look for new champions at origin, too, as workers publish them.")
    ] = False,
) -> None:
    """Serve a model as a page and over HTTP: draw, score, fill in, classify. Ctrl-C stops it.

    The champion is followed: a new one answers within a minute, after its digests were checked. VDM_APP_AUTH_STRING is
    the USER:PASSWORD that the app asks for; an address that other machines reach needs one. /docs explains the HTTP
    interface. No request changes a file of the project.

    One request at a time is worked on, with the sections `evaluate:` and `sample:` of params.yaml; while a training has
    the CPU, with one thread.
    """
    params = project().params
    from flows.app.listening import listen, open_socket, require_password
    from flows.registry.versions import is_champion

    password = require_password(host)
    follows = (model is None or is_champion(model)) and Path(".git").exists()
    version = project().version(model) if model else champion_if_any() if follows else None
    if share:
        from flows.registry.publishing import require_remotes

        require_remotes(project().repository)
    with open_socket(host, port) as at:
        chosen = device_for(device)
        opened = project().model(version.name if version else model, chosen)
        from flows.app.application import Settings, application
        from flows.app.champion import Following
        from flows.app.queue import Queue

        given = {"device": chosen}
        settings = Settings(override(params.evaluate, given), override(params.sample, given), most_evaluations)
        following = Following(project(), opened, version, settings.sample, follows=follows, share=share)
        queue, names = Queue(opened.device), [host, gethostname(), *(allow_host or [])]
        served = application(following, settings, queue, password, names)
        listen(served, queue, at, host, project().folder, f"{opened.name} on {opened.device}")


def champion_if_any() -> "Version | None":
    """Return the champion; None in a project that has none yet."""

    return project().registry.champion


def device_for(name: str) -> str:
    """Return the name of the device; for `auto` the GPU, unless a training has it, which is said."""
    if name != "auto":
        return name
    import torch

    from flows.process.locks import device_lock, holder_of

    if not torch.cuda.is_available():
        return "cpu"
    if holder := holder_of(device_lock(torch.device("cuda"))):
        say_on_stderr(f"{holder} trains on the GPU, so the app takes the CPU; --device cuda shares the GPU")
        return "cpu"
    return "cuda"
