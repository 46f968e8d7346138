"""The Prefect flow `train-vdm`: the graph of dvc.yaml, one task per stage, in a worktree of the run's own.

DVC decides what must run and caches it; Prefect decides when, retries, and shows it.  No data passes between tasks.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx
from dvc.repo import Repo
from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from flows import artifacts, publishing
from flows.errors import Exit, NetworkError, UserError
from flows.processes import process_group
from flows.workspace import Workspace, commit, compose_params, git, nothing_to_do, prune, workspace

# Training ends when it ends; what takes longer than this elsewhere hangs.
TIMEOUT_HOURS = {"download": 6.0, "validate": 2.0, "register": 0.5, "evaluate": 48.0, "sample": 12.0}


@flow(name="train-vdm")
def train_vdm(
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    publish: bool = False,
) -> State[None]:
    """Train, evaluate and register a model of the commit that is checked out, and promote it if it is better.

    Args:
        preset: A file of presets/ to take in place of params.yaml.
        overrides: Parameters by dotted key, such as {"train.steps": 5000}.
        force: Run every stage, also those whose inputs did not change.
        publish: Push data, branch and tags to the remotes.
    """
    root = Path(git(Path.cwd(), "rev-parse", "--show-toplevel"))
    try:
        message = retrain(root, preset, overrides or {}, force=force)
        if publish:
            publish_versions(root, return_state=True).result()
    except UserError as error:
        return Failed(message=str(error), data=error)
    return Completed(message=message)


def retrain(root: Path, preset: str | None, overrides: Mapping[str, Any], *, force: bool) -> str:
    """One run; what came of it in a line.  Raises UserError."""
    logger = get_run_logger()
    check_repository(root)
    params = compose_params(root, preset, overrides)
    for name in prune(root):
        logger.info("removed the worktree of run %s, which ended early", name)
    with workspace(root, params) as place:
        if not force and nothing_to_do(place):
            return f"nothing to do: commit {place.base[:12]} with these parameters has its results already"
        logger.info("run %s of commit %s in %s", place.folder.name, place.base[:12], place.folder)
        for stage in stages(place.folder):
            # Called, not submitted: a submitted task would never see that the run was cancelled.
            state = reproduce.with_options(
                name=stage,
                task_run_name=stage,
                timeout_seconds=3600 * TIMEOUT_HOURS[stage] if stage in TIMEOUT_HOURS else None,
                retries=2 if stage == "download" else 0,
            )(stage, place.folder, force, return_state=True)
            state.result()
        artifacts.show_results(place.folder)
        return record(place)


def check_repository(root: Path) -> None:
    """Say what of the checkout is no part of the run.  UserError (exit 2) when git cannot commit."""
    logger = get_run_logger()
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
    except UserError as error:
        raise UserError("git does not know who commits: set user.name and user.email", Exit.USAGE) from error
    if git(root, "status", "--porcelain", "--untracked-files=no"):
        logger.warning("%s has uncommitted changes, which are no part of this run", root)
    if git(root, "rev-parse", "--abbrev-ref", "HEAD") == "HEAD":
        logger.warning("%s has no branch checked out; the run starts from its commit", root)


def stages(folder: Path) -> list[str]:
    """The names of the stages in the order of their dependencies."""
    with Repo(str(folder)) as repo:
        # DVC's edges point from a stage to what it needs.
        graph = networkx.reverse_view(repo.index.graph)
        return [stage.name for stage in networkx.lexicographical_topological_sort(graph, key=str)]


def is_network(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether another try may help: the network failed, not the user's parameters or data."""
    return isinstance(state.result(raise_on_failure=False), NetworkError)


@task(cache_policy=NO_CACHE, retry_condition_fn=is_network, retry_delay_seconds=[10, 60])
def reproduce(stage: str, folder: Path, force: bool) -> State[None] | None:
    """`dvc repro --single-item STAGE` in the folder, its output streamed into the log.

    A failure carries UserError with the stage's own reason and exit code.
    """
    logger = get_run_logger()
    reason = folder / ".vdm" / "reason.json"
    reason.unlink(missing_ok=True)
    os.environ["VDM_REASON"] = str(reason)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage, *(["--force"] if force else [])]
    progress = artifacts.Progress(folder) if stage == "train" else None
    with process_group(command, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            logger.info(line.rstrip())
            if progress:
                progress.read(line)
    if process.returncode == 0:
        return None
    unknown = {"message": "see the log", "code": Exit.BUG, "network": False}
    told: dict[str, Any] = json.loads(reason.read_text()) if reason.exists() else unknown
    kind = NetworkError if told["network"] else UserError
    error = kind(f"stage {stage} failed: {told['message']}", Exit(told["code"]))
    # Returned, not raised: a traceback would tell the operator nothing.
    return Failed(message=str(error), data=error)


@task(name="publish", cache_policy=NO_CACHE, retries=2, retry_condition_fn=is_network, retry_delay_seconds=[2, 30])
def publish_versions(root: Path) -> State[None] | None:
    """Push what the remotes lack: bytes, branches, tags."""
    try:
        for tag in publishing.publish(root):
            get_run_logger().info("published %s", tag)
    except UserError as error:
        return Failed(message=str(error), data=error)
    return None


def record(place: Workspace) -> str:
    """Commit the results on the run's branch; what came of it in a line."""
    metrics = json.loads((place.folder / "reports/evaluation/metrics.json").read_bytes())
    result = f"{metrics['bpd']:.4f} +- {metrics['bpd_standard_error']:.4f} bits/dim"
    card = (place.folder / "models/vdm/README.md").read_bytes()
    (place.folder / "reports/card.md").write_bytes(card)  # the model's own is DVC's, not git's
    made = commit(place, f"Retrain: {result}")
    if made is None:
        return f"nothing new: {result}, as in commit {place.base[:12]}"
    get_run_logger().info("%s is commit %s on branch %s", result, made[:12], place.branch)
    return f"{result}, commit {made[:12]} on branch {place.branch}"


def main() -> int:
    """Run the flow here and now, without a deployment; vdmctl's exit codes."""
    state = train_vdm(return_state=True)
    error = state.result(raise_on_failure=False)
    return error.code if isinstance(error, UserError) else int(not state.is_completed())


if __name__ == "__main__":
    sys.exit(main())
