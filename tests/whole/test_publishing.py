"""Publishing to a bare git remote and a DVC remote, and fetching what other machines published."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forge import Forge, champion, crown, refuse

from flows.core.errors import Exit, NetworkError, UserError
from flows.registry.publishing import Outrun, fetch_versions, publish, require_remotes
from flows.registry.verification import verify
from flows.registry.versions import add_version
from flows.repository import repository
from flows.repository.repository import Repository

RUN = "20260101-000000-bbbb"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Return a repository whose version v1.0.0 is published, with its branch, and whose DVC remote is complete."""
    forge = Forge(tmp_path_factory.mktemp("made") / "forge")
    forge.version("v1.0.0")
    forge.git("push", "--quiet", "--set-upstream", "origin", "main", "vdm@v1.0.0")
    return forge


@pytest.fixture
def other(forge: Forge, tmp_path: Path) -> Forge:
    """Return a clone of it: another machine."""
    return forge.clone(tmp_path / "other")


def test_a_clone_of_what_was_published_verifies(forge: Forge, other: Forge) -> None:
    """A branch without its run's commit belongs to a run that still works."""
    forge.git("branch", "runs/20260101-000000-aaaa")
    forge.version("v1.1.0", run=RUN)
    refuse(forge.project, "v1.1.0", reason="no better")
    crown(forge.project, "v1.0.0")
    forge.git("tag", "--annotate", "--message=Private", "mine")
    forge.git("config", "push.followTags", "true")
    for path in list(forge.remote.rglob("*")):
        if path.is_file():
            path.unlink()
    expected = [f"runs/{RUN}", "vdm@v1.1.0", "vdm#refused#1", "vdm#champion#2"]
    assert publish(forge.repository) == expected
    assert publish(forge.repository) == []
    assert "refs/tags/mine" not in forge.project.published()
    assert "aaaa" not in forge.git("ls-remote", "origin")
    assert fetch_versions(other.opened.repository) == (sorted(expected[1:]), [])
    assert fetch_versions(other.opened.repository) == ([], [])
    assert [version.state for version in other.opened.registry.versions] == ["champion", "refused"]
    evidence = other.opened.registry.refusal(other.resolve("v1.1.0").commit)
    assert evidence
    assert evidence.reason == "no better"
    assert f"origin/runs/{RUN}" in other.git("branch", "--remotes")
    assert [check for check in verify(other.opened.repository, other.resolve("v1.1.0")) if check.problem] == []


def test_two_that_finish_together(forge: Forge, other: Forge) -> None:
    """Whoever publishes the number first keeps it; the other one's version is withdrawn and takes the next number."""
    theirs = forge.version("v1.1.0", run="theirs")
    crown(forge.project, "v1.1.0")
    publish(forge.repository)
    mine = [other.commit(number, run=f"mine-{number}") for number in ("first", "second")]
    for commit in mine:
        add_version(other.opened.repository, commit, "Retrained")
    crown(other.project, "v1.1.0")
    refuse(other.project, "v1.2.0")
    other.git("tag", "--annotate", "--message=Mine", "vdm-paper", mine[0])
    before = other.project.published()
    with pytest.raises(Outrun, match=r"origin has other commits under the names of vdm@v1.1.0, vdm#champion#1"):
        publish(other.opened.repository)
    assert other.project.published() == before
    assert fetch_versions(other.opened.repository) == (["vdm#champion#1", "vdm@v1.1.0"], mine)
    assert other.git("tag").split() == ["vdm#champion#1", "vdm-paper", "vdm@v1.0.0", theirs]
    assert other.resolve("champion").commit == forge.resolve("champion").commit
    assert [add_version(other.opened.repository, commit, "Again").name for commit in mine] == [
        "vdm@v1.2.0",
        "vdm@v1.3.0",
    ]
    crown(other.project, "v1.2.0")
    refuse(other.project, "v1.3.0")
    assert {"vdm@v1.2.0", "vdm@v1.3.0", "vdm#champion#2", "vdm#refused#3"} <= set(publish(other.opened.repository))
    fetch_versions(forge.repository)
    assert champion(forge.project) == "vdm@v1.2.0"


