"""What `vdmctl status` reports, and which of it is a problem."""

import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from forge import Forge, refuse
from prefect.states import Cancelled, Completed, Crashed, Failed, State
from project import Sandbox, one_line
from servers import OWN

import flows.orchestration.due  # noqa: F401
from flows.commands import operating
from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.orchestration.answers import Device, SourceNow, Status, Worktree
from flows.orchestration.files import Silence
from flows.orchestration.silence import silences
from flows.orchestration.status import describe_ending, devices, is_dropped, problems, registry, status, worktrees
from flows.process.locks import Holder, lock_file
from flows.project.project import Project

WELL: dict[str, Any] = {
    "deployments": ["train-vdm"],
    "workers": [{"name": "w", "status": "ONLINE"}],
    "schedules": [],
    "runs": [],
    "late": [],
    "dropped": [],
    "last_run": None,
}
REGISTRY: dict[str, Any] = {"versions": 1, "champion": "vdm@v1.0.0", "unpublished": [], "unfetched": []}
LATE = {"name": "owl", "planned": "T", "queue": "gpu"}
ENDED = {"name": "elk", "state": "Failed", "ended": "T", "reason": "no space"}


def found_with(
    server: dict[str, Any] = WELL,
    registry: dict[str, Any] = REGISTRY,
    images: Mapping[str, Any] = {},
    free: int = 10**9,
) -> Status:
    """Return the answer of a loop that is well, with other values in some parts."""
    parts = {"server": {"url": OWN, "answers": True} | server, "registry": registry, "images": images}
    nothing = dict[str, Any](devices=[], apps=[], worktrees=[], disk_bytes={})
    return Status.model_validate(parts | nothing | {"folder": "/here", "disk_free_bytes": free})


def said(server: dict[str, Any] = WELL, registry: dict[str, Any] = REGISTRY, free: int = 10**9) -> list[str]:
    return list(problems(found_with(server, registry, free=free)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"deployments": []}, "the server has no deployment train-vdm; `vdmctl serve` creates it when it starts"),
        ({"workers": [{"name": "w", "status": "OFFLINE"}]}, "no worker is online, so no run starts; "),
        ({"late": [LATE]}, "run owl, planned for T, has not started; is the queue gpu paused, or no worker"),
        ({"dropped": [ENDED]}, "run elk was cancelled at T: no space; another run of its deployment was unfinished"),
        (
            {"dropped": [ENDED | {"reason": "Deployment concurrency limit reached."}]},
            "run elk was cancelled at T: Deployment concurrency limit reached; another run of its deployment",
        ),
        ({"last_run": ENDED}, "the last run, elk, failed at T: no space"),
        ({"answers": False, "reason": "no Prefect server answers"}, f"{OWN}: no Prefect server answers"),
    ],
)
def test_a_problem_of_the_loop_is_one_line(change: dict[str, Any], line: str) -> None:
    assert said() == []
    (found,) = said(WELL | change)
    assert found.startswith(line)


def test_a_problem_of_the_versions_is_one_line() -> None:
    (found,) = said(registry=REGISTRY | {"champion": None})
    assert found.startswith("no version is the champion; `vdmctl promote VERSION` makes one")
    (found,) = said(registry=REGISTRY | {"unpublished": ["vdm@v1.0.0", "vdm#champion#1"]})
    assert found.startswith("vdm@v1.0.0, vdm#champion#1: not at origin; a run with")


def test_a_full_disk_is_a_problem() -> None:
    assert said(free=10**8) == []
    (found,) = said(free=12_340_000)
    assert found == "/here: no space is left on the disk (12.3 MB); `vdmctl prune` removes what nothing needs"


def test_a_clone_without_tags_says_what_brings_the_versions(tmp_path: Path) -> None:
    """A version that was refused and pruned here is not missing."""
    forge = Forge(tmp_path / "forge")
    for number in ("v1.0.0", "v1.1.0", "v1.2.0"):
        forge.version(number)
    refuse(forge.project, "v1.1.0")
    forge.project.gto("deprecate", "vdm", "v1.2.0")
    forge.git("push", "--quiet", "--tags", "origin", "main")
    clone = forge.clone(tmp_path / "clone")
    clone.git("tag", "--delete", *clone.git("tag").split())
    (found,) = said(registry=registry(clone.opened))
    assert found == "vdm@v1.0.0, vdm@v1.1.0: at origin and not here; `git fetch --tags` brings them"
    brought = "the versions of vdm at origin are not here; `git fetch --tags` brings them"
    assert clone.vdmctl("models").stdout.strip() == brought
    assert one_line(clone.vdmctl("verify", "champion")) == f"vdmctl: {brought}"
    clone.git("fetch", "--quiet", "--tags")
    clone.git("tag", "--delete", "vdm@v1.1.0")
    assert registry(clone.opened).unfetched == []
    clone.git("remote", "set-url", "origin", str(tmp_path / "gone"))
    clone.git("tag", "--delete", *clone.git("tag").split())
    assert clone.vdmctl("models").stdout.startswith("there is no version of vdm yet; commit a run")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (Completed(name="Promoted", message="vdm@v1.0.0"), None),
        (Crashed(name="Continued", message="It goes on as run owl."), None),
        (Failed(message="no space"), "no space"),
        (Crashed(name="Interrupted"), "Prefect knows no reason"),
    ],
)
def test_a_run_that_ended_badly_has_a_reason(state: State[None], reason: str | None) -> None:
    run = Mock(state=state, state_name=state.name, end_time=datetime(2026, 1, 2, tzinfo=UTC))
    run.name = "owl"
    assert describe_ending(run).reason == reason


