"""Commands for the operator of the retraining loop: start it, show its state, free its disk space."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson, project
from flows.core.errors import Exit, NetworkError, UserError
from flows.process.streams import say_result

if TYPE_CHECKING:
    from flows.orchestration.answers import Pruned, SourceNow, Status

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
SHOWN = 3
"""How many names of each kind `vdmctl prune` prints; `--json` prints all."""

commands = typer.Typer()


@commands.command()
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
        bool, typer.Option("--share", help="Let runs share versions with other machines, whichever worker takes them.")
    ] = False,
    queue: QUEUES = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="A port of loopback at which Prometheus asks for the loop's figures."),
    ] = None,
) -> None:
    """Run the retraining loop: server, work pool, deployments and worker. Ctrl-C stops all of them.

    The server is at Prefect's api.url (PREFECT_API_URL or a profile), by default http://127.0.0.1:4200/api. A server
    that answers there is used and not stopped afterwards; otherwise one is started there, if the address is loopback or
    given by --host or --port. Its database is SQLite, or the one that PREFECT_SERVER_DATABASE_CONNECTION_URL names.
    The weekly deployment is off until `prefect deployment schedule resume train-vdm/weekly ID` switches it on.
    """
    from flows.orchestration.serve import serve

    serve(host, port, share=share, worker=worker, queues=queue, metrics_port=metrics_port)


@commands.command()
def worker(queue: QUEUES = None) -> None:
    """Run a worker for the server of another machine, in a clone of the project. Ctrl-C stops it.

    PREFECT_API_URL names the server's API, and PREFECT_API_AUTH_STRING its USER:PASSWORD. Machines share only the git
    remote `origin` and DVC's default remote: a run starts from the newest commit of the upstream branch, fetches what
    it needs, and publishes its results. A worker runs one run at a time.
    """
    from flows.orchestration.serve import work

    work(queue)


@commands.command()
def status(
    verify: Annotated[
        bool, typer.Option("--verify", help="Also recompute every digest of the champion, which takes seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state of the retraining loop; exit 5 if there is a problem.

    It shows the server, its workers, schedules, unfinished runs and the run that ended last; who trains on which
    device; the apps and what they serve; the worktrees of runs; the champion; and the disk usage. The last lines say
    what is wrong and what to do.
    """
    from flows.commands.summary import quantity
    from flows.core.tables import table
    from flows.orchestration.status import status

    found = status(project())
    if verify and found.registry.champion:
        found = found.model_copy(update={"problems": [*found.problems, *champion_problems()]})
    say_result(found.model_dump(exclude_unset=True), table(("what", "state"), list(rows(found))), as_json)
    if problems := found.problems:
        raise UserError(f"status: {quantity(len(problems), 'problem')}: {problems[0]}", Exit.MISSING)


def champion_problems() -> list[str]:
    """Return the checks of the champion that fail, or why it cannot be checked."""
    from flows.registry.verification import verify
    from flows.repository.tags import CHAMPION

    try:
        reigning = project().registry.resolve(CHAMPION)
        checks = verify(project().repository, reigning)
    except NetworkError as error:
        return [f"the champion cannot be verified now: {error}"]
    except UserError as error:
        return [f"the champion does not verify: {error}"]
    return [f"{reigning.name} does not verify: {check.subject}: {check.problem}" for check in checks if check.problem]


