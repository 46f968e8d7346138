"""Whether the outputs in the working tree are those of the commit that is checked out, and if not, why that may be."""

from pathlib import Path
from typing import NamedTuple

from flows.core import layout
from flows.registry.git import git_text
from flows.registry.lock_file import lock_here, read_lock
from flows.registry.storage import dvc_repository
from flows.registry.versions import Tag


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
    commit = git_text(root, "rev-parse", "--verify", "HEAD")
    ours, theirs = lock_here(root), read_lock(root, Tag("HEAD", commit))
    problems, stages = changes(root)
    if problems:
        advice = "`dvc pull` restores what a remote has, and `dvc repro` makes the rest"
        return Reproduction(False, "; ".join([*problems, advice]), stages)
    differing = sorted(path for path, md5 in ours.outputs.items() if theirs.outputs.get(path) != md5)
    if not differing:
        return Reproduction(True, f"every output is identical to that of commit {commit[:12]}", [])
    inputs = [path for path, md5 in ours.code.items() if theirs.code.get(path) != md5]
    sections = [name for name, values in ours.parameters.items() if theirs.parameters.get(name) != values]
    inputs += [f"{layout.PARAMS} {name}" for name in sections]
    reason = "with the same inputs, so the images' source, libraries or the processor differ"
    if inputs:
        reason = f"because the inputs differ: {', '.join(sorted(inputs))}"
    return Reproduction(False, f"{', '.join(differing)}: different from commit {commit[:12]}, {reason}", [])


def changes(root: Path) -> tuple[list[str], list[str]]:
    """Return what differs from dvc.lock in the working tree, in words, and the stages whose inputs changed.

    Raises UserError and DvcException.
    """
    with dvc_repository(root) as repo:
        # Not the outputs in `status`: it also names one that the cache lacks, whether it changed or not.
        outputs = {path: how for out in repo.index.outs for path, how in out.workspace_status().items()}
        inputs: dict[str, set[str]] = {}
        for stage, causes in repo.status().items():
            for cause in causes:
                changed = cause.get("changed deps", {}) if isinstance(cause, dict) else {}
                if names := changed.keys() - outputs.keys():
                    inputs.setdefault(stage, set()).update(names)
    problems = [f"{path}: {how}" for path, how in sorted(outputs.items())]
    if inputs:
        names = ", ".join(sorted(set().union(*inputs.values())))
        problems.append(f"inputs of {', '.join(inputs)} changed since they ran: {names}")
    return problems, list(inputs)
