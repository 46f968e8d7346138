"""Publishing to a bare git remote and a DVC remote.  test_flow.py has a run whose publication is interrupted."""

import hashlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import ANY, Mock, patch

import pytest
from project import Project, cached

from flows.core.errors import Exit, NetworkError, UserError
from flows.orchestration import releasing
from flows.registry import publishing, remote
from flows.registry.cache import files_of, lacking
from flows.registry.git import annotated_tags
from flows.registry.publishing import Outrun, fetch_versions, publish
from flows.registry.remote import first_commit
from flows.registry.storage import cached_at, dvc_repository
from flows.registry.versions import add_version, record_refusal, refusal, refusals, resolve

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def project(copied: Project, tmp_path: Path) -> Project:
    """Return a project with three versions, of which the remotes have nothing."""
    copied.git("init", "--quiet", "--bare", str(tmp_path / "remote.git"))
    copied.git("remote", "add", "origin", str(tmp_path / "remote.git"))
    copied.dvc("remote", "modify", "store", "url", str(tmp_path / "store"))
    return copied


def test_a_clone_of_what_was_published_verifies(project: Project, tmp_path: Path) -> None:
    assert publish(project.folder) == ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0"]
    assert publish(project.folder) == []
    project.git("commit", "--quiet", "--all", "--message=Remote")
    project.git("push", "--quiet", "origin", "main")
    project.git("clone", "--quiet", "--branch=main", str(tmp_path / "remote.git"), str(tmp_path / "clone"))
    result = Project.at(tmp_path / "clone").vdmctl("verify", "v1.1.0")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_cached_file_of_a_published_version_is_at_the_remote(project: Project) -> None:
    """Also the copies of the metrics in git, which DVC's run cache has: `vdmctl prune` would keep what is missing."""
    damaged = hashlib.md5((project.folder / "reports/evaluation/metrics.json").read_bytes()).hexdigest()
    with dvc_repository(project.folder) as repo:
        copy = cached_at(repo)(damaged)
        copy.chmod(0o644)
        copy.write_text("{}")  # nobody needs this copy
    assert publish(project.folder) == ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0"]
    with dvc_repository(project.folder) as repo:
        files = files_of(repo, project.folder, annotated_tags(project.folder, "vdm@"))
        assert lacking(repo, files & set(repo.cache.local.all())) == {damaged}


def test_published_versions_do_not_start_git_again(project: Project) -> None:
    def started() -> int:
        with patch.object(subprocess, "run", wraps=subprocess.run) as run:
            assert publish(project.folder) == []
        return run.call_count

    publish(project.folder)
    before = started()
    project.git("tag", "--annotate", "--message=Promote", "vdm#champion#1", "vdm@v1.1.0^{commit}")
    assert publish(project.folder) == ["vdm#champion#1"]
    assert started() == before


