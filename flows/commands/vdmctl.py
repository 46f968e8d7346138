"""The whole command line `vdmctl`: its help, its groups of commands, `vdmctl serve` and `vdmctl worker`."""

import inspect
from typing import Annotated

import typer

from flows.commands import compression, evaluation, operating, pipeline, registry, sampling

app = typer.Typer(
    help="Train, evaluate and ship a Variational Diffusion Model.\n\n"
    "Parameters come from params.yaml in the current folder; `vdmctl preset NAME` writes one. "
    "`dvc repro` runs the stages whose inputs changed: download, validate, train, register, evaluate, features, sample "
    "and report.\n\n"
    "Exit codes: 0 done, 1 a bug, or training that cannot continue (a full disk, a process that keeps dying), "
    "2 usage or parameters (also training that diverged), 3 the challenger was not promoted, 4 invalid data, "
    "5 a missing or damaged file, model or version, or one that cannot be written (a full disk), 6 busy, "
    "75 stopped (Ctrl-C, SIGTERM): run it again.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
GROUPS = [module.commands for module in (pipeline, evaluation, sampling, compression, registry, operating)]
for group in GROUPS:
    app.add_typer(group)

ADDRESS = "from Prefect's api.url"


QUEUES = Annotated[
    list[str] | None,
    typer.Option(
        "--queue",
        metavar="NAME",
        help="A work queue whose runs the worker takes; may be repeated.",
        show_default="default, and gpu on a machine with an NVIDIA GPU, else cpu",
    ),
]


@app.command()
def serve(
    host: Annotated[
        str | None,
        typer.Option(help="The address that the server listens on; 0.0.0.0 is all interfaces.", show_default=ADDRESS),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port that the server listens on.", show_default=ADDRESS)
    ] = None,
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Start a worker, too.")] = True,
    share: Annotated[
        bool, typer.Option("--share", help="Let its worker share versions with the workers of `vdmctl worker`.")
    ] = False,
    queue: QUEUES = None,
) -> None:
    """Run the retraining loop: server, work pool, deployments and worker. Ctrl-C stops all of them.

    The server is at Prefect's api.url (PREFECT_API_URL or a profile), by default http://127.0.0.1:4200/api. A server
    that answers there is used and not stopped afterwards; otherwise one is started on this machine. Its database is
    SQLite, or the one that PREFECT_SERVER_DATABASE_CONNECTION_URL names. The weekly deployment is off until
    `prefect deployment schedule resume train-vdm/weekly ID` switches it on.
    """
    from flows.orchestration.serve import serve

    serve(host, port, share=share, worker=worker, queues=queue)


@app.command()
def worker(queue: QUEUES = None) -> None:
    """Run a worker for the server of another machine, in a clone of the project. Ctrl-C stops it.

    PREFECT_API_URL names the server's API, and PREFECT_API_AUTH_STRING its USER:PASSWORD. Machines share only the git
    remote `origin` and DVC's default remote: a run starts from the newest commit of the upstream branch, fetches what
    it needs, and publishes its results. A worker runs one run at a time.
    """
    from flows.orchestration.workers import work

    work(queue)


def joined_lines(text: str) -> str:
    """Return the text with one line for each paragraph: terminals have other widths than the code."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


# After all commands: Typer would print the lines of their docstrings as they are.
for group in [app, *GROUPS]:
    for command in group.registered_commands:
        command.help = joined_lines(command.callback.__doc__ or "")
