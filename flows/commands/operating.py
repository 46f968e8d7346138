"""Commands for the operator of the retraining loop.

Heavy modules are imported inside the commands.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from flows.commands.registry import ROOT, AsJson, table
from flows.core.errors import Exit, UserError
from flows.process.streams import say, say_json

commands = typer.Typer()


@commands.command()
def status(
    verify: Annotated[
        bool, typer.Option("--verify", help="Also recompute every digest of the champion, which takes seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state of the retraining loop; exit 5 if something needs a look.

    It shows the server, its workers, schedules and unfinished runs; who trains on which device; the worktrees of runs;
    the champion; and what takes room on disk.  The last lines say what is wrong and what to do.
    """
    from flows.orchestration.status import status

    found = status(ROOT)
    if verify and found["registry"].get("champion"):
        found["problems"] += champion_problems()
    if as_json:
        say_json(found)
    else:
        say(table(("what", "state"), list(rows(found))))
    if problems := found["problems"]:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"status: {problems[0]}{more}", Exit.MISSING)


def champion_problems() -> list[str]:
    """Return the checks of the champion that fail."""
    from flows.registry.verification import verify
    from flows.registry.versions import CHAMPION, resolve

    reigning = resolve(ROOT, CHAMPION)
    checks = verify(ROOT, reigning)
    return [f"{reigning.name} does not verify: {check.subject}: {check.problem}" for check in checks if check.problem]


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines of the table: a subject and its state."""
    server, registry = found["server"], found["registry"]
    yield "server", f"{server['url']} {'answers' if server['answers'] else 'does not answer'}"
    for worker in server.get("workers", []):
        yield "worker", f"{worker['name']} {worker['status'].lower()}"
    for one in server.get("schedules", []):
        state = f"on, next run {one['next_run'] or 'not planned yet'}" if one["active"] else "off"
        yield "schedule", f"{one['deployment']} {one['when']}: {state}"
    for run in server.get("runs", []):
        yield "run", f"{run['name']} {run['state'].lower()}, started {run['started'] or 'not yet'}"
    for device in found["devices"]:
        yield "device", f"{device['device']}: {device['holder']} since {device['since']}"
    for worktree in found["worktrees"]:
        yield (
            "worktree",
            f"{worktree['name']} {'in use' if worktree['in_use'] else 'left behind; the next run removes it'}",
        )
    if "problem" not in registry:
        bpd = registry["champion_bpd"]
        figure = f" ({bpd:.4f} bits/dim)" if bpd is not None else ""
        yield "versions", f"{registry['versions']}, champion {registry['champion'] or 'none'}{figure}"
    for kind, size in found["disk_bytes"].items():
        if size:
            yield "disk", f"{kind.replace('_', ' ')}: {size / 1e6:,.1f} MB"
    for problem in found["problems"]:
        yield "problem", problem