def test_refusals_and_branches_with_a_commit_are_published(project: Project, tmp_path: Path) -> None:
    """A branch without a commit belongs to a run that still works."""
    root = project.folder
    project.git("branch", "runs/20260101-000000-aaaa")
    project.git("switch", "--quiet", "--create", "runs/20260101-000000-bbbb")
    project.git("commit", "--quiet", "--allow-empty", "--message=Retrain\n\nRun: 20260101-000000-bbbb")
    record_refusal(root, resolve(root, "v1.1.0"), 'Refuse\n\n{"decision": "refuse", "reason": "worse"}\n')
    project.git("tag", "--annotate", "--message=Private", "mine")
    project.git("config", "push.followTags", "true")
    project.git("config", "trailer.separators", "=")  # the run's name is in a trailer
    assert publish(root)[:2] == ["branch runs/20260101-000000-bbbb", "the reasons of refusals"]
    assert "refs/tags/mine" not in project.published()
    assert project.git("ls-remote", "--heads", "origin").split()[1::2] == ["refs/heads/runs/20260101-000000-bbbb"]

    other = Project.at(tmp_path / "other")
    project.git("clone", "--quiet", "--branch=vdm@v1.0.0", str(tmp_path / "remote.git"), str(other.folder))
    record_refusal(
        other.folder, resolve(other.folder, "v1.2.0"), 'Refuse\n\n{"decision": "refuse", "reason": "no better"}\n'
    )
    other.git("push", "--quiet", "--force", "origin", "refs/notes/vdm-refusals")  # from another machine
    record_refusal(root, resolve(root, "v1.0.0"), 'Refuse\n\n{"decision": "refuse", "reason": "first"}\n')
    assert publish(root) == ["the reasons of refusals"]
    assert publish(root) == []
    branch = "refs/heads/runs/20260101-000000-bbbb"
    other.git("commit", "--quiet", "--allow-empty", "--message=Note")
    other.git("fetch", "--quiet", "origin", branch)
    other.git("switch", "--quiet", "--detach", "FETCH_HEAD")
    other.git("commit", "--quiet", "--allow-empty", "--message=Note")
    other.git("push", "--quiet", "origin", f"HEAD:{branch}")
    assert publish(root) == []  # origin has the branch's commit, below another one
    reasons = [refusal(root, resolve(root, version).commit).reason for version in ("v1.0.0", "v1.1.0", "v1.2.0")]
    assert reasons == ["first", "worse", "no better"]


@pytest.mark.parametrize("place", ["weights.safetensors", ""])
def test_a_version_whose_bytes_are_lost_stays_and_the_others_go(place: str, project: Project) -> None:
    """First a file of a folder is lost, then the folder's listing."""
    lost = cached(project, "models/vdm", place, "v1.1.0")
    content = lost.read_bytes()
    lost.unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"vdm@v1.1.0 is not published: models/.* is not in the cache") as raised:
            publish(project.folder)
        assert raised.value.code is Exit.MISSING
        assert project.published() == ["refs/tags/vdm@v1.0.0", "refs/tags/vdm@v1.2.0"]
    lost.write_bytes(content)
    assert publish(project.folder) == ["vdm@v1.1.0"]


def test_a_number_that_another_machine_took_first_stays_and_the_others_go(project: Project) -> None:
    """The champion's tag on its commit is not pushed either: at the remote it would name another version."""
    project.git("tag", "--annotate", "--message=Promote", "vdm#champion#1", "vdm@v1.1.0^{commit}")
    project.git("push", "--quiet", "origin", "vdm@v1.0.0^{commit}:refs/tags/vdm@v1.1.0")
    with pytest.raises(
        UserError,
        match=r"names: vdm@v1.1.0; `git tag -d 'vdm@v1.1.0' 'vdm#champion#1' && .* `gto register vdm \w{12}` and pro",
    ) as raised:
        publish(project.folder)
    assert raised.value.code is Exit.USAGE
    assert project.published() == [f"refs/tags/vdm@v1.{minor}.0" for minor in range(3)]
    project.git("tag", "--delete", "vdm@v1.1.0")
    assert publish(project.folder) == ["vdm#champion#1"]


def made_by_a_run(project: Project, version: str) -> str:
    """Put the results of a version into a commit as runs make it, which becomes that version; return the commit."""
    name = f"20260101-000000-{version}"
    project.git("switch", "--quiet", "--create", f"runs/{name}", f"vdm@{version}^{{commit}}")
    project.git("commit", "--quiet", "--allow-empty", f"--message=Retrain\n\nRun: {name}")
    project.git("tag", "--force", "--annotate", "--message=Mine", f"vdm@{version}")
    project.git("switch", "--quiet", "main")
    return project.git("rev-parse", f"vdm@{version}^{{commit}}").strip()


