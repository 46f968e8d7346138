"""The whole command line `vdmctl`: its help and its groups of commands."""

import inspect
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.commands import app as app_commands
from flows.commands import compression, evaluation, exchange, operating, pipeline, registry, sampling
from flows.commands.arguments import Command, project
from flows.process.streams import say


class CommandsBySubject(TyperGroup):
    """A command line whose help lists the commands under the headings of GROUPS."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with the first paragraph of its help, which Typer would cut off at the end of the line."""
        for heading, group in GROUPS.items():
            commands = typer.main.get_group(group).commands
            with formatter.section(heading):
                formatter.write_dl([(name, (commands[name].help or "").split("\n\n")[0]) for name in commands])


def print_version(asked: bool) -> None:
    """Print the version of the package, if the option --version is given, and end."""
    if asked:
        from importlib.metadata import version

        say(f"vdmctl {version('vdm-pipeline')}")
        raise typer.Exit


app = typer.Typer(
    cls=CommandsBySubject,
    help="Train, evaluate and ship a Variational Diffusion Model.\n\n"
    "Parameters come from params.yaml in the current folder; `vdmctl preset NAME` writes one. "
    "`dvc repro` runs the stages whose inputs changed: download, validate, train, register, evaluate, features, sample "
    "and report.\n\n"
    "First steps: `dvc repro`, `vdmctl report`, `vdmctl sample models/vdm --out samples.png`. After a commit, "
    "`gto register vdm` makes a version of the model, and `vdmctl promote` the champion.\n\n"
    "Exit codes: 0 done, 1 a bug, or a process that keeps dying, "
    "2 usage or parameters (also training that diverged, and memory that does not suffice), "
    "3 the challenger was not promoted, 4 invalid data, "
    "5 a missing or damaged file, model or version, or one that cannot be written (a full disk), 6 busy, "
    "75 stopped (Ctrl-C, SIGTERM, a closed terminal): run it again.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    rich_markup_mode=None,  # importing Rich takes longer than all else that the help does
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Begin a command, with a project of its own.  The help is that of `app`."""
    project.cache_clear()


GROUPS = {
    "Pipeline": pipeline.commands,
    "Evaluation": evaluation.commands,
    "Samples": sampling.commands,
    "Compression": compression.commands,
    "Exchange": exchange.commands,
    "App": app_commands.commands,
    "Registry": registry.commands,
    "Retraining loop": operating.commands,
}


def join_lines(text: str) -> str:
    """Return the text with one line for each paragraph: terminals have other widths than the code."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


for group in GROUPS.values():
    app.add_typer(group)
    for command in group.registered_commands:
        command.cls = Command
        command.help = join_lines(command.callback.__doc__ or "")  # Typer would keep the line breaks of the code
