"""`vdmctl prune` with real git, DVC and Prefect.  No test may reach a server that runs on this machine."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch
from champions import crown
from conftest import TINY
from dvc.fs import localfs
from dvc.repo import Repo
from dvc.rwlock import rwlock
from project import Project, cached, one_line
from ruamel.yaml import YAML

from flows.core.checkpoint import save_state
from flows.core.errors import Exit, UserError
from flows.core.params_file import read_params
from flows.orchestration import pruning
from flows.orchestration.pruning import Pruning, delete_runs, prune_history
from flows.orchestration.server import Api, Refused
from flows.process.locks import holder_of, lock_file
from flows.registry.cache import BETWEEN_CHECKS, DIGEST, delete_files, needed, superfluous, used_in
from flows.registry.pruning import delete_refs, make_plan
from flows.registry.publishing import publish
from flows.registry.storage import dvc_repository
from flows.registry.verification import verify
from flows.registry.versions import add_version, record_refusal, resolve
from flows.training.fitting import build
from flows.training.fitting import resolve as settings_of

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)

WEIGHTS = ("models/vdm", "weights.safetensors")
MINE = ("tag", "--annotate", "--message=Mine")
OLD, MADE, FAILED, LEFT = (f"20250101-00000{number}-aaaa" for number in range(4))


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")


@pytest.fixture
def project(copied: Project) -> Project:
    """Return a project without remotes whose champion is v1.1.0, and which refused v1.0.0."""
    copied.dvc("remote", "remove", "store")
    refuse(copied, "v1.0.0")
    crown(copied, "v1.1.0")
    return copied


def refuse(project: Project, reference: str) -> None:
    record_refusal(project.folder, resolve(project.folder, reference), "Refuse\n\n{}\n")


def prune(project: Project, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Prune with --keep 1; return what the command prints."""
    result = project.vdmctl("prune", "--keep=1", "--json", *arguments)
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def names(found: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of what was removed, by kind, without the cached files."""
    return {kind: part["names"] for kind, part in found["removed"].items() if kind != "cached_files" and part["names"]}


def everything(project: Project) -> set[str]:
    """Return all branches, tags, cached files and private files."""
    files = [path for name in (".dvc/cache", ".vdm") for path in (project.folder / name).rglob("*")]
    return {*project.git("for-each-ref", "--format=%(refname)").split(), *map(str, files)}


def cached_files(project: Project) -> set[Path]:
    return {path for path in (project.folder / ".dvc/cache/files").rglob("*") if path.is_file()}


def report(project: Project, run: str, age: float) -> None:
    """Write the report of a run, `age` seconds ago."""
    file = project.folder / ".vdm/reports" / run / "card.md"
    file.parent.mkdir(parents=True)
    file.write_text("card")
    aged(file, age)


def aged(path: Path, seconds: float) -> None:
    """Make a file look as if it was written some seconds ago."""
    os.utime(path, (time.time() - seconds,) * 2)


def digest_of(project: Project, version: str, stage: str) -> str:
    """Return the md5 in dvc.lock of the first output of a stage."""
    lock = YAML(typ="safe").load(project.git("show", f"vdm@{version}:dvc.lock"))
    return str(lock["stages"][stage]["outs"][0]["md5"])


def clutter(project: Project) -> None:
    """Make a newest version by a run; leave branches, reports, a worktree and fetched models of it and of others."""
    project.git("branch", f"runs/{OLD}", "vdm@v1.0.0^{commit}")
    project.git("switch", "--quiet", "--create", f"runs/{MADE}")
    project.git("commit", "--quiet", "--allow-empty", f"--message=Retrain\n\nRun: {MADE}")
    add_version(project.folder, "HEAD", "Retrained")
    project.git("switch", "--quiet", "main")
    for version in ("v1.2.0", "v1.3.0"):
        refuse(project, version)
    for run, age in {OLD: 3600, MADE: 3600, FAILED: -60}.items():
        report(project, run, age)
    project.git("worktree", "add", "--quiet", "-b", f"runs/{LEFT}", f".vdm/worktrees/{LEFT}")
    (project.folder / ".vdm/worktrees/never.lock").touch()
    for version in ("v1.0.0", "v1.1.0"):
        md5 = digest_of(project, version, "register").removesuffix(".dir")
        (project.folder / ".vdm/models" / md5).mkdir(parents=True)


def test_what_the_champion_and_the_newest_version_do_not_need_goes(project: Project) -> None:
    clutter(project)
    refused, champion, newest = (cached(project, *WEIGHTS, version) for version in ("v1.0.0", "v1.1.0", "v1.3.0"))
    fetched = digest_of(project, "v1.0.0", "register").removesuffix(".dir")
    before, size = everything(project), refused.stat().st_size

    planned = prune(project, "--dry-run")
    listings = [name.endswith(".dir") for name in planned["removed"]["cached_files"]["names"]]
    assert listings[0]
    assert listings == sorted(listings, reverse=True)  # they go before the files that they name
    assert everything(project) == before
    assert planned["kept"] == {"vdm@v1.1.0": "among the last champions", "vdm@v1.3.0": "among the newest"}
    found = prune(project)
    assert names(found) == {
        "worktrees": [LEFT, "never"],
        "branches": [f"runs/{OLD}"],
        "versions": ["vdm@v1.0.0", "vdm@v1.2.0"],
        "reports": [OLD],
        "fetched_models": [fetched],
    }
    assert found["removed"]["cached_files"] == planned["removed"]["cached_files"]
    assert found["removed"]["cached_files"]["bytes"] >= size
    assert not refused.exists()
    assert champion.exists()
    assert newest.exists()
    for version in ("champion", "v1.3.0"):
        assert project.vdmctl("verify", version).returncode == 0  # nothing can be fetched: there is no remote
    assert project.git("tag").split() == ["vdm#champion#1", "vdm@v1.1.0", "vdm@v1.3.0"]
    assert project.git("branch", "--format=%(refname:short)").split() == ["main", f"runs/{MADE}"]
    assert len(project.git("notes", "--ref=vdm-refusals", "list").splitlines()) == 3
    assert {path.name for path in (project.folder / ".vdm/reports").iterdir()} == {MADE, FAILED}
    assert project.git("status", "--porcelain", "--", ".", ":!.dvc/config") == ""

    assert {kind for kind, part in prune(project)["removed"].items() if part["count"]} == set()
    assert "nothing" in project.vdmctl("prune", "--keep=1").stdout


def test_more_is_kept_of_more_versions(project: Project) -> None:
    result = project.vdmctl("prune", "--keep=3", "--json")
    assert result.returncode == 0, result.stderr
    assert names(json.loads(result.stdout)) == {}
    for version in ("v1.0.0", "v1.1.0", "v1.2.0"):
        assert cached(project, *WEIGHTS, version).exists()


def test_an_old_champion_keeps_its_tag_and_loses_its_files(project: Project) -> None:
    crown(project, "v1.0.0")
    crown(project, "v1.2.0")
    weights = [cached(project, *WEIGHTS, version) for version in ("v1.0.0", "v1.1.0", "v1.2.0")]
    assert names(prune(project)) == {}
    assert [path.exists() for path in weights] == [False, False, True]
    assert project.vdmctl("verify", "champion").returncode == 0


def test_files_of_an_old_champion_stay_if_the_dvc_remote_lacks_them(project: Project, tmp_path: Path) -> None:
    """Nobody could fetch them again: `dvc push` was forgotten, or the remote lost them."""
    crown(project, "v1.0.0")
    crown(project, "v1.2.0")
    old, newer = (cached(project, *WEIGHTS, version) for version in ("v1.0.0", "v1.1.0"))
    project.dvc("remote", "add", "--default", "storage", str(tmp_path / "storage"))
    project.git("init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    project.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    project.git("push", "--quiet", "--all")
    project.git("push", "--quiet", "--tags")
    (kept,) = [line for line in prune(project)["skipped"] if "champions" in line]
    assert re.fullmatch(r"\d+ files of earlier champions: the DVC remote lacks them; a run with publish=true .*", kept)
    assert old.exists()
    assert newer.exists()
    publish(project.folder)
    prune(project)
    assert not old.exists()
    assert not newer.exists()
    assert verify(project.folder, resolve(project.folder, "v1.0.0"))  # which fetches them
    assert old.exists()


def test_nothing_is_pruned_from_the_cache_when_the_dvc_remote_does_not_answer(project: Project) -> None:
    crown(project, "v1.0.0")
    crown(project, "v1.2.0")
    before = cached_files(project)
    project.dvc("remote", "add", "--default", "storage", "/dev/null")
    (problem,) = prune(project, code=Exit.MISSING)["problems"]
    assert problem.startswith("DVC's cache is not pruned: the DVC remote does not answer: ")
    assert cached_files(project) == before


def test_the_champion_after_a_rollback_stays_and_so_does_the_one_before(project: Project) -> None:
    """v1.1.0, then v1.0.0, rolled back to v1.1.0: the last of the stack, and the last that were appointed."""
    crown(project, "v1.0.0")
    assert project.vdmctl("rollback").returncode == 0
    of = {version: project.git("rev-parse", f"vdm@{version}^{{commit}}").strip() for version in ("v1.0.0", "v1.1.0")}
    assert of["v1.1.0"] in make_plan(project.folder, 1, None).versions
    assert of["v1.0.0"] not in make_plan(project.folder, 1, None).versions
    assert set(of.values()) <= make_plan(project.folder, 2, None).versions.keys()


def test_a_version_that_nobody_decided_about_stays(copied: Project) -> None:
    kept = prune(copied, "--dry-run")["kept"]
    assert kept == {
        **dict.fromkeys(("vdm@v1.0.0", "vdm@v1.1.0"), "neither promoted nor refused"),
        "vdm@v1.2.0": "among the newest",
    }


def test_tags_of_other_things_and_lightweight_ones_are_left_alone(project: Project) -> None:
    """A tag of a file, as git's own repository has one, and a version's name without its annotation."""
    blob = project.git("rev-parse", "HEAD:params.yaml").strip()
    project.git("tag", "key", blob)
    project.git("tag", "--delete", "vdm@v1.0.0")
    commit = project.git("rev-list", "--max-parents=1", "--reverse", "main").split()[0]
    project.git("tag", "vdm@v3.0.0", commit)
    plan = make_plan(project.folder, 1, None)
    assert commit in {*plan.versions, *plan.others}
    prune(project)
    assert {"key", "vdm@v3.0.0"} <= set(project.git("tag").split())


def test_a_version_from_the_future_does_not_make_all_runs_old(project: Project) -> None:
    environment = {"GIT_COMMITTER_DATE": "@4102444800 +0000"}
    head = project.git("rev-parse", "vdm@v1.2.0^{commit}").strip()
    command = ["git", "tag", "--force", "--annotate", "--message=Later", "vdm@v1.2.0", head]
    subprocess.run(command, cwd=project.folder, env=project.environment | environment, check=True, capture_output=True)
    assert 0 < make_plan(project.folder, 1, None).since < time.time()


def test_a_clone_that_lacks_files_is_not_pruned(project: Project, tmp_path: Path) -> None:
    project.git("config", "uploadpack.allowFilter", "true")
    clone = Project.at(tmp_path / "clone")
    project.git(
        "clone", "--quiet", "--no-checkout", "--filter=blob:none", f"file://{project.folder}", str(clone.folder)
    )
    with dvc_repository(project.folder) as repo, pytest.raises(UserError, match="--refetch") as error:
        needed(repo, clone.folder, make_plan(clone.folder, 1, None))
    assert error.value.code is Exit.MISSING


def test_a_version_without_a_lock_keeps_no_fetched_model(project: Project) -> None:
    project.git("rm", "--quiet", "dvc.lock")
    project.git("commit", "--quiet", "--message=Without a lock")
    project.git("tag", "--annotate", "--message=By hand", "vdm@v1.2.1")
    project.git("reset", "--quiet", "--hard", "HEAD~1")
    for name in ("0" * 32, ".vdm-killed", ".vdm-now"):
        (project.folder / ".vdm/models" / name).mkdir(parents=True)
    os.utime(project.folder / ".vdm/models/.vdm-killed", (0, 0))
    found = prune(project)
    assert found["kept"]["vdm@v1.2.1"]
    assert names(found)["fetched_models"] == [".vdm-killed", "0" * 32]


@pytest.mark.parametrize(
    "reference", [("branch", "mine"), (*MINE, "vdm-mine"), (*MINE, "vdm@mine"), (*MINE, "vdm@v1.0.0-rc1")], ids=" ".join
)
def test_a_branch_or_tag_of_ones_own_keeps_its_files(reference: tuple[str, ...], project: Project) -> None:
    project.git(*reference, "vdm@v1.0.0^{commit}")
    plan = make_plan(project.folder, 1, None)
    assert [ref.name for ref in plan.refs] == ["refs/tags/vdm@v1.0.0"]
    assert project.git("rev-parse", "vdm@v1.0.0^{commit}").strip() in plan.others
    if reference == (*MINE, "vdm@mine"):  # the files of `others` stay
        assert names(prune(project)) == {"versions": ["vdm@v1.0.0"]}
        project.git("tag", "vdm@v1.0.0", reference[-1])
        assert cached(project, *WEIGHTS, "v1.0.0").exists()


def test_results_that_are_newer_than_the_newest_version_stay(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of a run that failed after its training, or between its commit and its tag."""
    trained = digest_of(project, "v1.0.0", "train")
    entries = [path for path in (project.folder / ".dvc/cache/runs").rglob("*") if path.is_file()]
    (entry,) = [path for path in entries if YAML(typ="safe").load(path)["outs"][0]["md5"] == trained]
    aged(entry, -60)
    for name, seconds in {"later": int(time.time()) + 60, "before": 1_700_000_000}.items():
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"@{seconds} +0000")
        commit = project.git("commit-tree", "-m", "Run", "vdm@v1.0.0^{tree}").strip()
        project.git("branch", f"runs/{name}", commit)
    weights = cached(project, "models/trained", "weights.safetensors", "v1.0.0")
    assert names(prune(project)) == {"branches": ["runs/before"], "versions": ["vdm@v1.0.0"]}
    project.git("branch", "--quiet", "-D", "runs/later")
    prune(project)
    assert weights.exists()
    aged(entry, 24 * 3600)
    prune(project)
    assert not weights.exists()


