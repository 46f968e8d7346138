"""Remove what an installation no longer needs: `vdmctl prune`.

The last champions and the newest versions stay, with everything that they need.  Branches and tags are deleted before
the files that they name: an interruption between the two leaves files that nothing names, which the next `vdmctl prune`
finds.  The other order would leave versions that cannot be fetched or published.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError, brief
from flows.core.files import SCRATCH
from flows.core.folders import remove
from flows.orchestration import workspace
from flows.orchestration.server import Api, Refused, answers, require_server
from flows.orchestration.status import CONCLUDED, Entry, address, all_runs, size_of
from flows.process.groups import processes_in
from flows.process.locks import folder_of_devices, held_locks
from flows.registry.cache import cache_locked, delete_files, superfluous
from flows.registry.git import Tag, git_lines, git_text, registry_lock, require_top
from flows.registry.lock_file import read_lock
from flows.registry.pruning import BRANCHES, TAGS, Plan, delete_refs, make_plan, published
from flows.registry.remote import REMOTE

ABANDONED_DAYS = 14
"""A state that was not continued for this long is abandoned: a weekly schedule had two chances to continue it."""
DELETE_SECONDS = 30.0
"""How long the server may take to delete a run, whose log it deletes, too."""
MD5 = re.compile("[0-9a-f]{32}")


@dataclass
class Pruning:
    """The JSON object of `vdmctl prune`: what it removes, or with `dry_run` would remove, and what it found."""

    dry_run: bool
    keep: int
    removed: Entry = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def remove(self, kind: str, names: list[str], size: int | None, remove: Callable[[], object]) -> None:
        """Note things of one kind with their bytes on disk (None if they are unknown), and remove them."""
        self.removed[kind] = {"count": len(names), "bytes": size, "names": names}
        if names and not self.dry_run:
            remove()

    def remove_folders(self, kind: str, folders: list[Path]) -> None:
        """Note folders, and remove them."""

        def delete() -> None:
            for folder in folders:
                remove(folder)

        self.remove(kind, [folder.name for folder in folders], sum(map(size_of, folders)), delete)


def prune(root: Path, *, keep: int, dry_run: bool) -> Entry:
    """Remove what the last `keep` champions and the `keep` newest versions do not need; return it as a JSON object.

    Its `skipped` and `problems` say what was left alone and why; only `problems` are faults.

    Raises UserError: exit 5 outside a repository with git and DVC, 6 while a run or a DVC command is in progress,
    2 below the top of a repository and for a wrong VDM_LOCK_DIR.
    """
    locks_of_devices = folder_of_devices()
    require_top(root)
    root, *others = worktrees(root)
    work = Pruning(keep=keep, dry_run=dry_run)
    require_idle([root, *others])
    with ExitStack() as stack:
        repos = [stack.enter_context(cache_locked(each)) for each in (root, *others)]
        stack.enter_context(registry_lock(root))
        left = sorted(workspace.left_behind(root))
        work.remove("worktrees", [one.name for one in left], sum(map(size_of, left)), lambda: workspace.prune(root))
        plan = prune_registry(root, work, keep)
        prune_cache([root, *others], repos, work, plan)
        work.remove_folders("reports", list(old_reports(root, plan)))
        work.remove_folders("fetched_models", list(old_models(root, plan)))
        prune_states(root, work, locks_of_devices)
    prune_history(root, work, keep)
    return vars(work)


def worktrees(root: Path) -> list[Path]:
    """Return the worktree to prune, and then the others in which DVC is set up, which may share its cache.

    The first is the main worktree, or the one at `root` if the repository is bare.  Worktrees of runs are left out.
    Raises UserError (exit 2) if git does not list the main worktree, and `root` is another one.
    """
    listed = git_lines(root, "worktree", "list", "--porcelain")
    folders = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    first, is_bare = folders[0], "bare" in listed
    if is_bare or not (first / ".git").exists():
        # In a submodule, and after `git clone --separate-git-dir`, git lists the folder of its own files in its place.
        first = Path(git_text(root, "rev-parse", "--show-toplevel"))
        if not is_bare and git_text(root, "rev-parse", "--git-dir") != git_text(root, "rev-parse", "--git-common-dir"):
            raise UserError(f"{root}: git does not say where the main worktree is; prune there", Exit.USAGE)
    of_runs = (first / layout.WORKTREES).resolve()  # git resolves links
    apart = [each for each in folders if each != first and not each.is_relative_to(of_runs)]
    return [first, *(each for each in apart if (each / ".dvc").is_dir())]


def require_idle(folders: list[Path]) -> None:
    """Raise UserError (exit 6) if a run or an experiment works in a worktree: it may use any file of the cache."""
    for folder in folders:
        for name, holder in sorted(held_locks(folder / layout.WORKTREES).items()):
            raise UserError(f"run {Path(name).stem} is in progress ({holder}); prune when it has ended", Exit.BUSY)
        for place in (folder / layout.WORKTREES, folder / ".dvc/tmp/exps"):
            for process in processes_in(place):
                raise UserError(f"process {process} works in {place}; prune when it has ended", Exit.BUSY)


def prune_registry(root: Path, work: Pruning, keep: int) -> Plan:
    """Delete refused versions and branches of runs that are not kept; return what is kept.

    Raises UserError (exit 6) if a run started meanwhile.
    """
    try:
        theirs = published(root)
    except NetworkError as error:
        theirs = {}
        work.problems.append(f"every version and branch stays, since {REMOTE} does not say what it has: {error}")
    plan = make_plan(root, keep, theirs)
    require_idle([root])  # a run that started meanwhile has a branch, which may be in the plan
    work.kept = dict(sorted(plan.versions.values()))
    for kind, prefix in (("branches", BRANCHES), ("versions", TAGS)):
        chosen = [ref for ref in plan.refs if ref.name.startswith(prefix)]
        names = [ref.name.removeprefix(prefix) for ref in chosen]
        work.remove(kind, names, None, partial(delete_refs, root, chosen))
    return plan


def prune_cache(folders: list[Path], repos: list[Any], work: Pruning, plan: Plan) -> None:
    """Delete the files in the cache of the first worktree that nothing in any of them needs.

    Raises UserError (exit 6) if a run starts meanwhile.
    """
    try:
        paths, num_unpushed = superfluous(repos, folders[0], plan)
    except UserError as error:
        work.problems.append(f"DVC's cache is not pruned: {error}")
        return
    if num_unpushed:
        reason = "the DVC remote lacks them; a run with publish=true pushes them"
        work.skipped.append(f"{num_unpushed} files of earlier champions: {reason}")
    size = sum(path.stat().st_size for path in paths)
    names = [path.parent.name + path.name for path in paths]
    # A run that starts now may use a file that is about to go, so look again.
    work.remove("cached_files", names, size, lambda: delete_files(paths, lambda: require_idle(folders)))


def old_reports(root: Path, plan: Plan) -> Iterator[Path]:
    """Yield the reports of runs without a kept commit that are not newer than the newest version."""
    for folder in folders_in(root / layout.RUN_REPORTS):
        if folder.name not in plan.runs and last_written(folder) <= plan.since:
            yield folder


def old_models(root: Path, plan: Plan) -> Iterator[Path]:
    """Yield the fetched folders that are no output of a version that stays, and those that were not fetched whole."""
    folders = folders_in(root / layout.FETCHED)
    needed: set[str] = set()
    for commit, version in plan.versions.items() if folders else ():  # each starts git twice
        with suppress(UserError):  # a version without a readable dvc.lock cannot have been fetched
            needed |= set(read_lock(root, Tag(version.name, commit)).outputs.values())
    yesterday = time.time() - 24 * 3600
    for folder in folders:
        unfinished = folder.name.startswith(SCRATCH) and folder.stat().st_mtime < yesterday
        if unfinished or (MD5.fullmatch(folder.name) and f"{folder.name}.dir" not in needed):
            yield folder


def prune_states(root: Path, work: Pruning, locks_of_devices: Path) -> None:
    """Remove abandoned states of training runs, and say what they are, unless a trainer of the project runs."""
    before = time.time() - ABANDONED_DAYS * 24 * 3600
    folders = [folder for folder in folders_in(root / layout.STATES) if last_written(folder) < before]
    described = [describe(folder) for folder in folders]  # takes seconds, in which a trainer may start
    for name, holder in held_locks(locks_of_devices).items():
        if Path(holder.partition(" in ")[2]).is_relative_to(root):  # "process 1234 in FOLDER"
            work.skipped.append(f"training states: {holder} trains on {Path(name).stem}")
            return
    work.remove_folders("training_states", folders)
    work.removed["training_states"]["states"] = described


def folders_in(parent: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without links."""
    return sorted(folder for folder in parent.glob("*/") if not folder.is_symlink())