def test_runs_whose_publication_failed_take_new_numbers(project: Project) -> None:
    """Another machine published a version by one of their numbers meanwhile.  Hand-made versions keep theirs."""
    root = project.folder
    mine = [made_by_a_run(project, version) for version in ("v1.1.0", "v1.2.0")]
    project.git("push", "--quiet", "origin", "vdm@v1.0.0:refs/tags/vdm@v1.1.0")
    record_refusal(root, resolve(root, "v1.1.0"), "not better")
    project.git("tag", "--annotate", "--message=Promote", "vdm#champion#1", mine[1])
    project.git("tag", "--annotate", "--message=Mine", "vdm-paper", mine[0])
    before = project.published()
    with pytest.raises(Outrun, match=", ".join(commit[:12] for commit in mine)):
        publish(root)
    assert project.published() == before
    assert fetch_versions(root) == (["vdm@v1.1.0"], mine)
    assert project.git("tag").split() == ["vdm-paper", "vdm@v1.0.0", "vdm@v1.1.0"]
    assert refusal(root, mine[0]) is None
    assert [add_version(root, commit, "Again").name for commit in mine] == ["vdm@v1.2.0", "vdm@v1.3.0"]
    assert {"vdm@v1.0.0", "vdm@v1.2.0", "vdm@v1.3.0"} <= set(publish(root))
    assert fetch_versions(root) == ([], [])


def test_what_is_withdrawn_is_published_without_its_files(project: Project) -> None:
    root = project.folder
    project.git("tag", "--annotate", "--message=Promote", "vdm#champion#1", "vdm@v1.0.0^{commit}")
    project.git("push", "--quiet", "origin", "vdm@v1.0.0", "vdm#champion#1")
    for version in ("v1.0.0", "v1.1.0"):
        cached(project, "models/vdm", "weights.safetensors", version).unlink()
    project.gto("deprecate", "vdm", "v1.0.0", "champion")
    project.gto("deprecate", "vdm", "v1.1.0")
    assert publish(root) == ["vdm@v1.1.0", "vdm@v1.1.0!", "vdm@v1.2.0", "vdm#champion!#2"]
    assert publish(root) == []


def test_a_tag_of_ones_own_that_begins_like_a_version_is_not_published(project: Project) -> None:
    first = project.git("rev-list", "--max-parents=0", "HEAD").strip()
    project.git("tag", "--annotate", "--message=Mine", "vdm@paper", first)
    project.git("push", "--quiet", "origin", "vdm@v1.0.0:refs/tags/vdm@v1.1.0-rc1")
    project.git("tag", "--annotate", "--message=Mine", "vdm@v1.1.0-rc1", "vdm@v1.1.0^{commit}")
    assert publish(project.folder) == ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0"]
    assert "refs/tags/vdm@paper" not in project.published()


def test_a_version_is_withdrawn_although_its_listing_is_damaged(project: Project) -> None:
    listing = cached(project, "models/vdm", "", "v1.0.0")
    listing.chmod(0o644)
    listing.write_text("{")
    project.gto("deprecate", "vdm", "v1.0.0")
    assert {"vdm@v1.0.0", "vdm@v1.0.0!"} <= set(publish(project.folder))


def test_a_commit_with_two_numbers_is_withdrawn_once(project: Project) -> None:
    mine = made_by_a_run(project, "v1.1.0")
    project.git("tag", "--annotate", "--message=Mine", "vdm@v2.0.0", mine)
    project.git("push", "--quiet", "origin", "vdm@v1.0.0:refs/tags/vdm@v1.1.0")
    assert fetch_versions(project.folder) == (["vdm@v1.1.0"], [mine])


def test_a_tag_of_ones_own_that_differs_at_the_remote_withdraws_nothing(project: Project) -> None:
    mine = made_by_a_run(project, "v1.1.0")
    project.git("tag", "--annotate", "--message=Mine", "vdm-latest", mine)
    project.git("push", "--quiet", "origin", "vdm@v1.0.0:refs/tags/vdm-latest")
    assert "vdm@v1.1.0" in publish(project.folder)
    assert fetch_versions(project.folder) == ([], [])


