"""Which earlier results a run takes in place of computing them again, with real git and DVC."""

import re
import shutil
import sqlite3
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
from project import Project, cached

from flows.core.errors import NetworkError, UserError
from flows.images.store import data_sha256
from flows.orchestration.workspace import alike, compose_params, finished, take_images, workspace
from flows.train_vdm import restore_images

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)


def test_results_are_found_however_many_runs_came_since(copied: Project) -> None:
    """The results of v1.0.0 are found by its parameters; if none fit, nothing is left in the worktree."""
    root = copied.folder
    first = copied.git("rev-parse", "vdm@v1.0.0^{commit}").strip()
    for number in range(9):
        copied.git("branch", f"runs/{number}", "HEAD~1")
    with workspace(root, copied.git("show", f"{first}:params.yaml"), "HEAD") as place:
        assert finished(place, shared=False) == first
    with workspace(root, compose_params(root, "HEAD", None, {"train.seed": 9}), "HEAD") as place:
        assert finished(place, shared=False) is None
        assert copied.run("git", "-C", str(place.folder), "status", "--porcelain").stdout == " M params.yaml\n"


def test_results_of_other_code_are_not_used(copied: Project) -> None:
    copied.edit("flows/stages/sample.py", **{'"""': '"""Other code. '})
    copied.git("commit", "--quiet", "--all", "--message=Other code")
    with workspace(copied.folder, compose_params(copied.folder, "HEAD", None, {}), "HEAD") as place:
        assert finished(place, shared=False) is None
        assert copied.run("git", "-C", str(place.folder), "status", "--porcelain").stdout == ""


def test_the_recorded_images_are_taken_although_the_other_results_are_missing(copied: Project) -> None:
    """`download` would read its source anew, which may hold other images by now."""
    cached(copied, "models/vdm", "", "v1.2.0").unlink()
    copied.dvc("remote", "remove", "store")
    with workspace(copied.folder, copied.git("show", "HEAD:params.yaml"), "HEAD") as place:
        assert finished(place, shared=False) is None
        take_images(place)
        assert data_sha256(place.folder / "data/images") == data_sha256(copied.folder / "data/images")


@pytest.mark.parametrize(
    ("url", "kind", "reason"),
    [
        ("/dev/null", NetworkError, "cannot be pulled into it"),
        ("empty", UserError, "data/images/test.npy is not in the cache"),
    ],
)
def test_recorded_images_that_nobody_has_are_named(
    url: str, kind: type[UserError], reason: str, copied: Project
) -> None:
    cached(copied, "data/images", "test.npy", "v1.2.0").unlink()
    copied.dvc("remote", "modify", "store", "url", url)
    place = workspace(copied.folder, copied.git("show", "HEAD:params.yaml"), "HEAD")
    with place as made, pytest.raises(kind, match=reason):
        take_images(made)


def test_results_are_not_made_again_because_the_remote_does_not_answer(copied: Project) -> None:
    shutil.rmtree(copied.folder / ".dvc" / "cache")
    copied.dvc("remote", "modify", "store", "url", "/dev/null")
    place = workspace(copied.folder, copied.git("show", "HEAD:params.yaml"), "HEAD")
    with place as made, pytest.raises(NetworkError, match="cannot be pulled into it"):
        finished(made, shared=True)