def last_written(folder: Path) -> float:
    """Return when the newest file below the folder was written, in seconds since 1970; 0 without files.

    The folder's own time would be that of an interrupted removal.
    """
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)


def describe(folder: Path) -> Entry:
    """Return what a folder's newest state says about its run.

    A state does not hold the parameters of its run; width and blocks can be derived from the weights.
    """
    from flows.core.checkpoint import load_state  # torch: a second, which the rest of `prune` does not need
    from vdm.training.log import TrainingRecord

    found: Entry = {"name": folder.name, "written": int(last_written(folder))}
    paths = sorted(folder.glob("step-*.state"))
    if not paths:
        return found | {"problem": "no state"}
    try:
        state = load_state(paths[-1])
        model = state["model"]
        # Records of older versions end earlier.
        last = dict(zip(TrainingRecord._fields, state["records"][-1], strict=False)) if state["records"] else None
        return found | {
            "step": int(state["done"]),
            "weights": sum(tensor.numel() for tensor in model.values()),
            "width": len(model["network.conv_in.bias"]),
            "blocks": len({name.split(".")[2] for name in model if name.startswith("network.down.")}),
            "learning_rate": float(last["learning_rate"]) if last else None,
            "bpd": float(last["bpd"]) if last else None,
        }
    except (UserError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return found | {"problem": f"unreadable: {brief(error)}"}


def prune_history(root: Path, work: Pruning, keep: int) -> None:
    """Delete all but the newest `keep` ended runs from the history of the folder's Prefect server, if it answers.

    Cancelled runs are counted apart: with many of them, `status` would no longer find the last run that failed.
    """
    url = address(root)
    if not url or not answers(url):
        why = f"no server answers at {url}" if url else f"{root} is not served, and PREFECT_API_URL names no server"
        work.skipped.append(f"Prefect's history: {why}")
        return
    try:
        require_server(url)
        api = Api(url, DELETE_SECONDS)
        kinds = [all_runs(api, *states, sort="END_TIME_DESC") for states in (CONCLUDED, ["CANCELLED"])]
        ended = [run for runs in kinds for run in runs[keep:]]
        work.remove("prefect_runs", [run["name"] for run in ended], None, partial(delete_runs, api, ended))
    except UserError as error:
        work.problems.append(f"Prefect's history: {error}")
    except OSError as error:
        work.problems.append(f"Prefect's history at {url}: {brief(error)}")


def delete_runs(api: Api, ended: list[Entry]) -> None:
    """Delete runs with their artifacts; the server then deletes their logs."""
    for run in ended:  # and its artifacts first: without their run nothing would lead to them
        of_run = {"flow_run_id": {"any_": [run["id"]]}}
        while page := api.ask("artifacts/filter", artifacts=of_run, limit=200):
            for artifact in page:
                delete(api, f"artifacts/{artifact['id']}")
        delete(api, f"flow_runs/{run['id']}")


def delete(api: Api, path: str) -> None:
    """Delete something at the server, if it is still there.  Raises OSError."""
    try:
        api.ask(path, "DELETE")
    except Refused as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
