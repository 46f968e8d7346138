"""The parameters, the worktree and the commit of a run, with real git and DVC; test_loop.py tests the runs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from project import Sandbox

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.files import name_beside
from flows.evaluation.odd import OddBatch, Surprise
from flows.orchestration.checking import judge_odd
from flows.orchestration.outcome import failed
from flows.orchestration.streaming import EXPECTED, to_user_error
from flows.orchestration.workspace import Instructions, Run, clear_up, compose_params, workspace
from flows.project.project import Project


def test_overrides_and_the_committed_file_are_checked(plain: Sandbox) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": {"steps": 3}}, r"override train is not a parameter of params.yaml, such as train.steps"),
        ({"train.stepz": 5}, r"override train.stepz is not a parameter of params.yaml, such as train.steps"),
        ({"train.steps": "many"}, r"params.yaml with the overrides: train.steps: .* got 'many'"),
    ]
    for overrides, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            compose_params(Project(plain.folder), "HEAD", Instructions(overrides=overrides))
        assert raised.value.code is Exit.USAGE
    with pytest.raises(UserError, match=r"no preset '' in commit HEAD; presets: cifar10"):
        compose_params(Project(plain.folder), "HEAD", Instructions(preset=""))
    plain.edit("params.yaml", **{"confidence: 0.95": "confidence: 2"})
    compose_params(Project(plain.folder), "HEAD")  # a run ignores what is not committed
    plain.git("commit", "--quiet", "--all", "--message=Wrong")
    with pytest.raises(UserError, match=r"params.yaml of commit HEAD: promote.confidence: .* got 2") as raised:
        compose_params(Project(plain.folder), "HEAD")
    assert raised.value.code is Exit.USAGE


def test_the_same_failure_of_two_runs_has_one_text(plain: Sandbox) -> None:
    """Messages about failures are gathered by it."""
    batch = OddBatch(num_images=20, num_odd=18, expected_odd=0.2, most_odd=2, p=1e-9)
    found = Surprise.model_construct(batch=batch, images=[], model="vdm@v1.0.0")
    project, params = Project(plain.folder), plain.git("show", "HEAD:params.yaml")
    said = []
    for _ in range(2):
        with workspace(project, params, "HEAD") as run:
            page = run.reports.relative_to(project.folder) / "odd.html"
            scratch = name_beside(run.folder / "data/images/train.npy")
            for fails in (
                partial(run.project.repository.ask, "fetch", "nowhere"),
                partial(run.project.repository.ask, "push", "origin", run.branch),
                partial(getattr, run.project, "images"),
                partial(judge_odd, found, 0.5, page),
                partial(scratch.read_bytes),
            ):
                with pytest.raises(EXPECTED) as raised:
                    fails()
                error = to_user_error(raised.value)
                assert run.name in str(error)
                said.append(str(failed(error)))
    half = len(said) // 2
    assert said[:half] == said[half:]
    assert said[3].endswith("; look at .vdm/reports/RUN/odd.html, remove them or raise the limit")
    assert said[4].endswith("/.vdm/worktrees/RUN/data/images/.vdm-*: No such file or directory")


def test_an_override_changes_its_line_alone(plain: Sandbox) -> None:
    before = plain.git("show", "HEAD:params.yaml").splitlines()
    after = compose_params(Project(plain.folder), "HEAD", Instructions(overrides={"train.steps": 5})).splitlines()
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [("  steps: 20", "  steps: 5")]


def test_no_branch_is_left_of_a_run_that_started_from_a_commit_of_the_remote_and_made_none(plain: Sandbox) -> None:
    newer = plain.git("commit-tree", "-p", "HEAD", "-m", "Newer", "HEAD^{tree}").strip()
    plain.git("update-ref", "refs/remotes/origin/main", newer)
    with workspace(Project(plain.folder), plain.git("show", "HEAD:params.yaml"), newer) as place:
        pass
    assert plain.git("branch", "--list", "runs/*") == ""
    with workspace(Project(plain.folder), plain.git("show", "HEAD:params.yaml"), newer) as place:
        plain.git("-C", str(place.folder), "commit", "--quiet", "--allow-empty", "--message=Retrain")
        plain.git("update-ref", f"refs/remotes/origin/{place.branch}", place.branch)  # as if it was published
    assert plain.git("branch", "--list", "runs/*", "--format=%(refname:short)").split() == [place.branch]


@pytest.fixture
def plain(tmp_path: Path) -> Sandbox:
    """Return a project without results, on a path that is not ASCII."""
    return Sandbox(tmp_path / "Bücher und Bilder")


@contextmanager
def run_in(project: Sandbox, params: str | None = None) -> Iterator[Run]:
    """Make a workspace of the checked-out commit."""
    params = (project.folder / "params.yaml").read_text() if params is None else params
    with workspace(Project(project.folder), params, project.git("rev-parse", "HEAD").strip()) as place:
        yield place


def results(place: Run) -> str:
    """Write a result and commit it; return the commit."""
    (place.folder / "reports").mkdir(exist_ok=True)
    (place.folder / "reports" / "card.md").write_text("# A model")
    made = place.commit("Retrain: 1.0")
    assert made
    return made


HOOKS = {
    "post-checkout": "exit 1",
    "pre-commit": "exit 1",
    "prepare-commit-msg": "printf '\\nRefs #12\\n' >> $1",
    "commit-msg": "exit 1",
    "post-commit": "git tag made-by-a-hook",
}


@pytest.mark.parametrize("shared", [layout.TRAININGS, layout.DOWNLOADS])
def test_a_run_keeps_states_and_downloads_for_the_next(shared: Path, plain: Sandbox) -> None:
    with run_in(plain) as place:
        assert (place.folder / shared).resolve() == (plain.folder / shared).resolve()
        (place.folder / shared / "part").write_text("kept")
    assert not place.folder.exists()
    assert (plain.folder / shared / "part").read_text() == "kept"


def test_hooks_and_signatures_are_for_the_commits_of_people(plain: Sandbox) -> None:
    for name, body in HOOKS.items():
        hook = plain.folder / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\n{body}\n")
        hook.chmod(0o755)
    for setting in ("commit.gpgSign=true", "tag.gpgSign=true", "gpg.program=/bin/false"):
        plain.git("config", *setting.split("="))
    with run_in(plain) as place:
        made = results(place)
    assert plain.git("rev-parse", place.branch).strip() == made
    assert plain.git("tag") == ""


def test_what_a_killed_run_left_behind_is_removed(plain: Sandbox) -> None:
    """A branch stays that has a commit which nothing else holds, or on which somebody works."""
    root, worktrees = plain.folder, plain.folder / ".vdm" / "worktrees"
    for name in ("empty", "working"):
        plain.git("worktree", "add", "--quiet", "-b", f"runs/{name}", str(worktrees / name))
    (worktrees / "working" / "found").write_text("by a person")
    plain.git("-C", str(worktrees / "working"), "add", "found")
    plain.git("-C", str(worktrees / "working"), "commit", "--quiet", "--message=Found")
    (worktrees / "never.lock").touch()
    plain.git("switch", "--quiet", "--create", "runs/never")
    assert clear_up(Project(root)) == ["empty", "never", "working"]
    assert list(worktrees.iterdir()) == []
    assert plain.git("branch", "--list", "runs/*", "--format=%(refname:short)").split() == [
        "runs/never",
        "runs/working",
    ]
    assert len(plain.git("worktree", "list").splitlines()) == 1


def test_the_configuration_with_passwords_is_private(plain: Sandbox) -> None:
    with run_in(plain) as place:
        assert (place.folder / ".dvc" / "config.local").stat().st_mode & 0o077 == 0


def test_a_run_that_shares_versions_starts_from_the_newest_upstream_commit(plain: Sandbox, tmp_path: Path) -> None:
    plain.git("init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    plain.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    plain.git("push", "--quiet", "--set-upstream", "origin", "main")
    head = plain.git("rev-parse", "HEAD").strip()
    newer = plain.git("commit-tree", "-p", "HEAD", "-m", "Newer", "HEAD^{tree}").strip()
    plain.git("update-ref", "refs/remotes/origin/main", newer)
    assert [Project(plain.folder).repository.first_commit(shared=shared) for shared in (True, False)] == [newer, head]
    plain.git("commit", "--quiet", "--allow-empty", "--message=Local")
    local = plain.git("rev-parse", "HEAD").strip()
    assert Project(plain.folder).repository.first_commit(shared=True) == local


def test_what_dvc_keeps_about_a_run_goes_with_its_worktree(plain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    with run_in(plain) as place, place.project.repository.dvc() as repo:
        kept = Path(repo.site_cache_dir)
        assert kept.is_dir()
        assert kept.is_relative_to(place.folder)
    assert not kept.exists()


def test_the_worktree_of_a_run_in_progress_stays(plain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is held; or its engine was killed, and its trainer still saves."""
    with run_in(plain) as place:
        assert clear_up(Project(plain.folder)) == []
        assert place.folder.is_dir()
    killed = plain.folder / layout.WORKTREES / "killed"
    plain.git("worktree", "add", "--quiet", "-b", "runs/killed", str(killed))
    with monkeypatch.context() as patch:
        patch.setattr("flows.orchestration.workspace.find_processes", lambda folder: [7])
        assert clear_up(Project(plain.folder)) == []
    assert killed.is_dir()
    assert clear_up(Project(plain.folder)) == ["killed"]


def test_a_run_that_is_just_starting_is_not_removed(plain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one starts between the making of its lock's file and the lock: the name is given up for a new one."""
    lock, names = fcntl.flock, []

    def delayed(file: int, kind: int) -> None:
        if not names:
            names.extend(path.stem for path in (plain.folder / layout.WORKTREES).glob("*.lock"))
            assert clear_up(Project(plain.folder)) == names
        lock(file, kind)

    monkeypatch.setattr("flows.process.locks.fcntl.flock", delayed)
    with run_in(plain) as place:
        assert place.folder.name not in names
        assert clear_up(Project(plain.folder)) == []
        assert place.folder.is_dir()
    assert len(names) == 1