def rows(found: "Status") -> Iterator[tuple[str, str]]:
    """Yield the lines of the table of `vdmctl status`: a subject and its state."""
    server, registry = found.server, found.registry
    answers = "answers" if server.answers else "does not answer"
    yield "server", f"{server.url} {answers}" if server.url else "none"
    for worker in server.workers:
        yield "worker", f"{worker.name} {worker.status.lower()}"
    for one in server.schedules:
        state = f"on, next run {one.next_run or 'not planned yet'}" if one.active else "off"
        yield "schedule", f"{one.deployment}: {one.when}: {state}"
    for run in server.runs:
        started = f"started {run.started}" if run.started else "not started yet"
        yield "run", f"{run.name} {str(run.state).lower()}, {started}"
    if last := server.last_run:
        yield "last run", f"{last.name} {str(last.state).lower()}, ended {last.ended}"
    for device in found.devices:
        yield "device", f"{device.device}: {device.holder}"
    for app in found.apps:
        follows = ", follows the champion" if app.follows_champion else ""
        yield "app", f"{app.url} serves {app.model or 'nothing'}{follows}"
    for worktree in found.worktrees:
        state = "in use" if worktree.in_use else "left behind; the next run removes it"
        yield "worktree", f"{worktree.name} {state}"
    if not registry.problem:
        bpd = registry.champion_bpd
        figure = f" ({bpd:.4f} bits/dim)" if bpd is not None else ""
        yield "versions", f"{registry.versions}, champion {registry.champion or 'none'}{figure}"
        if registry.hold:
            yield "hold", f"{registry.hold}; winners wait until `vdmctl promote --release`"
        if waits := registry.waiting:
            yield "waiting", f"{waits} won; `vdmctl promote --approve {waits}` promotes it"
    if not found.images.problem:
        yield "images", images_now(found.images)
        yield "next run", found.images.due
    for kind, size in found.disk_bytes.items():
        if size:
            yield "disk", f"{kind.replace('_', ' ')}: {size / 1e6:,.1f} MB"
    yield "disk", f"free: {found.disk_free_bytes / 1e6:,.1f} MB"
    for problem in found.problems:
        yield "problem", problem


def images_now(found: "SourceNow") -> str:
    """Return what a run would find at its source of images, in one line."""
    source, since = found.source, found.since
    if found.damaged:
        source += f" ({found.damaged:,} damaged, left out)"
    if found.state == "missing":
        return f"{source} is not on this machine; a run that shares versions uses the recorded images, others fail"
    if found.state == "imported":
        return f"{source} is an import, which a run brings up to date"
    if since is None:
        return f"{source}: no run has seen them yet"
    if found.state == "same":
        return f"{source}: as in {since}"
    empty = f" ({found.empty:,} without a byte)" if found.empty else ""
    told = {f"added{empty}": found.added, "removed": found.removed}
    changed = [f"{count:,} pictures {words}" for words, count in told.items() if count]
    return f"{source}: {' and '.join(changed) or 'changed'} since {since}"


@commands.command()
def prune(
    keep: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many of the newest versions stay, also if they were refused.",
        ),
    ] = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove refused versions that are not among the newest, and what nothing needs; exit 6 while a run is in progress.

    It removes the tags of these versions, the branches of their runs, files in DVC's cache that no other commit needs,
    worktrees that were left behind, folders that a killed process left half written (.vdm-*), and reports, fetched
    models and training states that are 14 days old. On remotes it removes nothing, and a version that origin or the DVC
    remote lacks stays, as do the old output of a command that a power cut interrupted and what is being written now.
    """
    from flows.core.tables import table
    from flows.orchestration.pruning import prune

    found = prune(project(), keep=keep, dry_run=dry_run)
    header = ("what", "would be removed" if dry_run else "removed", "MB", "why")
    say_result(found.model_dump(), table(header, list(removals(found))), as_json)


def removals(found: "Pruned") -> Iterator[tuple[str, str, str, str]]:
    """Yield the lines of the table of `vdmctl prune`: what, which, how large and why; at the end what stays."""
    from flows.orchestration.answers import CHAMPIONS, NEWEST

    parts = {kind: part for kind, part in found.removed.items() if part.count}
    for kind, part in parts.items():
        size = "" if part.bytes is None else f"{part.bytes / 1e6:,.1f}"
        names = "" if kind == "cached_files" else ": " + ", ".join(part.names[:SHOWN])
        more = ", ..." if names and part.count > SHOWN else ""
        yield kind.replace("_", " "), f"{part.count}{names}{more}", size, part.reason
    if not parts:
        yield "nothing", "", "", ""
    for name, reason in found.kept.items():
        if reason not in (NEWEST, CHAMPIONS):
            yield "kept", name, "", reason
