"""`vdmctl status`: what it asks the server, and which problems it names."""

import json
import os
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from project import one_line, run_vdmctl
from servers import OWN, answering

from flows.commands import operating
from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.orchestration import automations
from flows.orchestration.server import Api
from flows.orchestration.status import (
    address,
    all_runs,
    devices,
    last_run,
    loop,
    paused,
    problems,
    problems_of_loop,
    reason,
    schedule,
    server,
    size_of,
    status,
    whole_seconds,
    worktrees,
)
from flows.process.locks import lock_file

pytestmark = pytest.mark.usefixtures("without_profiles")

NOTHING: dict[str, Any] = {"paused": [], "schedules": [], "without_queue": [], "late": [], "last_run": None}


def test_a_folder_has_only_the_server_that_serves_it(tmp_path: Path) -> None:
    found = server(tmp_path)
    assert (found["url"], found["answers"]) == ("", False)
    assert found["reason"].startswith(
        "no Prefect server answers (this folder is not served); start one with `vdmctl serve`"
    )
    (tmp_path / layout.SERVE_LOCK).parent.mkdir()
    with lock_file(tmp_path / layout.SERVE_LOCK, f"7 {OWN}"):
        assert address(tmp_path) == OWN
    assert address(tmp_path) == ""


def test_all_runs_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.orchestration.status.PAGE", 2)
    api: Any = Mock(ask=lambda path, *, offset, limit, **_: [{"id": number} for number in range(5)][offset:][:limit])
    assert [run["id"] for run in all_runs(api, "SCHEDULED", sort="EXPECTED_START_TIME_ASC")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("COMPLETED", "promote: vdm@v1.0.0", None),
        ("FAILED", "stage train failed: no space", "stage train failed: no space"),
        ("FAILED", None, "Prefect knows no reason"),
        ("CRASHED", "Aborted by a signal.", "Aborted by a signal; the next run continues from the last saved state"),
        ("CRASHED", automations.PROCESS_GONE, automations.PROCESS_GONE),
    ],
)
def test_the_reason_of_a_run_that_did_not_succeed(kind: str, message: str | None, expected: str | None) -> None:
    assert reason({"state": {"type": kind, "message": message}}) == expected


def test_the_status_names_a_missing_deployment_and_a_missing_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = NOTHING | {"url": "http://a/api", "answers": True, "workers": [{"name": "w", "status": "ONLINE"}]}
    found: dict[str, Any] = {
        "folder": "/vdm",
        "registry": {"versions": 0, "unpublished": None},
        "worktrees": [],
        "disk_bytes": {},
    }
    assert list(problems(found | {"server": online | {"deployments": ["train-vdm", "weekly"]}})) == []
    (problem,) = problems(found | {"server": online | {"deployments": ["weekly"]}})
    assert problem == "the server has no deployment train-vdm; `vdmctl serve` creates it when it starts"
    (problem,) = problems(found | {"server": online | {"deployments": ["train-vdm"], "without_queue": ["weekly"]}})
    assert problem.startswith("no run of train-vdm/weekly starts, since its work queue was deleted; `vdmctl serve`")
    paused = online | {"deployments": ["train-vdm"], "schedules": [{"deployment": "train-vdm/weekly", "paused": True}]}
    (problem,) = problems(found | {"server": paused})
    assert (
        problem
        == "no planned run of train-vdm/weekly starts, since the deployment is paused; resume it in Prefect's UI"
    )
    with answering(**{"csrf-token": 422}) as url:  # and 501 for every POST, such as that which lists the workers
        monkeypatch.setenv("PREFECT_API_URL", url)
        server = status(tmp_path)["server"]
        assert server["answers"]
        (problem,) = problems(found | {"server": server})
        assert problem.startswith(f"{url}: not a Prefect server, or one of another version (501 ")
    with answering(**{"csrf-token": {"key": "of another service"}}) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        assert status(tmp_path)["server"]["answers"]
    monkeypatch.setenv("PREFECT_API_URL", url)  # nobody answers there any more
    assert not status(tmp_path)["server"]["answers"]


@pytest.mark.parametrize(
    ("pool", "key", "named"),
    [
        ("vdm", None, "or in one that was deleted"),
        ("vdm", "7", "online, and free? the option `--queue nightly` makes"),
        ("gpu", "7", "is a worker of the pool gpu online"),
    ],
)
def test_what_the_status_says_of_a_late_run_depends_on_its_pool_and_queue(
    pool: str, key: str | None, named: str
) -> None:
    late = {"name": "owl", "state_name": "Late", "expected_start_time": "T", "idempotency_key": None}
    late |= {"work_pool_name": pool, "work_queue_name": "nightly", "work_queue_id": key}

    def ask(path: str, **given: Any) -> list[dict[str, Any]]:
        wanted = given.get("flow_runs", {}).get("state", {}).get("type", {}).get("any_")
        return [late] if wanted == ["SCHEDULED"] and not given["offset"] else []

    (*_, problem) = problems_of_loop(loop(cast(Api, Mock(ask=ask))))
    assert problem.startswith("run owl, planned for T, has not started")
    assert named in problem


