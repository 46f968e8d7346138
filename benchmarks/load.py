"""Measure what a long life costs: python -m benchmarks.load

Makes two scratch repositories and a Prefect server (`benchmarks/aged.py`), first with a tenth of the load, then with
all of it.  Prints the seconds with both, and their ratio, for every command and every function of the flow that reads
the load.  A command is a new process, imports included; a function is called in this process.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.aged import JUDGED_BY, ROOT, History, Load, build, server
from benchmarks.machine import show
from benchmarks.options import new_parser, own_environment, positive
from flows.process.environment import settle

FULL = Load(versions=200, runs=10_000, flow_runs=1_000, rows=1_000_000)
LAST, PAGE = "{last}", "{page}"
COMMANDS = {
    "models": ["models"],
    "models --json": ["models", "--json"],
    "status": ["status"],
    "lineage": ["lineage", LAST],
    "verify": ["verify", LAST],
    "compare": ["compare", "v1.0.0", LAST, "--split", "validation"],
    "prune --dry-run": ["prune", "--dry-run"],
    "report": ["report", LAST, "--out", PAGE, "--force"],
    "report of two": ["report", "v1.0.0", LAST, "--out", PAGE, "--force"],
}
ASKING = ("status", "prune --dry-run")
"""The commands that ask the server."""


class Measured(NamedTuple):
    """The seconds of the fastest call, and the exit code of the command; 0 for a function."""

    seconds: float
    exit_code: int


def main() -> None:
    parser = new_parser(__doc__)
    for name, value in FULL._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, default=value)
    parser.add_argument("--only", nargs="+", default=[""], help="commands and functions with one of these in the name")
    parser.add_argument("--repeats", type=positive, default=3, help="measurements, of which the fastest counts")
    arguments = parser.parse_args()
    full = Load(*(getattr(arguments, name) for name in Load._fields))
    if full.versions > full.runs:
        parser.error(f"--versions {full.versions} must be at most --runs {full.runs}: every version is that of a run")
    tenth = Load(*(max(1, count // 10) for count in full))
    settle(os.environ)  # hooks of git lead to their repository
    with ExitStack() as stack:
        history = None
        if any(is_chosen(name, arguments.only) for name in ASKING):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            history = stack.enter_context(server(home))
        less, more = (measure(load, history, arguments.only, arguments.repeats) for load in (tenth, full))
    rows = [row(name, less[name], more[name]) for name in more]
    show({"load": full._asdict(), "rows": rows}, as_json=arguments.json)


def measure(load: Load, history: History | None, only: list[str], repeats: int) -> dict[str, Measured]:
    """Return the seconds of every command and function whose name contains a word of `only`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "repository")
        build(root, load)
        # Locks of devices and Prefect's settings are those of the scratch folder.
        environment = own_environment(PYTHONPATH=str(ROOT), VDM_LOCK_DIR=scratch, PREFECT_HOME=scratch)
        if history:
            history.grow(load.flow_runs)
            environment["PREFECT_API_URL"] = history.api.url
        names = {LAST: f"v1.{load.versions - 1}.0", PAGE: str(Path(scratch, "page.html"))}
        found = {}
        for name, template in COMMANDS.items():
            if is_chosen(name, only):
                command = [names.get(word, word) for word in template]
                found[f"vdmctl {name}"] = fastest(partial(run, command, root, environment), repeats)
        return found | dict(functions(root, only, repeats))


def is_chosen(name: str, only: list[str]) -> bool:
    """Whether the name contains a word of `only`."""
    return any(word in name for word in only)


def row(name: str, less: Measured, more: Measured) -> dict[str, Any]:
    """Return a row of the table."""
    figures = {"tenth_s": less.seconds, "full_s": more.seconds, "ratio": more.seconds / less.seconds}
    return {"name": name, **figures, "exit_code": more.exit_code}


def fastest(action: Callable[[], object], repeats: int) -> Measured:
    """Return the seconds of the fastest of several calls, and what the last one returned if it is an exit code."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        returned = action()
        times.append(time.perf_counter() - begin)
    return Measured(min(times), returned if type(returned) is int else 0)


def run(command: list[str], root: Path, environment: dict[str, str]) -> int:
    """Run a command of vdmctl in the repository; return its exit code, and say why if it is not 0."""
    program = [sys.executable, "-m", "flows.cli", *command]
    done = subprocess.run(program, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"exit {done.returncode}: {done.stderr.strip()}", file=sys.stderr)
    return done.returncode


def functions(root: Path, only: list[str], repeats: int) -> Iterator[tuple[str, Measured]]:
    """Yield the seconds of the functions that a run of the flow calls and that read the load."""
    from flows.orchestration.workspace import prune
    from flows.registry import publishing, remote, versions

    champion = versions.champion(root)
    assert champion is not None
    actions: dict[str, Callable[[], object]] = {
        "versions": lambda: versions.versions(root),
        "champion": lambda: versions.champion(root),
        "judged_by": lambda: versions.judged_by(root, JUDGED_BY),
        "is_decided": lambda: versions.is_decided(root, champion.commit),
        "finished_branches": lambda: publishing.finished_branches(root),
        "local_refs": lambda: remote.local_refs(root),
        "prune": lambda: prune(root),
    }
    for name, action in actions.items():
        if is_chosen(name, only):
            yield name, fastest(action, repeats)
    if any(is_chosen(name, only) for name in ("workspace", "alike", "finished")):
        yield from in_workspace(root, repeats)


def in_workspace(root: Path, repeats: int) -> Iterator[tuple[str, Measured]]:
    """Yield the seconds of making and removing a worktree, and of looking in it for results of the same parameters."""
    from flows.orchestration.workspace import alike, compose_params, finished, workspace
    from flows.registry.git import git_text

    base = git_text(root, "rev-parse", "HEAD")
    params = compose_params(root, base, None, {"train.seed": 10**6})  # no run had these parameters

    def enter() -> None:
        with workspace(root, params, base):
            pass

    yield "workspace", fastest(enter, repeats)
    with workspace(root, params, base) as place:
        yield "alike", fastest(lambda: alike(place), repeats)
        yield "finished", fastest(lambda: finished(place, shared=False), repeats)


if __name__ == "__main__":
    main()