def test_what_origin_lacks_stays_and_origin_keeps_what_it_has(project: Project, tmp_path: Path) -> None:
    refuse(project, "v1.2.0")
    project.git("commit", "--quiet", "--allow-empty", "--message=A run")
    add_version(project.folder, "HEAD", "Retrained")
    project.git("init", "--quiet", "--bare", str(tmp_path / "remote.git"))
    project.git("remote", "add", "origin", str(tmp_path / "remote.git"))
    for name in ("there", "here"):
        project.git("branch", f"runs/{name}", "vdm@v1.0.0^{commit}")
    project.git("push", "--quiet", "origin", "vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.3.0", "runs/there")
    found = prune(project)
    assert names(found) == {"branches": ["runs/there"], "versions": ["vdm@v1.0.0"]}
    assert found["kept"]["vdm@v1.2.0"] == "not on origin"
    there = project.git("ls-remote", "--refs", "origin").split()[1::2]
    assert {"refs/heads/runs/there", "refs/tags/vdm@v1.0.0"} <= set(there)

    project.git("branch", "--quiet", "-D", "runs/here")
    project.git("push", "--quiet", "origin", "vdm@v1.2.0")
    project.git("remote", "set-url", "origin", str(tmp_path / "gone"))
    found = prune(project, code=Exit.MISSING)
    assert names(found) == {}
    assert "every version and branch stays" in found["problems"][0]
    assert "publish" not in found["problems"][0]


