"""What `vdmctl prune` removes and what it keeps, with real git and DVC."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from forge import Forge, comparison, crown, refuse
from project import Sandbox, one_line

from flows.core.errors import Exit
from flows.core.files import replace_folder
from flows.orchestration import pruning
from flows.process.locks import Holder, holder_of, lock_file
from flows.registry.evidence import REFUSE, Evidence
from flows.registry.publishing import publish
from flows.registry.verification import verify

pytestmark = pytest.mark.usefixtures("no_server")

OLD, MADE, FAILED, LEFT = (f"20250101-00000{number}-aaaa" for number in range(4))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Return a repository without remotes: v1.0.0 and v1.2.0 were refused, and v1.1.0 is the champion."""
    forge = Forge(tmp_path_factory.mktemp("made") / "forge")
    forge.version("v1.0.0", run=OLD)
    forge.version("v1.1.0")
    forge.version("v1.2.0", run=MADE)
    refuse(forge.project, "v1.0.0", "v1.2.0")
    crown(forge.project, "v1.1.0")
    forge.project.dvc("remote", "remove", "store")
    forge.git("remote", "remove", "origin")
    return forge


def prune(project: Sandbox, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Prune with --keep 1; return what the command prints."""
    result = project.vdmctl("prune", "--keep=1", "--json", *arguments)
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def names(found: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of what was removed, by kind, without the cached files."""
    return {kind: part["names"] for kind, part in found["removed"].items() if kind != "cached_files" and part["names"]}


def everything(project: Sandbox) -> set[str]:
    """Return the names of all refs, and the paths of all cached and private files."""
    files = [path for name in (".dvc/cache", ".vdm") for path in (project.folder / name).rglob("*")]
    return {*project.git("for-each-ref", "--format=%(refname)").split(), *map(str, files)}


def readme(forge: Forge, version: str) -> Path:
    """Return the file in the cache that only this version has."""
    return forge.cached(hashlib.md5(version.encode()).hexdigest())


def write(path: Path, days: float) -> Path:
    """Write a file, in folders that look as if it was written some days ago; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    for each in (path, path.parent):
        os.utime(each, (time.time() - days * 24 * 3600,) * 2)
    return path


def test_what_a_refused_version_alone_needs_goes(forge: Forge) -> None:
    for run, days in {OLD: 15, MADE: 15, FAILED: 13}.items():
        write(forge.root / ".vdm/reports" / run / "card.md", days)
    write(forge.root / f".vdm/models/{'0' * 32}/config.json", 15)
    for name, days in {"old": 15, "new": 13}.items():
        write(forge.root / ".vdm/trainings" / name / "step-1.state", days)
    write(forge.root / "data/.vdm-0123456789ab/train.npy", 0)
    forge.git("worktree", "add", "--quiet", "-b", f"runs/{LEFT}", f".vdm/worktrees/{LEFT}")
    refused, champion, newest = (readme(forge, version) for version in ("v1.0.0", "v1.1.0", "v1.2.0"))
    before = everything(forge.project)

    assert "versions" not in names(prune(forge.project, "--dry-run", "--keep=3"))
    planned = prune(forge.project, "--dry-run")
    assert everything(forge.project) == before
    assert planned["kept"] == {"vdm@v1.1.0": "among the champions", "vdm@v1.2.0": "among the newest"}
    found = prune(forge.project)
    assert found | {"dry_run": True} == planned
    assert names(found) == {
        "worktrees": [LEFT],
        "branches": [f"runs/{OLD}"],
        "versions": ["vdm@v1.0.0"],
        "unfinished": ["data/.vdm-0123456789ab"],
        "reports": [OLD],
        "fetched_models": ["0" * 32],
        "training_states": ["old"],
    }
    listing, file = found["removed"]["cached_files"]["names"]
    assert listing.endswith(".dir")  # it goes first: DVC takes a folder for complete if its listing is there
    assert file == refused.parent.name + refused.name
    assert found["removed"]["cached_files"]["bytes"] > len("v1.0.0")
    assert [path.exists() for path in (refused, champion, newest)] == [False, True, True]
    assert list((forge.root / "data").iterdir()) == []
    for version in ("champion", "v1.2.0"):
        assert not [check for check in verify(forge.repository, forge.resolve(version)) if check.problem]
    # Why it was refused stays.
    assert forge.git("tag").split() == ["vdm#champion#3", "vdm#refused#1", "vdm#refused#2", "vdm@v1.1.0", "vdm@v1.2.0"]
    assert forge.git("branch", "--format=%(refname:short)").split() == ["main", f"runs/{MADE}"]
    assert forge.git("status", "--porcelain", "--", ".", ":!.dvc/config") == ""
    assert names(prune(forge.project)) == {}
    assert "nothing" in forge.vdmctl("prune", "--keep=1").stdout


def test_the_only_copy_of_an_output_and_what_is_being_written_stay(forge: Forge) -> None:
    only, extra = forge.root / "data/.vdm-old-images", forge.root / "models/.vdm-old-vdm"
    for each in (only, extra, forge.root / "models/vdm"):
        write(each / "a.npy", 30)
    with replace_folder(forge.root / "models/mine") as written:
        planned, found = prune(forge.project, "--dry-run"), prune(forge.project)
        shown = forge.vdmctl("prune", "--keep=1").stdout
        assert written.exists()
    for each in (planned, found):
        assert names(each)["unfinished"] == ["models/.vdm-old-vdm"]
        assert each["kept"]["data/.vdm-old-images"] == "may be the only copy of images"
        assert each["kept"][f"models/{written.name}"] == "a process writes into it"
    assert re.search(r"kept +data/.vdm-old-images +may be the only copy of images", shown)
    assert (only.exists(), extra.exists()) == (True, False)
    (forge.root / "data/images").mkdir()
    assert names(prune(forge.project)) == {"unfinished": ["data/.vdm-old-images"]}


def test_the_images_go_on_counting_the_challengers_that_were_pruned(forge: Forge) -> None:
    refused = Evidence(decision=REFUSE, reason="", challenger="x", validation_sha256="a", comparison=comparison())
    message = refused.message("Refuse")
    forge.git("tag", "--annotate", f"--message={message}", "vdm#refused#9", "vdm@v1.0.0^{commit}")
    assert names(prune(forge.project))["versions"] == ["vdm@v1.0.0"]
    assert forge.opened.registry.judged["a"] == {"x"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda forge: crown(forge.project, "v1.0.0", "v1.2.0"), "among the champions"),
        (lambda forge: forge.project.gto("assign", "vdm", "--version=v1.0.0", "--stage=paper"), "has another stage"),
        (lambda forge: forge.git("tag", "--delete", "vdm#refused#1"), "neither promoted nor refused"),
    ],
    ids=["champion", "stage", "undecided"],
)
def test_a_version_that_was_not_only_refused_stays(change: Any, reason: str, forge: Forge) -> None:
    change(forge)
    found = prune(forge.project)
    assert found["kept"]["vdm@v1.0.0"] == reason
    assert readme(forge, "v1.0.0").exists()
    assert f"runs/{OLD}" in forge.git("branch", "--list", "runs/*")


@pytest.mark.parametrize("own", [("branch", "mine"), ("tag", "--annotate", "--message=Mine", "vdm-paper")], ids=str)
def test_a_branch_or_tag_of_ones_own_keeps_its_files(own: tuple[str, ...], forge: Forge) -> None:
    forge.git(*own, "vdm@v1.0.0^{commit}")
    found = prune(forge.project)
    assert names(found) == {"branches": [f"runs/{OLD}"], "versions": ["vdm@v1.0.0"]}
    assert found["removed"]["cached_files"]["count"] == 0


def test_branches_that_may_become_versions_or_are_checked_out_stay(forge: Forge, tmp_path: Path) -> None:
    waiting = forge.commit("waiting", run=FAILED)
    forge.git("worktree", "add", "--quiet", str(tmp_path / "mine"), f"runs/{OLD}")
    assert names(prune(forge.project)) == {"versions": ["vdm@v1.0.0"]}
    assert forge.git("rev-parse", f"runs/{FAILED}").strip() == waiting
    assert readme(forge, "v1.0.0").exists()


def test_what_the_remotes_lack_stays(forge: Forge, tmp_path: Path) -> None:
    """A refused version goes only if the git remote has its tag, and the DVC remote its files."""
    forge.project.dvc("remote", "add", "--default", "store", str(tmp_path / "empty"))
    forge.git("init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    forge.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    found = prune(forge.project)
    assert names(found) == {}
    assert found["kept"]["vdm@v1.0.0"] == "not on origin"
    forge.git("push", "--quiet", "origin", "vdm@v1.0.0")
    found = prune(forge.project)
    assert found["kept"]["vdm@v1.0.0"] == "the DVC remote lacks its files"
    assert re.search(r"vdm@v1.0.0 +the DVC remote lacks its files", forge.vdmctl("prune", "--keep=1").stdout)
    assert readme(forge, "v1.0.0").exists()
    forge.git("push", "--quiet", "--delete", "origin", "vdm@v1.0.0")
    assert f"runs/{OLD}" in publish(forge.repository)
    before = forge.git("ls-remote", "origin")
    assert names(prune(forge.project)) == {"branches": [f"runs/{OLD}"], "versions": ["vdm@v1.0.0"]}
    assert not readme(forge, "v1.0.0").exists()
    assert forge.git("ls-remote", "origin") == before
    forge.git("remote", "set-url", "origin", str(tmp_path / "gone"))
    result = forge.vdmctl("prune", "--keep=1")
    assert result.returncode == Exit.MISSING
    assert "git ls-remote in " in one_line(result)


def test_a_lost_listing_is_fetched_or_nothing_is_removed(forge: Forge) -> None:
    lock = json.loads(forge.git("show", "vdm@v1.1.0:dvc.lock"))
    listing = forge.cached(lock["stages"]["all"]["outs"][0]["md5"])
    listing.unlink()
    before = everything(forge.project)
    result = forge.vdmctl("prune", "--keep=1")
    assert result.returncode == Exit.MISSING
    assert "vdm@v1.1.0: the listing of models/vdm is lost, so nobody knows" in one_line(result)
    assert everything(forge.project) == before
    forge.project.dvc("remote", "add", "--default", "store", str(forge.remote))
    prune(forge.project)
    assert listing.exists()
    assert readme(forge, "v1.1.0").exists()


def test_young_entries_of_the_run_cache_keep_their_files(forge: Forge) -> None:
    """They are of a run that failed after its training, whose next attempt continues from them."""
    digest = forge.store(b"trained")
    stage = {"cmd": "true", "deps": [], "outs": [{"path": "models/trained", "hash": "md5", "md5": digest}]}
    entry = forge.cache / "runs/aa" / ("a" * 64) / ("b" * 64)
    entry.parent.mkdir(parents=True)
    entry.write_text(json.dumps(stage))
    prune(forge.project)
    assert forge.cached(digest).exists()
    write(entry, 15)
    prune(forge.project)
    assert not forge.cached(digest).exists()


def test_what_another_worktree_needs_stays_and_its_run_is_waited_for(forge: Forge, tmp_path: Path) -> None:
    mine = Sandbox.at(tmp_path / "mine")
    forge.git("worktree", "add", "--quiet", "--detach", str(mine.folder), "vdm@v1.0.0^{commit}")
    mine.dvc("cache", "dir", "--local", str(forge.cache))
    assert prune(forge.project)["removed"]["cached_files"]["count"] == 0
    assert prune(mine)["removed"]["cached_files"]["count"] == 0
    run = mine.folder / ".vdm/worktrees/new.lock"
    run.parent.mkdir(parents=True)
    with lock_file(run, Holder(process=7)):
        for project in (forge.project, mine):
            result = project.vdmctl("prune", "--keep=1")
            assert (result.returncode, "run new is in progress" in one_line(result)) == (Exit.BUSY, True)


@contextmanager
def busy(kind: str, forge: Forge) -> Iterator[None]:
    """Have something at work while the block runs."""
    with ExitStack() as stack:
        if kind == "run":
            stack.enter_context(lock_file(forge.root / ".vdm/worktrees/x.lock", Holder(process=7)))
        elif kind == "trainer":
            holder = Holder(process=7, folder=str(forge.root))
            stack.enter_context(lock_file(forge.root / ".vdm/cpu.lock", holder))
        else:
            stack.enter_context(stack.enter_context(Repo(str(forge.root))).lock)
        yield


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("run", "run x is in progress (process 7); prune when it has ended"),
        ("trainer", "trains on cpu; prune when it has ended"),
        ("dvc", "another DVC command is running; wait for it"),
    ],
)
def test_while_something_works_nothing_is_removed(kind: str, message: str, forge: Forge) -> None:
    (forge.root / ".vdm/worktrees").mkdir(parents=True)
    with busy(kind, forge):
        before = everything(forge.project)
        result = forge.vdmctl("prune", "--keep=1")
    assert (result.returncode, result.stdout) == (Exit.BUSY, "")
    assert message in one_line(result)
    assert everything(forge.project) == before


def test_what_goes_is_chosen_under_the_registrys_lock(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion meanwhile could make a version the champion whose files are about to go."""
    held, choose = [], pruning.reasons_to_keep

    def chosen(*arguments: Any) -> dict[str, str]:
        held.append(holder_of(forge.root / ".git/vdm-registry.lock"))
        return choose(*arguments)

    monkeypatch.setattr(pruning, "reasons_to_keep", chosen)
    pruning.prune(forge.opened, keep=1, dry_run=True)
    assert held == [Holder()]


def test_a_cache_that_other_projects_may_use_is_left_alone(forge: Forge, tmp_path: Path) -> None:
    shutil.move(forge.cache, tmp_path / "shared")
    forge.project.dvc("cache", "dir", "--local", str(tmp_path / "shared"))
    before = {*everything(forge.project), *(tmp_path / "shared").rglob("*")}
    result = forge.vdmctl("prune", "--keep=1")
    assert result.returncode == Exit.USAGE
    assert "is outside the repository, so other projects may use it" in one_line(result)
    assert {*everything(forge.project), *(tmp_path / "shared").rglob("*")} == before