def test_a_withdrawal_that_is_interrupted_changes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the champion's tag could be left without that of its version."""
    mine = made_by_a_run(project, "v1.1.0")
    project.git("tag", "--annotate", "--message=Promote", "vdm#champion#1", mine)
    project.git("push", "--quiet", "origin", "vdm@v1.0.0:refs/tags/vdm@v1.1.0")
    before = project.git("show-ref", "--tags")
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "withdraw", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch_versions(project.folder)
    assert project.git("show-ref", "--tags") == before
    assert fetch_versions(project.folder) == (["vdm@v1.1.0"], [mine])
    assert "vdm#champion#1" not in project.git("tag").split()


def test_a_network_that_fails_before_a_withdrawal_loses_no_version(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_refusal(project.folder, resolve(project.folder, "v1.0.0"), "not better")
    mine = made_by_a_run(project, "v1.1.0")
    project.git("push", "--quiet", "origin", "refs/notes/*", "vdm@v1.0.0:refs/tags/vdm@v1.1.0")
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "merge_notes", Mock(side_effect=NetworkError("no route")))
        with pytest.raises(NetworkError):
            fetch_versions(project.folder)
    assert fetch_versions(project.folder) == (ANY, [mine])


def test_notes_that_git_is_set_up_to_fetch_are_merged_all_the_same(project: Project) -> None:
    root = project.folder
    record_refusal(root, resolve(root, "v1.0.0"), "not better")
    publish(root)
    project.git("config", "--add", "remote.origin.fetch", "+refs/notes/*:refs/notes/*")
    record_refusal(root, resolve(root, "v1.1.0"), "not better")
    assert len(refusals(root)) == 2
    fetch_versions(root)
    assert len(refusals(root)) == 2


def test_the_hook_of_dvc_finds_dvc_in_a_service(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.dvc("install")
    monkeypatch.setenv("PATH", os.defpath)
    assert "vdm@v1.2.0" in publish(project.folder)


def test_git_knows_what_was_published_also_in_a_clone_of_one_branch(project: Project) -> None:
    project.git("config", "remote.origin.fetch", "+refs/heads/main:refs/remotes/origin/main")
    project.git("switch", "--quiet", "--create", "runs/20260101-000000-bbbb")
    project.git("commit", "--quiet", "--allow-empty", "--message=Retrain\n\nRun: 20260101-000000-bbbb")
    assert publish(project.folder)[0] == "branch runs/20260101-000000-bbbb"
    assert "origin/runs/20260101-000000-bbbb" in project.git("branch", "--remotes").split()


def test_a_network_that_fails_after_the_push_does_not_fail_the_publication(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "fetch", Mock(side_effect=NetworkError("no route")))
    assert publish(project.folder) == ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0"]


def test_a_file_that_is_damaged_in_the_cache_is_not_published(project: Project) -> None:
    weights = cached(project, "models/vdm", "weights.safetensors", "v1.2.0")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"vdm@v1.2.0 is not published: .*weights.safetensors is damaged in the cache"):
        publish(project.folder)
    assert "refs/tags/vdm@v1.2.0" not in project.published()
    assert "refs/tags/vdm@v1.1.0" in project.published()


def test_a_published_version_whose_listing_is_damaged_holds_up_no_other(project: Project) -> None:
    project.git("push", "--quiet", "origin", "vdm@v1.0.0")
    listing = cached(project, "models/vdm", "", "v1.0.0")
    listing.chmod(0o644)
    listing.write_text("{")
    with pytest.raises(UserError, match=r"vdm@v1.0.0 is published, but damaged here: "):
        publish(project.folder)
    assert "refs/tags/vdm@v1.2.0" in project.published()


