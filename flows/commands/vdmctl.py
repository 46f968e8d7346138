"""The command line `vdmctl` as a whole: its help, and its commands by subject."""

from typing import Annotated

import typer

from flows.commands import evaluation, pipeline, registry
from flows.commands.arguments import Commands

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
app.add_typer(pipeline.commands)
app.add_typer(evaluation.commands)
app.add_typer(registry.commands)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Where the server listens; 0.0.0.0 is everywhere.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The server's port.")] = None,
) -> None:
    """Run the retraining loop: server, work pool, deployments, worker; Ctrl-C stops all of it.

    The server is Prefect's api.url (PREFECT_API_URL or a profile), else http://127.0.0.1:4200/api: one that answers
    is used and left alone, else one of this machine is started. Its database is Prefect's: SQLite, or what
    PREFECT_SERVER_DATABASE_CONNECTION_URL names. The weekly deployment is off until
    `prefect deployment schedule resume` switches it on.
    """
    from flows.orchestration.serve import serve

    serve(host, port)