def test_a_queue_may_have_the_name_of_the_pool() -> None:
    pool, queue = {"name": "vdm", "is_paused": False}, {"name": "vdm", "is_paused": True}
    api: Any = Mock(ask=lambda path, **_: [queue] if "queues" in path else [pool])
    assert paused(api) == [{"name": "vdm", "resume": "prefect work-queue resume vdm --pool vdm"}]


def test_the_status_is_printed_although_the_champion_cannot_be_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"registry": {"champion": "vdm@v1.0.0"}, "problems": []}
    damaged = Mock(side_effect=UserError("vdm@v1.0.0: dvc.lock is damaged", Exit.MISSING))
    monkeypatch.setattr("flows.orchestration.status.status", lambda root: found)
    monkeypatch.setattr("flows.registry.versions.resolve", Mock())
    monkeypatch.setattr("flows.registry.verification.verify", damaged)
    result = run_vdmctl(tmp_path, dict(os.environ), "status", "--json", "--verify")
    problem = "the champion does not verify: vdm@v1.0.0: dvc.lock is damaged"
    assert json.loads(result.stdout)["problems"] == [problem]
    assert (result.returncode, one_line(result)) == (Exit.MISSING, f"vdmctl: status: {problem}")


def test_the_status_does_not_blame_the_champion_for_the_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.registry.versions.resolve", Mock())
    silent = Mock(side_effect=NetworkError("the remote does not answer"))
    monkeypatch.setattr("flows.registry.verification.verify", silent)
    assert operating.champion_problems() == ["the champion cannot be verified now: the remote does not answer"]


@pytest.mark.parametrize(
    ("champion", "unpublished", "expected"),
    [
        ("vdm@v1.0.0", [], []),
        ("vdm@v1.0.0", None, []),  # there is no remote
        (None, [], ["no version is the champion"]),
        ("vdm@v1.0.0", ["vdm@v1.0.0", "vdm@v1.1.0"], ["vdm@v1.0.0, vdm@v1.1.0: not pushed to any remote"]),
    ],
)
def test_the_problems_of_the_versions(champion: str | None, unpublished: list[str] | None, expected: list[str]) -> None:
    server = NOTHING | {"deployments": ["train-vdm"], "workers": [{"status": "OFFLINE"}, {"status": "ONLINE"}]}
    registry = {"versions": 2, "champion": champion, "unpublished": unpublished}
    said = [problem.split(";")[0] for problem in problems({"server": server, "registry": registry})]
    assert said == expected


def test_the_last_run_is_the_one_that_ended_last_of_those_that_were_not_cancelled() -> None:
    run = {"name": "owl", "state_name": "Failed", "end_time": "2026-01-04T03:00:00.123456+00:00"}
    ask = Mock(return_value=[run | {"state": {"type": "FAILED", "message": "no space"}}])
    found = last_run(cast(Api, Mock(ask=ask)))
    assert found == {"name": "owl", "state": "Failed", "ended": "2026-01-04T03:00:00+00:00", "reason": "no space"}
    assert ask.call_args.kwargs["sort"] == "END_TIME_DESC"
    assert ask.call_args.kwargs["flow_runs"] == {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}


def test_a_time_keeps_its_zone() -> None:
    assert whole_seconds("2026-01-04T03:00:00.123456Z") == "2026-01-04T03:00:00Z"
    assert whole_seconds(None) is None


@pytest.mark.parametrize(
    ("active", "paused", "expected"),
    [
        (True, False, (True, False, "2026-01-04T03")),
        (True, True, (False, True, None)),
        (False, False, (False, False, None)),
        (False, True, (False, False, None)),
    ],
)
def test_a_schedule_is_paused_only_if_it_would_be_active(
    active: bool, paused: bool, expected: tuple[bool, bool, str | None]
) -> None:
    each = {"id": "s", "active": active, "schedule": {"cron": "0 3 * * 0"}}
    planned = [{"idempotency_key": "scheduled d s 1", "expected_start_time": "2026-01-04T03"}]
    shown = schedule({"id": "d", "name": "weekly", "paused": paused}, each, planned)
    assert (shown["active"], shown["paused"], shown["next_run"]) == expected


def test_the_devices_and_worktrees_in_use_are_those_whose_locks_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path))
    folder = tmp_path / layout.WORKTREES
    for name in ("running", "left"):
        (folder / name).mkdir(parents=True)
    with (
        lock_file(tmp_path / "cuda-7.lock", "process 7"),
        lock_file(tmp_path / "other.lock", "process 8"),
        lock_file(folder / "running.lock", "process 9"),
    ):
        assert [(one["device"], one["holder"]) for one in devices()] == [("cuda-7", "process 7")]
        assert worktrees(tmp_path) == [{"name": "left", "in_use": False}, {"name": "running", "in_use": True}]
    assert devices() == []


def test_the_size_of_a_folder_does_not_count_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(bytes(5000))
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "below" / "file").write_bytes(bytes(300))
    link = tmp_path / "folder" / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert size_of(tmp_path / "folder") == 300 + link.lstat().st_size