def test_a_run_that_the_limit_cancelled_was_dropped() -> None:
    limit: State[None] = Cancelled(message="Deployment concurrency limit reached.")
    assert is_dropped(Mock(state=limit, created_by=None))
    assert not is_dropped(Mock(state=Cancelled(), created_by=None))
    assert not is_dropped(Mock(state=limit, created_by=Mock(type="AUTOMATION")))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"state": "changed", "added": 12, "removed": 0}, "/here: 12 pictures added since vdm@v1.3.0"),
        ({"state": "changed", "added": 1200, "removed": 3}, "/here: 1,200 pictures added and 3 pictures removed since"),
        (
            {"state": "changed", "added": 2, "empty": 1, "removed": 0},
            "/here: 2 pictures added (1 without a byte) since vdm@v1.3.0",
        ),
        ({"state": "changed", "added": None, "removed": None}, "/here: changed since vdm@v1.3.0"),
        ({"state": "same", "added": 0, "removed": 0}, "/here: as in vdm@v1.3.0"),
        ({"state": "same", "damaged": 2}, "/here (2 damaged, left out): as in vdm@v1.3.0"),
        ({"state": "missing"}, "/here is not on this machine; a run that shares versions uses the recorded images"),
        ({"state": "imported"}, "/here is an import, which a run brings up to date"),
        ({"state": "changed", "since": None}, "/here: no run has seen them yet"),
    ],
)
def test_what_a_run_would_find_is_one_line(found: dict[str, Any], said: str) -> None:
    source = SourceNow.model_validate({"source": "/here", "since": "vdm@v1.3.0", "empty": 0} | found)
    assert operating.images_now(source).startswith(said)


def test_a_folder_that_is_not_served_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imports of Prefect and DVC are paid for already."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    project = Sandbox(tmp_path / "project")
    began = time.monotonic()
    found = status(Project(project.folder))
    assert time.monotonic() - began < 2
    assert found.problems == [f"{project.folder}: not served; start `vdmctl serve`, or set PREFECT_API_URL"]


def test_what_no_longer_comes_is_a_problem(tmp_path: Path) -> None:
    now, here = datetime(2026, 1, 10, tzinfo=UTC), socket.gethostname()
    images: dict[str, Any] = {"source": str(tmp_path), "state": "missing", "since": "vdm@v1.0.0"}
    server = WELL | {"workers": [{"name": f"{here}:w", "status": "ONLINE"}, {"name": "far:w", "status": "OFFLINE"}]}

    def said_of(limits: Silence | None = None, server: dict[str, Any] = server, **changes: Any) -> list[str]:
        return list(silences(limits or Silence(), found_with(server, images=images | changes), now))

    assert said_of()[0].startswith(f"{tmp_path}, which vdm@v1.0.0 was made of, is on no machine with a worker")
    assert said_of(server=WELL | {"workers": [{"name": "far:w", "status": "ONLINE"}]}) == []
    assert said_of(state="same") == []
    (tmp_path / "0.png").touch()
    os.utime(tmp_path / "0.png", (now.timestamp() - 3 * 86400,) * 2)
    assert said_of(Silence(picture_days=4), state="same") == []
    assert "newest picture is of 2026-01-07T00:00:00+00:00" in said_of(Silence(picture_days=2), state="same")[0]
    ran = server | {"last_run": ENDED | {"ended": "2026-01-01T00:00:00+00:00"}}
    assert said_of(Silence(run_days=10), ran, state="same") == []
    assert said_of(Silence(run_days=8), ran, state="same")[0].startswith("the newest run ended at 2026-01-01")
    assert said_of(Silence(run_days=8), state="same")[0].startswith("the newest run is not known to the server")


@pytest.mark.parametrize("source", ["folder/0.png", "folder/a/0.parquet", "pictures.zip", "pictures.npy", "0.parquet"])
def test_the_age_of_pictures_is_that_of_whatever_contains_them(source: str, tmp_path: Path) -> None:
    now = datetime(2026, 1, 10, tzinfo=UTC)
    file = tmp_path / source
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.utime(file, (now.timestamp() - 3 * 86400,) * 2)
    named = tmp_path / source.split("/")[0]
    found = found_with(WELL, images={"source": str(named), "state": "same"})
    assert list(silences(Silence(picture_days=4), found, now)) == []
    (said,) = silences(Silence(picture_days=2), found, now)
    assert said.startswith(f"{named}: its newest picture is of 2026-01-07T00:00:00+00:00")


def test_a_source_that_holds_no_pictures_any_more_is_a_problem_if_they_should_come(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    found = found_with(WELL, images={"source": str(tmp_path), "state": "same"})
    assert list(silences(Silence(), found, datetime.now(UTC))) == []
    with pytest.raises(UserError, match="holds no"):
        list(silences(Silence(picture_days=2), found, datetime.now(UTC)))


def test_what_is_in_use_is_what_has_a_held_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path))
    folder = tmp_path / layout.WORKTREES
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    device = Holder(process=7, folder="/here")
    with lock_file(tmp_path / "cpu.lock", device), lock_file(folder / "a.lock"):
        assert devices() == [Device(device="cpu", holder="process 7 in /here")]
        assert worktrees(Project(tmp_path)) == [Worktree(name="a", in_use=True), Worktree(name="b", in_use=False)]
    assert devices() == []


def test_a_champion_that_cannot_be_verified_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, line in (
        (NetworkError("no answer"), "the champion cannot be verified now: no answer"),
        (UserError("gone", Exit.MISSING), "the champion does not verify: gone"),
    ):
        monkeypatch.setattr("flows.project.project.open_registry", Mock(side_effect=error))
        operating.project.cache_clear()
        assert operating.champion_problems() == [line]