def test_a_published_version_whose_dvc_lock_git_cannot_read_is_named(project: Project) -> None:
    publish(project.folder)
    packs = project.folder / ".git/objects/pack"
    for pack in [path.rename(project.folder / path.name) for path in packs.glob("*.pack")]:
        subprocess.run(f"git unpack-objects -q <{pack}", shell=True, cwd=project.folder, check=True)
    digest = project.git("rev-parse", "vdm@v1.0.0:dvc.lock").strip()
    stored = project.folder / ".git/objects" / digest[:2] / digest[2:]
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"vdm@v1.0.0 is published, but damaged here: git cat-file .*{digest}"):
        publish(project.folder)


def test_the_notes_bring_no_deleted_tag_back(project: Project) -> None:
    record_refusal(project.folder, resolve(project.folder, "v1.0.0"), "not better")
    project.git("tag", "mine", "main")
    publish(project.folder)
    project.git("push", "--quiet", "origin", "mine")
    project.git("tag", "--delete", "mine")
    publish(project.folder)
    assert "mine" not in project.git("tag").split()


def test_a_run_that_is_published_keeps_its_number_when_a_roll_back_must_take_another(project: Project) -> None:
    root = project.folder
    mine = made_by_a_run(project, "v1.1.0")
    publish(root)
    project.git("tag", "--annotate", "--message=Roll back", "vdm#champion#1", mine)
    project.git("push", "--quiet", "origin", "vdm@v1.0.0^{commit}:refs/tags/vdm#champion#1")
    assert fetch_versions(root) == ([], [])
    with pytest.raises(
        UserError, match=r"`git tag -d 'vdm#champion#1' && .* then promote or roll back again"
    ) as raised:
        publish(root)
    assert not isinstance(raised.value, Outrun)
    assert resolve(root, "v1.1.0").commit == mine


def test_champions_that_two_machines_numbered_alike_are_named_at_once(project: Project) -> None:
    """A champion's tag after a clash is not pushed, since it came from another history than the remote's."""
    root = project.folder
    publish(root)
    for number, minor in ((1, 0), (2, 1), (3, 0)):
        project.git(
            "tag", "--annotate", f"--message=Promote v1.{minor}.0", f"vdm#champion#{number}", f"vdm@v1.{minor}.0^{{}}"
        )
    for number, minor in ((1, 1), (2, 2)):
        project.git("push", "--quiet", "origin", f"vdm@v1.{minor}.0:refs/tags/vdm#champion#{number}")
    advice = (
        r"names: vdm#champion#1, vdm#champion#2; `git tag -d ('vdm#champion#[123]' ?){3} && git fetch --tags origin`"
    )
    with pytest.raises(UserError, match=advice):
        publish(root)
    assert "refs/tags/vdm#champion#3" not in project.published()
    project.git("tag", "--delete", *(f"vdm#champion#{number}" for number in (1, 2, 3)))
    project.git("fetch", "--quiet", "--tags", "origin")
    assert publish(root) == []
    assert resolve(root, "champion").name == "vdm@v1.2.0"


def test_the_upstream_branch_is_fetched_whatever_other_branches_the_remote_has(
    project: Project, tmp_path: Path
) -> None:
    project.git("push", "--quiet", "origin", "main", "main:other")
    clone = Project.at(tmp_path / "clone")
    project.git("clone", "--quiet", "--branch=main", str(tmp_path / "remote.git"), str(clone.folder))
    clone.dvc("remote", "add", "--default", "--local", "store2", str(tmp_path / "store"))
    project.git("commit", "--quiet", "--allow-empty", "--message=Newer")
    # The clone knows `other`, which is in the way of `other/one`.
    project.git("push", "--quiet", "origin", ":other", "main:other/one", "main", "main:runs/20260101-000000-aaaa")
    assert fetch_versions(clone.folder) == ([], [])
    newest = project.git("rev-parse", "main")
    assert [clone.git("rev-parse", f"origin/{name}") for name in ("main", "runs/20260101-000000-aaaa")] == [newest] * 2
    project.git("push", "--quiet", "origin", "main:trunk", ":main")
    with pytest.raises(
        UserError, match="the upstream branch main is no longer at origin; `git fetch origin && "
    ) as gone:
        fetch_versions(clone.folder)
    assert gone.value.code is Exit.MISSING
    clone.git("checkout", "--quiet", "--detach")
    assert fetch_versions(clone.folder) == ([], [])