@pytest.mark.parametrize("moment", ["ask", "git"])
def test_a_champion_that_comes_while_versions_are_fetched_is_not_lost(
    moment: str, forge: Forge, other: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run makes it while the objects are fetched; somebody with GTO, who takes no lock, just before the update."""
    forge.version("v1.1.0")
    crown(forge.project, "v1.1.0")
    publish(forge.repository)
    real = getattr(Repository, moment)

    def late(repository: Repository, *arguments: str, **options: Any) -> bytes:
        if arguments[0] == ("fetch" if moment == "ask" else "update-ref"):
            monkeypatch.setattr(Repository, moment, real)
            other.git("tag", "--annotate", "--message=Ours", "vdm#champion#1", "vdm@v1.0.0^{commit}")
        return real(repository, *arguments, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(Repository, moment, late)
    if moment == "git":
        with pytest.raises(NetworkError, match=r"versions changed while .*refs/tags/vdm#champion#1"):
            fetch_versions(other.opened.repository)
        assert "vdm@v1.1.0" not in other.git("tag").split()  # all or none
    assert fetch_versions(other.opened.repository) == (["vdm@v1.1.0"], [])
    assert champion(other.project) == "vdm@v1.0.0"
    with pytest.raises(UserError, match=r"origin has other commits under the names of vdm#champion#1"):
        publish(other.opened.repository)


def test_tags_made_by_hand_that_clash_are_named_with_the_command(forge: Forge, other: Forge) -> None:
    """The command of the message replaces ours by those of the remote."""
    forge.version("v1.1.0")
    publish(forge.repository)
    fetch_versions(other.opened.repository)
    crown(forge.project, "v1.0.0")
    publish(forge.repository)
    crown(other.project, "v1.1.0")
    assert fetch_versions(other.opened.repository) == ([], [])
    with pytest.raises(UserError, match=r"`git tag -d 'vdm#champion#1' && git .*`, and register, promote or") as raised:
        publish(other.opened.repository)
    assert (raised.value.code, isinstance(raised.value, Outrun)) == (Exit.USAGE, False)
    subprocess.run(str(raised.value).split("`")[1], shell=True, cwd=other.root, check=True, capture_output=True)
    assert champion(other.project) == "vdm@v1.0.0"
    assert publish(other.opened.repository) == []


@pytest.mark.parametrize("lost", ["file", "listing", "lock"])
def test_a_version_whose_files_are_lost_is_named_and_nothing_is_published(lost: str, forge: Forge) -> None:
    lock = forge.lock("v1.1.0")
    forge.version("v1.1.0", lock, {"dvc.lock": "stages: []"} if lost == "lock" else {})
    forge.version("v1.2.0")
    digest = lock["stages"]["all"]["outs"][0]["md5"] if lost == "listing" else forge.store(b"v1.1.0")
    for place in (forge.cache, forge.remote):
        (place / "files/md5" / digest[:2] / digest[2:]).unlink()
    with pytest.raises(UserError, match=r"^vdm@v1.1.0: .*; `gto deprecate vdm v1.1.0` gives the version up$") as raised:
        publish(forge.repository)
    assert raised.value.code is Exit.MISSING
    assert forge.project.published() == ["refs/tags/vdm@v1.0.0"]
    forge.project.gto("deprecate", "vdm", "v1.1.0")  # what is withdrawn needs no files
    assert sorted(publish(forge.repository)) == ["vdm@v1.1.0", "vdm@v1.1.0!", "vdm@v1.2.0"]


def test_the_git_remote_takes_all_refs_or_none_and_is_quoted(forge: Forge) -> None:
    for number in ("v1.1.0", "v1.2.0"):
        forge.version(number)
    hook = forge.folder / "origin.git/hooks/update"
    hook.write_text('#!/bin/sh\necho No tags on Saturdays\ncase "$1" in *v1.1.0) exit 1;; esac\n')
    hook.chmod(0o755)
    with pytest.raises(UserError, match=r"vdm@v1.1.0 .*\(hook declined\)") as raised:
        publish(forge.repository)
    assert not isinstance(raised.value, NetworkError)  # a run need not try again
    assert "No tags on Saturdays" in str(raised.value)
    assert forge.project.published() == ["refs/tags/vdm@v1.0.0"]
    forge.git("remote", "set-url", "origin", str(forge.folder / "gone"))
    with pytest.raises(NetworkError, match="gone' does not appear to be a git repository"):
        publish(forge.repository)


def test_a_git_remote_that_never_answers(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "LIST_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        forge.git("remote", "set-url", "origin", f"git://127.0.0.1:{silent.getsockname()[1]}/models.git")
        with pytest.raises(
            NetworkError, match=r"git ls-remote in .*: no answer in 1 s; the next run with publish=true"
        ):
            publish(forge.repository)
        with pytest.raises(NetworkError, match=r"^git ls-remote in .*: no answer in 1 s$"):
            fetch_versions(forge.repository)


def test_a_dvc_remote_that_fails_publishes_nothing(forge: Forge) -> None:
    forge.version("v1.1.0")
    forge.project.dvc("remote", "modify", "store", "url", "/dev/null")
    with pytest.raises(NetworkError, match=r"the DVC remote .*; the next run with publish=true publishes again$"):
        publish(forge.repository)
    assert forge.project.published() == ["refs/tags/vdm@v1.0.0"]


def test_without_remotes(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dvc_s3", None)  # not installed
    forge.project.dvc("remote", "modify", "store", "url", "s3://bucket/store")
    with pytest.raises(UserError, match=r"DVC's default remote cannot be used: .*requires 'dvc-s3'") as raised:
        require_remotes(forge.repository)
    assert raised.value.code is Exit.USAGE
    forge.project.dvc("remote", "remove", "store")
    with pytest.raises(UserError, match=r"no remote specified in .* dvc remote add -d"):
        publish(forge.repository)
    forge.git("remote", "remove", "origin")
    with pytest.raises(UserError, match="no git remote origin; `git remote add origin URL`"):
        publish(forge.repository)


def test_a_branch_that_was_merged_and_deleted_at_the_remote_stays_deleted(forge: Forge) -> None:
    forge.version("v1.1.0", run=RUN)
    assert publish(forge.repository) == [f"runs/{RUN}", "vdm@v1.1.0"]
    forge.git("merge", "--quiet", "--no-ff", "--message=Merge", f"runs/{RUN}")
    forge.git("push", "--quiet", "origin", "main", f":runs/{RUN}")
    crown(forge.project, "v1.1.0")
    assert publish(forge.repository) == ["vdm#champion#1"]
    assert forge.git("ls-remote", "--heads", "origin").split()[1::2] == ["refs/heads/main"]


def test_the_commit_of_a_run_is_told_from_a_copy_of_it(forge: Forge) -> None:
    made = forge.commit("results", run=RUN)
    forge.git("cherry-pick", "--allow-empty", made)
    assert [forge.repository.run_of(commit) for commit in (made, "HEAD", "HEAD~1")] == [RUN, RUN, ""]
    assert forge.repository.is_own(made)
    copy = forge.git("rev-parse", "HEAD").strip()
    assert not forge.repository.is_own(copy) or copy == made
    forge.git("branch", "-D", f"runs/{RUN}")
    assert not forge.repository.is_own(made)
    add_version(forge.repository, made, "Retrained")
    assert forge.repository.is_own(made)
    newest = forge.opened.registry.newest().name
    assert json.loads(forge.vdmctl("models", "--json").stdout)["versions"][-1]["version"] == newest
