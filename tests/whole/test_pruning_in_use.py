"""`vdmctl prune` in a project that is in use: by runs, DVC, other worktrees and a Prefect server."""

import errno
import gc
import os
import shutil
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch
from conftest import TINY
from dvc.fs import localfs
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import rwlock
from project import Project, cached, one_line
from pruned import LEFT, OLD, WEIGHTS, aged, cached_files, everything, names, prune, without_remotes

from flows.core.checkpoint import save_state
from flows.core.errors import Exit, UserError
from flows.core.params_file import read_params
from flows.orchestration import pruning
from flows.orchestration.pruning import Pruning, delete_runs, describe, prune_history, prune_states
from flows.orchestration.server import Api, Refused
from flows.process.ending import on_stop
from flows.process.locks import holder_of, lock_file
from flows.registry.cache import BETWEEN_CHECKS, delete_files, held_back, needed, superfluous, used_in
from flows.registry.pruning import delete_refs, make_plan
from flows.registry.storage import dvc_repository
from flows.training.fitting import build
from flows.training.fitting import resolve as settings_of

# The versions are trained when the first test asks for them.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("no_server")]


@pytest.fixture
def project(copied: Project) -> Project:
    """Return a project without remotes whose champion is v1.1.0, and which refused v1.0.0."""
    return without_remotes(copied)