@pytest.mark.parametrize(
    ("busy", "message"),
    [
        ("run", "run 20260101-000000-aaaa is in progress (process 7); prune when it has ended"),
        ("experiment", "exps; prune when it has ended"),
        ("dvc", "another DVC command is running"),
        ("stage", "another DVC command is running"),
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


def test_a_lost_listing_of_the_champion_is_fetched_or_no_cached_file_is_removed(project: Project) -> None:
    listing = cached(project, "models/vdm", "", "v1.1.0")
    content = listing.read_bytes()
    listing.unlink()
    before = cached_files(project)
    result = project.vdmctl("prune", "--keep=1")
    assert result.returncode == Exit.MISSING
    assert "DVC's cache is not pruned: vdm@v1.1.0: " in one_line(result)
    assert cached_files(project) == before

    remote = project.folder / "store"
    place = remote / "files/md5" / listing.parent.name / listing.name
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    project.dvc("remote", "add", "--default", "store", str(remote))
    shutil.rmtree(project.folder / ".vdm", ignore_errors=True)
    for version in ("v1.1.0", "v1.2.0"):
        assert project.vdmctl("verify", version).returncode == 0
    assert prune(project)["removed"]["cached_files"]["count"] > 0


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
        text = project.vdmctl("prune").stdout
    assert "truncated or damaged" in damaged["problem"]
    weights = sum(tensor.numel() for tensor in training_state(project)["model"].values())
    known = {"name": "old", "step": 1, "weights": weights, "width": 8, "blocks": 1}
    assert {key: old[key] for key in known} == known
    assert f"step 1, width 8, 1 blocks, {weights:,} weights, learning rate {old['learning_rate']:g}" in text
    assert f"{old['bpd']:.4f} bits/dim" in text
    assert [path.name for path in runs.iterdir()] == ["new"]


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


def test_it_works_from_a_worktree_elsewhere_and_in_one_of_a_bare_repository(project: Project, tmp_path: Path) -> None:
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


def test_a_champion_that_gto_deregistered_needs_no_listing(project: Project) -> None:
    assert project.run("gto", "deprecate", "vdm", "v1.1.0").returncode == 0
    weights = cached(project, *WEIGHTS, "v1.1.0")
    prune(project)
    assert weights.exists()
    cached(project, "models/vdm", "", "v1.1.0").unlink()
    assert "vdm@v1.1.0!" not in prune(project)["kept"]


@pytest.mark.parametrize("digest", ["1" * 32, f"{'1' * 29}e12", "a" * 32, f"{'1' * 32}.dir"])
def test_digests_that_look_like_numbers_are_found(digest: str) -> None:
    stream = io.BytesIO()
    YAML().dump({"outs": [{"md5": digest, "path": "file"}]}, stream)
    assert DIGEST.findall(stream.getvalue()) == [digest.encode()]


def test_a_runs_branch_that_is_checked_out_stays(project: Project, tmp_path: Path) -> None:
    project.git("branch", f"runs/{OLD}", "vdm@v1.0.0^{commit}")
    named = [f"refs/heads/runs/{OLD}", "refs/tags/vdm@v1.0.0"]
    assert [ref.name for ref in make_plan(project.folder, 1, None).refs] == named
    project.git("worktree", "add", "--quiet", str(tmp_path / "mine"), f"runs/{OLD}")
    assert [ref.name for ref in make_plan(project.folder, 1, None).refs] == named[1:]


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


def test_a_runs_branch_that_was_merged_and_deleted_at_the_remote_goes(project: Project) -> None:
    first = project.git("rev-parse", "vdm@v1.0.0^{commit}").strip()
    project.git("branch", f"runs/{OLD}", first)
    named = (f"vdm@v1.{number}.0" for number in range(2))
    tags = {f"refs/tags/{name}": project.git("rev-parse", f"{name}^{{commit}}").strip() for name in named}

    def goes(there: dict[str, str]) -> bool:
        return f"refs/heads/runs/{OLD}" in [ref.name for ref in make_plan(project.folder, 1, tags | there).refs]

    assert not goes({})
    assert not goes({"refs/heads/runs/other": first})
    assert not goes({"refs/heads/main": "1" * 40})  # not known here
    assert goes({"refs/heads/main": project.git("rev-parse", "main").strip()})


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