def test_a_version_that_was_withdrawn_is_not_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine took its number, and the network failed before the model was compared again."""

    def fail(root: Path, made: str | None) -> None:
        raise NetworkError("no network")

    monkeypatch.setattr(releasing, "publish_versions", lambda *_, **__: Mock(result=lambda: False))
    monkeypatch.setattr(releasing, "catch_up", fail)
    announce = Mock()
    monkeypatch.setattr(releasing, "announce", announce)
    with pytest.raises(NetworkError):
        releasing.conclude(tmp_path, releasing.Release(Mock(), "runs/1", Mock()), publish=True)
    announce.assert_not_called()


def test_two_that_publish_at_once_are_both_published(project: Project, tmp_path: Path) -> None:
    """Another machine pushes a version after this one has read what the remote has."""
    hook = tmp_path / "remote.git" / "hooks" / "pre-receive"
    other = project.git("rev-parse", "vdm@v1.0.0").strip()
    hook.write_text(
        f"#!/bin/sh\nrm $0\nenv -u GIT_QUARANTINE_PATH git update-ref refs/tags/vdm@v1.0.0 {other}\nexit 1\n"
    )
    project.git("push", "--quiet", "origin", f"{other}:refs/tags/other")  # so that the remote has the object
    hook.chmod(0o755)
    assert publish(project.folder) == ["vdm@v1.1.0", "vdm@v1.2.0"]
    assert {f"refs/tags/vdm@v1.{minor}.0" for minor in range(3)} <= set(project.published())


def test_a_git_remote_that_never_answers(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LIST_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        project.git("remote", "set-url", "origin", f"git://127.0.0.1:{silent.getsockname()[1]}/models.git")
        with pytest.raises(
            NetworkError, match=r"git ls-remote in .*: no answer in 1 s; the next run with publish=true"
        ):
            publish(project.folder)
        with pytest.raises(NetworkError, match=r"^git ls-remote in .*: no answer in 1 s$"):
            fetch_versions(project.folder)


def test_of_two_tags_for_one_commit_that_of_the_remote_stays(project: Project) -> None:
    """Two machines promoted or rolled back to the same version at once, so their tags hold other evidence."""
    publish(project.folder)
    first = project.git("rev-parse", "vdm@v1.0.0").strip()
    commit = project.git("rev-parse", "vdm@v1.0.0^{commit}").strip()
    for take in (publish, fetch_versions):
        project.git("tag", "--force", "--annotate", "--message=Ours", "vdm@v1.0.0", commit)
        assert project.git("rev-parse", "vdm@v1.0.0").strip() != first
        take(project.folder)
        assert project.git("rev-parse", "vdm@v1.0.0").strip() == first


def test_a_moved_tag_is_replaced_by_the_commands_in_the_message(project: Project) -> None:
    """Its commit is a version already, so it needs no other number."""
    publish(project.folder)
    first = project.git("rev-parse", "vdm@v1.0.0").strip()
    project.git("tag", "--force", "--annotate", "--message=Moved", "vdm@v1.0.0", "vdm@v1.1.0^{commit}")
    with pytest.raises(UserError, match="`git tag -d") as raised:
        publish(project.folder)
    command = str(raised.value).split("`")[1]
    assert str(raised.value).endswith(f"`{command}`")
    subprocess.run(command, shell=True, cwd=project.folder, check=True)
    assert project.git("rev-parse", "vdm@v1.0.0").strip() == first
    publish(project.folder)


def test_a_git_remote_that_refuses_is_quoted(project: Project, tmp_path: Path) -> None:
    hook = tmp_path / "remote.git" / "hooks" / "update"
    hook.write_text("#!/bin/sh\necho No tags\necho on Saturdays\nexit 1\n")
    hook.chmod(0o755)
    reason = r"! \[remote rejected\] vdm@v1.0.0 .*\(hook declined\); the remote says: No tags on Saturdays"
    with pytest.raises(UserError, match=reason) as raised:
        publish(project.folder)
    assert not isinstance(raised.value, NetworkError)  # a run need not try again
    project.git("remote", "set-url", "origin", str(tmp_path / "gone"))
    with pytest.raises(NetworkError, match="gone' does not appear to be a git repository"):
        publish(project.folder)


def test_a_dvc_remote_that_fails_publishes_nothing(project: Project, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(NetworkError, match=r"the DVC remote failed: .*; the next run with publish=true") as raised:
        publish(project.folder)
    assert raised.value.code is Exit.MISSING
    assert project.published() == []


def test_without_remotes(project: Project) -> None:
    project.dvc("remote", "remove", "store")
    with pytest.raises(UserError, match="no DVC remote; `dvc remote add --default NAME URL`") as raised:
        publish(project.folder)
    assert raised.value.code is Exit.USAGE
    assert project.published() == []
    project.git("remote", "remove", "origin")
    with pytest.raises(UserError, match="no git remote origin; `git remote add origin URL`") as raised:
        publish(project.folder)
    assert raised.value.code is Exit.USAGE


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (("remote", "modify", "store", "url", "s3://bucket/store"), "requires 'dvc-s3' to be installed"),
        (("config", "core.remote", "other"), "remote 'other' doesn't exist"),
        (("remote", "modify", "store", "worktree", "true"), "unsupported for cloud versioned remotes"),
    ],
)
def test_a_dvc_remote_that_cannot_be_used_is_refused_at_once(
    setting: tuple[str, ...], reason: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dvc_s3", None)  # not installed
    project.dvc(*setting)
    with pytest.raises(UserError, match=f"DVC's default remote cannot be used: .*{reason}") as raised:
        publishing.require_remotes(project.folder)
    assert raised.value.code is Exit.USAGE


@pytest.mark.parametrize("take", [publish, fetch_versions])
def test_a_lightweight_tag_at_the_remote_replaces_no_version(take: Callable[[Path], object], project: Project) -> None:
    mine = project.git("rev-parse", "vdm@v1.0.0").strip()
    project.git("push", "--quiet", "origin", "vdm@v1.0.0^{commit}:refs/tags/vdm@v1.0.0")
    take(project.folder)
    assert project.git("rev-parse", "vdm@v1.0.0").strip() == mine
    assert resolve(project.folder, "v1.0.0").name == "vdm@v1.0.0"


def test_a_version_that_gto_deregistered_with_a_counter_needs_no_files(project: Project) -> None:
    cached(project, "models/vdm", "weights.safetensors", "v1.1.0").unlink()
    project.gto("deprecate", "vdm", "v1.1.0", "--simple", "false")
    assert publish(project.folder) == ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.1.0!#1", "vdm@v1.2.0"]


def test_a_deregistered_version_that_needs_another_number_is_deregistered_again(project: Project) -> None:
    mine = made_by_a_run(project, "v1.1.0")[:12]
    project.gto("deprecate", "vdm", "v1.1.0")
    project.git("push", "--quiet", "origin", "vdm@v1.0.0:refs/tags/vdm@v1.1.0")
    advice = f"`gto register vdm {mine}` and `gto deprecate vdm vX.Y.Z` with the new number of {mine}"
    with pytest.raises(UserError, match=re.escape(advice)):
        publish(project.folder)


def test_the_git_remote_takes_all_refs_or_none(project: Project, tmp_path: Path) -> None:
    hook = tmp_path / "remote.git" / "hooks" / "update"
    hook.write_text('#!/bin/sh\ncase "$1" in *v1.1.0) exit 1;; esac\n')
    hook.chmod(0o755)
    with pytest.raises(UserError, match=r"vdm@v1.1.0 \(hook declined\)"):
        publish(project.folder)
    assert project.published() == []


@pytest.mark.parametrize(("failed", "absent"), [(["a"], set()), ([], {"a"})])
def test_files_that_the_dvc_remote_did_not_take_are_an_error(
    failed: list[str], absent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC counts none that it finds damaged."""
    monkeypatch.setattr(publishing, "lacking", lambda repo, digests: absent)
    repo = Mock(cloud=Mock(push=lambda _: Mock(failed=failed)))
    with pytest.raises(NetworkError, match="the DVC remote did not take 1 files"):
        publishing.upload(repo, {"a", "b"})


