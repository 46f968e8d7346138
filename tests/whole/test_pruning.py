"""What `vdmctl prune` removes and what it keeps, with real git and DVC."""

import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from champions import crown
from project import Project, cached, one_line
from pruned import (
    FAILED,
    LEFT,
    MADE,
    OLD,
    WEIGHTS,
    aged,
    cached_files,
    everything,
    names,
    prune,
    refuse,
    without_remotes,
)
from ruamel.yaml import YAML

from flows.core.errors import Exit
from flows.registry.cache import DIGEST
from flows.registry.pruning import make_plan
from flows.registry.publishing import publish
from flows.registry.remote import Target
from flows.registry.verification import verify
from flows.registry.versions import add_version, resolve

# The versions are trained when the first test asks for them.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("no_server")]

MINE = ("tag", "--annotate", "--message=Mine")


@pytest.fixture
def project(copied: Project) -> Project:
    """Return a project without remotes whose champion is v1.1.0, and which refused v1.0.0."""
    return without_remotes(copied)


def report(project: Project, run: str, age: float) -> None:
    """Write the report of a run, `age` seconds ago."""
    file = project.folder / ".vdm/reports" / run / "card.md"
    file.parent.mkdir(parents=True)
    file.write_text("card")
    aged(file, age)


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

    listing = cached(project, "models/vdm", "", "v1.0.0")
    content, before = listing.read_bytes(), cached_files(project)
    listing.unlink()
    listing.mkdir()  # what cannot be read must not pass for what is not there
    result = project.vdmctl("prune", "--keep=1")
    assert result.returncode == Exit.MISSING
    assert f"{listing}: Is a directory" in one_line(result)
    listing.rmdir()
    listing.write_bytes(content)
    assert cached_files(project) == before

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


def test_a_champion_that_gto_deregistered_needs_no_listing(project: Project) -> None:
    project.gto("deprecate", "vdm", "v1.1.0")
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


def test_a_runs_branch_that_was_merged_and_deleted_at_the_remote_goes(project: Project) -> None:
    first = project.git("rev-parse", "vdm@v1.0.0^{commit}").strip()
    project.git("branch", f"runs/{OLD}", first)
    named = (f"vdm@v1.{number}.0" for number in range(2))
    tags = {f"refs/tags/{name}": project.git("rev-parse", f"{name}^{{commit}}").strip() for name in named}

    def goes(there: dict[str, str]) -> bool:
        published = {name: Target(commit, commit) for name, commit in (tags | there).items()}
        return f"refs/heads/runs/{OLD}" in [ref.name for ref in make_plan(project.folder, 1, published).refs]

    assert not goes({})
    assert not goes({"refs/heads/runs/other": first})
    assert not goes({"refs/heads/main": "1" * 40})  # not known here
    assert goes({"refs/heads/main": project.git("rev-parse", "main").strip()})