def test_results_in_the_cache_count_although_the_remote_does_not_answer_for_others(
    copied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = copied.git("rev-parse", "HEAD").strip()
    contained = Mock(side_effect=[NetworkError("the remote does not answer"), None])
    monkeypatch.setattr("flows.orchestration.workspace.require_contained", contained)
    monkeypatch.setattr("flows.orchestration.workspace.alike", lambda place: [head])
    with workspace(copied.folder, copied.git("show", "HEAD:params.yaml"), "HEAD") as made:
        assert finished(made, shared=True) == head


def test_results_are_found_although_the_clock_of_another_machine_was_wrong(
    copied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first = copied.folder, copied.git("rev-parse", "vdm@v1.0.0^{commit}").strip()
    copied.git("checkout", "--quiet", first, "--", "params.yaml")
    copied.git("rm", "--quiet", "--cached", "dvc.lock")
    tree = copied.git("write-tree").strip()
    copied.git("reset", "--quiet", "--hard")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "@4000000000 +0000")
    for number in range(3):
        made = copied.git("commit-tree", "-p", "HEAD", "-m", f"Retrain {number}", tree).strip()
        copied.git("branch", f"runs/{number}", made)
    monkeypatch.delenv("GIT_COMMITTER_DATE")
    with workspace(root, copied.git("show", f"{first}:params.yaml"), "HEAD") as place:
        assert finished(place, shared=False) == first


def test_results_keep_their_order_although_this_clock_is_behind(
    copied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, made = copied.git("rev-parse", "HEAD^{tree}").strip(), []
    for number in range(6):
        with monkeypatch.context() as patch:
            for kind in ("AUTHOR", "COMMITTER"):
                patch.setenv(f"GIT_{kind}_DATE", f"@{4000000000 + number} +0000")
            made.append(copied.git("commit-tree", "-p", "HEAD", "-m", f"Retrain {number}", tree).strip())
        copied.git("branch", f"runs/{number}", made[-1])
    monkeypatch.setattr("flows.orchestration.workspace.time", Mock(time=lambda: 0.0))
    with workspace(copied.folder, copied.git("show", "HEAD:params.yaml"), "HEAD") as place:
        assert alike(place)[:6] == made[::-1]


def test_results_of_other_images_than_the_commit_has_are_not_used(copied: Project) -> None:
    """As after `dvc repro --force download` and a commit: DVC does not watch the source of the images."""
    copied.git("branch", "runs/older", "HEAD")
    copied.dvc("checkout", "--force", "download")
    (copied.folder / "data" / "images" / "more").write_text("another file")
    copied.dvc("commit", "--force", "download")
    copied.git("commit", "--quiet", "--all", "--message=New images")
    with workspace(copied.folder, copied.git("show", "HEAD:params.yaml"), "HEAD") as place:
        assert alike(place)
        assert finished(place, shared=False) is None
        assert (place.folder / "data" / "images" / "more").read_text() == "another file"


@pytest.mark.parametrize(
    "place", ["dvc.repo.Repo.status", "flows.orchestration.workspace.cached_at", "dvc.repo.Repo.checkout"]
)
def test_databases_of_dvc_that_cannot_be_written_are_no_reason_to_train_again(
    place: str, copied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor to read the images from their source, which may hold other images by now."""
    full = Mock(side_effect=sqlite3.OperationalError("database or disk is full"))
    with workspace(copied.folder, copied.git("show", "HEAD:params.yaml"), "HEAD") as made:
        monkeypatch.setattr(place, full)
        with pytest.raises(UserError, match=r"DVC's databases .* disk is full"):
            finished(made, shared=False)
        if "cached_at" not in place:
            with pytest.raises(UserError, match=r"DVC's databases .* disk is full"):
                restore_images(made)
    assert full.called


@pytest.mark.parametrize("remote", ["answers", "silent"])
def test_results_of_other_images_are_not_used_although_those_of_the_commit_are_not_here(
    remote: str, copied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `git pull` without `dvc pull`."""
    copied.git("branch", "runs/older", "HEAD")
    lock = copied.folder / "dvc.lock"
    images = r"(path: data/images\n\s+hash: md5\n\s+md5: )[\w.]+"
    lock.write_text(re.sub(images, rf"\g<1>{'0' * 32}.dir", lock.read_text()))
    copied.git("commit", "--quiet", "--all", "--message=New images")
    if remote == "silent":
        contained = Mock(side_effect=[NetworkError("silent"), None, None, None])
        monkeypatch.setattr("flows.orchestration.workspace.require_contained", contained)
    with workspace(copied.folder, copied.git("show", "HEAD:params.yaml"), "HEAD") as place:
        assert alike(place)
        with pytest.raises(NetworkError) if remote == "silent" else nullcontext():
            assert finished(place, shared=remote == "silent") is None