def test_a_version_that_two_machines_refused_does_not_end_publishing(project: Project) -> None:
    root, note = project.folder, 'Refuse\n\n{{"decision": "refuse", "reason": "{}"}}\n'
    record_refusal(root, resolve(root, "v1.0.0"), note.format("theirs"))
    publish(root)
    project.git("update-ref", "-d", "refs/notes/vdm-refusals")
    record_refusal(root, resolve(root, "v1.0.0"), note.format("ours"))
    assert publish(root) == ["the reasons of refusals"]
    found = refusal(root, resolve(root, "v1.0.0").commit)
    assert found
    assert found.reason == "ours"


@pytest.mark.parametrize("why", ["repository rule violations", "email privacy restrictions"])
def test_a_rule_of_the_forge_that_refuses_is_no_network_error(
    why: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"git push: ! [remote rejected] vdm@v1.0.0 -> vdm@v1.0.0 (push declined due to {why})"
    monkeypatch.setattr(publishing, "ask", Mock(side_effect=NetworkError(said)))
    with pytest.raises(UserError, match="correct that, and the next run with publish=true publishes again") as raised:
        publish(project.folder)
    assert not isinstance(raised.value, NetworkError)  # a run need not try again


def test_a_branch_that_was_merged_and_deleted_at_the_remote_stays_deleted(project: Project) -> None:
    name = "runs/20260101-000000-bbbb"
    project.git("switch", "--quiet", "--create", name)
    project.git("commit", "--quiet", "--allow-empty", "--message=Retrain\n\nRun: 20260101-000000-bbbb")
    assert publish(project.folder)[0] == f"branch {name}"
    project.git("switch", "--quiet", "main")
    project.git("merge", "--quiet", "--no-ff", "--message=Merge", name)
    project.git("push", "--quiet", "origin", "main", f":{name}")
    assert publish(project.folder) == []
    assert project.git("ls-remote", "--heads", "origin").split()[1::2] == ["refs/heads/main"]


def test_an_upstream_branch_at_another_remote_is_refused(project: Project, tmp_path: Path) -> None:
    project.git("push", "--quiet", "origin", "main")
    project.git("remote", "add", "moved", str(tmp_path / "remote.git"))
    project.git("fetch", "--quiet", "moved")
    project.git("branch", "--quiet", "--set-upstream-to=moved/main")
    with pytest.raises(UserError, match="the upstream branch is at moved, not at origin; `git fetch") as raised:
        first_commit(project.folder, shared=True)
    assert raised.value.code is Exit.USAGE
    assert first_commit(project.folder, shared=False) == project.git("rev-parse", "HEAD").strip()
    assert fetch_versions(project.folder) == ([], [])  # a run that does not share gives its versions other numbers


def test_an_address_with_the_word_declined_is_a_network_error(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "git push: fatal: unable to access 'https://declined.example/'"
    monkeypatch.setattr(publishing, "ask", Mock(side_effect=NetworkError(said)))
    with pytest.raises(NetworkError):
        publish(project.folder)
