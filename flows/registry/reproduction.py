"""Whether the outputs in the working tree are those of the commit that is checked out, and if not, why that may be."""

from pathlib import Path
from typing import NamedTuple

from flows.core import layout
from flows.core.documents import parse, read
from flows.core.errors import Exit, UserError
from flows.evaluation.results import BoundMetrics, Environment
from flows.registry.git import commit_of, content_of
from flows.registry.lock_file import Lock, lock_here, read_lock
from flows.registry.storage import dvc_repository
from flows.registry.versions import Tag

MOST_NAMED = 5


class Reproduction(NamedTuple):
    """Whether the outputs in the working tree are identical to those of the commit, and one line about it."""

    is_equal: bool
    line: str
    outdated_stages: list[str]
    """The stages whose inputs changed since they ran."""


def reproduction(root: Path) -> Reproduction:
    """Compare the outputs in the working tree with the commit's.

    Raises UserError, OSError or DvcException if that fails, as outside a repository or without a commit.
    """
    try:
        ours = lock_here(root)
    except FileNotFoundError as error:
        advice = f"`git checkout HEAD {layout.DVC_LOCK}` restores it, or `dvc repro` writes it"
        raise UserError(f"{layout.DVC_LOCK} is missing; {advice}", Exit.MISSING) from error
    except UserError as error:  # such as the marks of a merge with conflicts
        advice = f"`git checkout HEAD {layout.DVC_LOCK} && dvc repro` restores it and makes the results again"
        return Reproduction(False, f"{error}, so the results may be of other inputs; {advice}", [])
    commit = commit_of(root, "HEAD")
    theirs = read_lock(root, Tag("HEAD", commit))
    problem, stages = changes(root)
    if problem:
        return Reproduction(False, problem, stages)
    differing = sorted(path for path, md5 in ours.outputs.items() if theirs.outputs.get(path) != md5)
    if not differing:
        return Reproduction(True, f"every output is identical to that of commit {commit[:12]}", [])
    inputs = changed_inputs(theirs, ours)
    reason = f"because the inputs differ: {inputs}" if inputs else f"with the same inputs; {environments(root, commit)}"
    if not inputs and str(layout.IMAGES) in differing:  # DVC does not watch where they come from
        reason = f"because the images do: their source changed, or what reads them; {environments(root, commit)}"
    return Reproduction(False, f"{', '.join(differing)}: different from commit {commit[:12]}, {reason}", [])


def changes(root: Path) -> tuple[str, list[str]]:
    """Return what differs from dvc.lock in the working tree, in words or "", and the stages whose inputs changed.

    Raises UserError and DvcException.
    """
    with dvc_repository(root) as repo:
        # Not the outputs in `status`: it also names one that the cache lacks, whether it changed or not.
        outputs = {path for out in repo.index.outs for path in out.workspace_status()}
        inputs: dict[str, set[str]] = {}
        for stage, causes in repo.status().items():
            for cause in causes:
                changed = cause.get("changed deps", {}) if isinstance(cause, dict) else {}
                for path, how in changed.items():  # a text or, for params.yaml, a dict by section
                    if path not in outputs:
                        names = {f"{path} {section}" for section in how} if isinstance(how, dict) else {path}
                        inputs.setdefault(stage, set()).update(names)
    missing = {path for path in outputs if not (root / path).exists()}
    problems = []
    if outputs - missing:
        problems.append(f"{shortened(outputs - missing)}: changed after DVC recorded them")
    if missing:
        problems.append(f"{shortened(missing)}: missing")
    if inputs:
        changed_names = shortened(set().union(*inputs.values()))
        problems.append(f"inputs of {', '.join(inputs)} changed since they ran: {changed_names}")
    advice = ["`dvc pull` restores what a remote has, and `dvc repro` makes the rest"] if problems else []
    return "; ".join(problems + advice), list(inputs)


def changed_inputs(theirs: Lock, ours: Lock) -> str:
    """Return the names of the first files and sections of params.yaml that differ, and how many more do."""
    files = {path for path, md5 in ours.code.items() if theirs.code.get(path) != md5}
    sections = {name for name, values in ours.parameters.items() if theirs.parameters.get(name) != values}
    return shortened({f"{layout.PARAMS} {name}" for name in sections} | files)


def shortened(names: set[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(sorted(names)[:MOST_NAMED]) + more


def environments(root: Path, commit: str) -> str:
    """Return how the environments of both evaluations differ, which may explain other bits."""
    name = f"{commit}:{layout.METRICS}"
    try:
        there = parse(BoundMetrics, content_of(root, name) or b"", name).environment
        here = read(BoundMetrics, root / layout.METRICS).environment
    except UserError:
        there = here = None
    if there is None or here is None:
        return "the environment of one of them is unknown"
    if there == here:
        return "versions and kind of processor are the same, so the number of threads or the CPU's model may decide"
    return f"made with {described(there)}, here {described(here)}"


def described(environment: Environment) -> str:
    """Return an environment in words."""
    libraries = f"Python {environment.python}, torch {environment.torch}, NumPy {environment.numpy}"
    return f"{libraries} on {environment.processor}"