def test_an_error_names_the_folder_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").touch()

    def refuse(name: str, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", name)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(OSError, match="Input/output error") as error:
        Pruning(dry_run=False, keep=1).remove_folders("reports", [tmp_path / "run"])
    assert error.value.filename == str(tmp_path / "run")


# SIGTERM comes when DVC has emptied its file `rwlock`, and before it has written it.
AT_RWLOCK = """
import os, signal
from dvc import rwlock
from flows import cli
write, calls = rwlock.json.dump, []
def interrupted(*arguments, **options):
    calls.append(arguments)
    if len(calls) == CALL:
        os.kill(os.getpid(), signal.SIGTERM)
    return write(*arguments, **options)
rwlock.json.dump = interrupted
cli.main()
"""


@pytest.mark.parametrize("call", [1, 2])  # the lock is taken, and released
def test_a_prune_that_is_stopped_leaves_no_half_of_dvcs_lock(call: int, tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    stopped = project.run(sys.executable, "-c", AT_RWLOCK.replace("CALL", str(call)), "prune")
    assert (stopped.returncode, one_line(stopped)) == (75, "vdmctl: stopped; run again")
    again = project.new_vdmctl("prune")
    assert again.returncode == 0, again.stderr


def test_a_signal_that_was_held_back_counts_although_dvc_failed() -> None:
    received: list[int] = []

    def failing() -> None:
        signal.raise_signal(signal.SIGINT)
        assert not received
        raise LockError("the lock is held")

    with on_stop(lambda number, frame: received.append(number)), pytest.raises(LockError), held_back():
        failing()
    assert received == [signal.SIGINT]


def test_a_clone_that_lacks_files_is_not_pruned(project: Project, tmp_path: Path) -> None:
    project.git("config", "uploadpack.allowFilter", "true")
    clone = Project.at(tmp_path / "clone")
    project.git(
        "clone", "--quiet", "--no-checkout", "--filter=blob:none", f"file://{project.folder}", str(clone.folder)
    )
    with dvc_repository(project.folder) as repo, pytest.raises(UserError, match="--refetch") as error:
        needed(repo, clone.folder, make_plan(clone.folder, 1, None))
    assert error.value.code is Exit.MISSING


@pytest.mark.parametrize(
    ("busy", "message"),
    [
        ("run", "run 20260101-000000-aaaa is in progress (process 7); prune when it has ended"),
        ("experiment", "exps; prune when it has ended"),
        ("dvc", "another DVC command is running"),
        ("stage", "another DVC command is running; wait for it, or if none is, delete "),
    ],
)
def test_while_something_works_nothing_is_removed(
    busy: str, message: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project.folder / {"run": ".vdm/worktrees", "experiment": ".dvc/tmp/exps"}.get(busy, ".vdm")
    folder.mkdir(parents=True)
    before = everything(project)
    with ExitStack() as stack:
        if busy == "run":
            stack.enter_context(lock_file(folder / "20260101-000000-aaaa.lock", "process 7"))
            before.add(str(folder / "20260101-000000-aaaa.lock"))
        elif busy == "experiment":
            monkeypatch.setattr(pruning, "processes_in", lambda place: [7] if place.resolve() == folder else [])
        elif busy == "dvc":
            stack.enter_context(stack.enter_context(Repo(str(project.folder))).lock)
        else:  # DVC's own lock is free while a stage runs
            paths = [str(project.folder / "params.yaml")], [str(project.folder / "models/trained")]
            stack.enter_context(rwlock(str(project.folder / ".dvc/tmp"), localfs, "dvc repro", *paths, False))
        result = project.vdmctl("prune", "--keep=1")
    assert (result.returncode, result.stdout) == (Exit.BUSY, "")
    assert message in one_line(result)
    assert everything(project) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # DVC leaves its lock open
def test_a_disk_without_room_for_dvcs_lock_is_named(project: Project, full_disk: Path) -> None:
    (full_disk / "filler").write_bytes(bytes(256 * 1024))
    shutil.rmtree(project.folder / ".dvc" / "tmp")
    (project.folder / ".dvc" / "tmp").symlink_to(full_disk)
    result = project.vdmctl("prune")
    assert result.returncode == Exit.MISSING
    assert "/.dvc/tmp: DVC cannot write its lock: No space left on device; on a full disk, delete" in one_line(result)
    gc.collect()  # before the disk is unmounted


def test_a_lock_of_dvc_that_was_cut_short_is_to_be_deleted(project: Project) -> None:
    lock = project.folder / ".dvc/tmp/rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text('{"cut')
    result = project.vdmctl("prune")
    assert result.returncode == Exit.MISSING
    assert f"; if no DVC command runs, delete {lock}, which" in one_line(result)


def test_a_run_that_starts_meanwhile_loses_no_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches and tags are gone then, and the next prune removes the files that they named."""
    before = cached_files(project)
    weights = [cached(project, *WEIGHTS, version) for version in ("v1.0.0", "v1.1.0", "v1.2.0")]
    with ExitStack() as stack:

        def start(*arguments: Any) -> list[Path]:
            (project.folder / ".vdm/worktrees").mkdir(parents=True)
            stack.enter_context(lock_file(project.folder / ".vdm/worktrees/new.lock", "process 7"))
            return superfluous(*arguments)

        monkeypatch.setattr(pruning, "superfluous", start)
        result = project.vdmctl("prune", "--keep=1")
    assert result.returncode == Exit.BUSY
    assert "run new is in progress" in one_line(result)
    assert cached_files(project) == before
    assert "vdm@v1.0.0" not in project.git("tag")
    monkeypatch.setattr(pruning, "superfluous", superfluous)
    assert prune(project)["removed"]["cached_files"]["count"] > 0
    assert [path.exists() for path in weights] == [False, True, True]


def test_a_run_that_starts_before_anything_is_chosen_keeps_its_branch(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:

        def start(root: Path) -> None:
            (root / ".vdm/worktrees").mkdir(parents=True)
            stack.enter_context(lock_file(root / ".vdm/worktrees/new.lock", "process 7"))
            project.git("branch", "runs/new", "vdm@v1.0.0^{commit}")

        monkeypatch.setattr(pruning, "published", start)
        result = project.vdmctl("prune", "--keep=1")
    assert result.returncode == Exit.BUSY
    assert "run new is in progress" in one_line(result)
    assert "runs/new" in project.git("branch", "--format=%(refname:short)").split()


def test_a_repository_that_dvcs_libraries_cannot_read_is_one_line(tmp_path: Path) -> None:
    def used_objs(**_: Any) -> None:
        try:
            raise KeyError("refstorage")
        except KeyError as cause:
            raise RuntimeError("unsupported extension") from cause

    repo = SimpleNamespace(root_dir=str(tmp_path), used_objs=used_objs)
    with pytest.raises(UserError, match=r"what is in use in .*: unsupported extension: 'refstorage'$") as raised:
        used_in(repo)
    assert raised.value.code is Exit.MISSING


def test_a_cache_that_other_projects_may_use_is_left_alone(project: Project, tmp_path: Path) -> None:
    shutil.move(project.folder / ".dvc/cache", tmp_path / "shared")
    project.dvc("cache", "dir", "--local", str(tmp_path / "shared"))
    before = set((tmp_path / "shared").rglob("*"))
    result = project.vdmctl("prune", "--keep=1")
    assert result.returncode == Exit.MISSING
    assert "is outside the repository" in one_line(result)
    assert before <= set((tmp_path / "shared").rglob("*"))


def training_state(project: Project) -> dict[str, Any]:
    """Return the state of a run of the project's parameters after its first step."""
    torch.manual_seed(0)
    images = torch.randint(0, 17, (64, 1, 8, 8), dtype=torch.uint8)
    train = read_params(project.folder / "params.yaml").train.model_copy(update={"log_every": 1})
    trainer = build(TINY, settings_of(train, torch.device("cpu")), images, None)
    trainer.step()
    return trainer.state()


def test_worktrees_of_runs_may_be_on_another_disk(project: Project, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (project.folder / ".vdm").mkdir(exist_ok=True)
    (project.folder / ".vdm/worktrees").symlink_to(tmp_path / "disk")
    project.git("worktree", "add", "--quiet", "-b", f"runs/{LEFT}", f".vdm/worktrees/{LEFT}")
    assert names(prune(project, "--dry-run"))["worktrees"] == [LEFT]
    assert names(prune(project))["worktrees"] == [LEFT]
    assert not list((tmp_path / "disk").iterdir())


def test_states_that_nobody_continued_are_shown_and_removed(tmp_path: Path) -> None:
    """A state of yesterday stays, and every state while a trainer of this project works."""
    project = Project(tmp_path / "project")
    runs = project.folder / ".vdm/runs"
    for name, days in {"old": 15, "new": 13, "damaged": 15}.items():
        path = runs / name / "step-000000001.state"
        path.parent.mkdir(parents=True)
        save_state(path, training_state(project))
        if name == "damaged":
            path.write_bytes(path.read_bytes()[:-1])
        aged(path, days * 24 * 3600)
    with lock_file(project.folder / ".vdm/cpu.lock", f"process 7 in {project.folder}/.vdm/worktrees/x"):
        found = prune(project)
        assert "training_states" not in found["removed"]
        assert "process 7" in found["skipped"][0]
    with lock_file(project.folder / ".vdm/cpu.lock", "process 7 in /elsewhere"):
        damaged, old = prune(project, "--dry-run")["removed"]["training_states"]["states"]
        planned = project.vdmctl("prune", "--dry-run").stdout
        text = project.vdmctl("prune").stdout
    assert planned.split("\n")[0].split() == ["what", "would", "be", "removed", "MB"]
    assert text.split("\n")[0].split() == ["what", "removed", "MB"]
    assert "truncated or damaged" in damaged["problem"]
    weights = sum(tensor.numel() for tensor in training_state(project)["model"].values())
    known = {"name": "old", "step": 1, "weights": weights, "width": 8, "blocks": 1}
    assert {key: old[key] for key in known} == known
    assert f"step 1, width 8, blocks 1, {weights:,} weights, learning rate {old['learning_rate']:g}" in text
    assert f"{old['bpd']:.4f} bits/dim" in text
    assert [path.name for path in runs.iterdir()] == ["new"]


def test_a_state_of_an_older_version_whose_records_end_earlier_is_described(tmp_path: Path) -> None:
    save_state(
        tmp_path / "step-000000018.state",
        {
            "done": 18,
            "model": {"network.conv_in.bias": torch.zeros(8), "network.down.0.norm.bias": torch.zeros(8)},
            "records": [(15, 6.25, 0.0, 0.125, 6.125, -7.0, 5.0, 1.0, 0.0005, 506.0)],
        },
    )
    found = describe(tmp_path)
    assert "problem" not in found
    assert [found[key] for key in ("step", "width", "blocks", "learning_rate", "bpd")] == [18, 8, 1, 0.0005, 6.25]


def test_a_trainer_that_starts_while_states_are_described_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / ".vdm/runs/old/step-000000001.state"
    state.parent.mkdir(parents=True)
    state.touch()
    aged(state, 15 * 24 * 3600)
    with ExitStack() as stack:

        def claimed(folder: Path) -> dict[str, Any]:
            stack.enter_context(lock_file(tmp_path / "cpu.lock", f"process 7 in {tmp_path}"))
            return {"name": folder.name}

        monkeypatch.setattr(pruning, "describe", claimed)
        work = Pruning(dry_run=False, keep=1)
        prune_states(tmp_path, work, tmp_path)
    assert work.skipped == [f"training states: process 7 in {tmp_path} trains on cpu"]
    assert state.exists()


def test_a_server_that_this_folder_did_not_start_keeps_its_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that of another folder, at Prefect's usual port."""
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    asked = []

    def refuse(address: tuple[str, int], *_: object, **__: object) -> None:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    work = Pruning(keep=1, dry_run=False)
    prune_history(tmp_path, work, 1)
    assert asked == []
    assert (work.removed, work.problems) == ({}, [])
    assert work.skipped == [f"Prefect's history: {tmp_path} is not served, and PREFECT_API_URL names no server"]

    (tmp_path / ".vdm").mkdir()
    with lock_file(tmp_path / ".vdm/serve.lock", "7 http://127.0.0.1:4201/api"):
        prune_history(tmp_path, work, 1)
    assert asked == [("127.0.0.1", 4201)]
    assert work.skipped[1:] == ["Prefect's history: no server answers at http://127.0.0.1:4201/api"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["--keep=0"], Exit.USAGE, "--keep"), ([], Exit.MISSING, "not a git repository")],
)
def test_bad_input_is_one_line(arguments: list[str], code: Exit, message: str, tmp_path: Path) -> None:
    result = Project.at(tmp_path).vdmctl("prune", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in one_line(result)


def test_a_worktree_elsewhere_or_of_a_bare_repository_is_pruned_too(project: Project, tmp_path: Path) -> None:
    for entry in (project.folder / ".dvc/cache/runs").glob("*/*/*"):
        aged(entry, -3600)  # newer than the newest version, so that DVC looks for its stage
    project.git("worktree", "add", "--quiet", "-b", "mine", str(tmp_path / "mine"))
    assert prune(Project.at(tmp_path / "mine"), "--dry-run")["removed"] == prune(project, "--dry-run")["removed"]
    bare, linked = Project.at(tmp_path / "vdm.git"), Project.at(tmp_path / "linked")
    project.git("clone", "--quiet", "--bare", ".", str(bare.folder))
    bare.git("worktree", "add", "--quiet", str(linked.folder), "main")
    shutil.copytree(project.folder / ".dvc" / "cache", linked.folder / ".dvc" / "cache")
    assert prune(linked, "--dry-run")["problems"] == []
    apart = Project.at(tmp_path / "apart")
    project.git("clone", "--quiet", "--separate-git-dir", str(tmp_path / "apart.git"), ".", str(apart.folder))
    shutil.copytree(project.folder / ".dvc" / "cache", apart.folder / ".dvc" / "cache")
    assert prune(apart, "--dry-run")["problems"] == []
    apart.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "second"))
    refused = Project.at(tmp_path / "second").vdmctl("prune", "--dry-run")
    assert (refused.returncode, "git does not say where the main worktree is" in refused.stderr) == (Exit.USAGE, True)


def test_what_another_worktree_needs_stays_and_its_run_is_waited_for(project: Project, tmp_path: Path) -> None:
    """It shares the cache of the main one, and has results that are not committed."""
    mine = Project.at(tmp_path / "mine")
    project.git("worktree", "add", "--quiet", "--detach", str(mine.folder), "HEAD")
    mine.dvc("cache", "dir", "--local", str(project.folder / ".dvc/cache"))
    mine.edit("params.yaml", **{"split_seed: 1": "split_seed: 2"})
    for stage in ("download", "validate"):
        assert mine.vdmctl(stage).returncode == 0
        mine.dvc("commit", "--force", stage)
    listed = prune(project)["removed"]["cached_files"]["count"]
    assert listed > 0  # those of v1.0.0
    shutil.rmtree(mine.folder / "data" / "images")
    mine.dvc("checkout", "download")  # from the cache, which has all of its files
    run = mine.folder / ".vdm/worktrees/new.lock"
    run.parent.mkdir(parents=True)
    with lock_file(run, "process 7"):
        for folder in (project, mine):
            result = folder.vdmctl("prune", "--keep=1")
            assert result.returncode == Exit.BUSY
            assert "run new is in progress" in one_line(result)


def test_a_branch_that_moved_meanwhile_is_not_deleted_nor_anything_else(project: Project) -> None:
    project.git("branch", f"runs/{OLD}", "vdm@v1.0.0^{commit}")
    plan = make_plan(project.folder, 1, None)
    project.git("branch", "--force", f"runs/{OLD}", "main")
    with pytest.raises(UserError) as raised:
        delete_refs(project.folder, plan.refs)
    assert raised.value.code is Exit.MISSING
    left = project.git("for-each-ref", "--format=%(refname)").split()
    assert {f"refs/heads/runs/{OLD}", "refs/tags/vdm@v1.0.0"} <= set(left)


def test_a_run_that_somebody_else_deleted_meanwhile_does_not_end_the_pruning() -> None:
    left = {"flow_runs/2", "flow_runs/3"}

    def ask(path: str, method: str = "POST", **_: Any) -> list[Any]:
        if method == "DELETE" and path not in left:
            raise Refused("404 Not Found", 404)
        left.discard(path)
        return []

    delete_runs(cast(Api, Mock(ask=ask)), [{"id": "1"}, {"id": "2"}, {"id": "3"}])
    assert left == set()


def test_what_goes_is_chosen_under_the_registrys_lock(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion meanwhile could make a version the champion whose files are about to go."""
    held = []

    def choose(root: Path, *_: object) -> None:
        held.append(holder_of(root / ".git/vdm-registry.lock"))
        raise UserError("enough", Exit.BUSY)

    monkeypatch.setattr(pruning, "prune_registry", choose)
    with pytest.raises(UserError, match="enough"):
        pruning.prune(copied.folder, keep=1, dry_run=False)
    assert held == [""]


def test_a_run_that_starts_while_files_are_deleted_keeps_the_rest(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(BETWEEN_CHECKS + 1)]
    for path in paths:
        path.touch()
    with pytest.raises(UserError):
        delete_files(paths, Mock(side_effect=[None, UserError("a run is in progress", Exit.BUSY)]))
    assert [path for path in paths if path.exists()] == paths[BETWEEN_CHECKS:]
