"""`vdmctl serve` and its workers: who may serve, which runs are ended, and what does not end the loop."""

import os
import re
import shlex
import signal
import sys
import time
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock, Mock

import pytest
from servers import OWN, TEAM, answering

from flows.core.errors import Exit, UserError
from flows.orchestration import automations, engines, serve, workers
from flows.orchestration.server import Api, Refused
from flows.orchestration.status import paused
from flows.orchestration.workers import LOCK, alone, require_pool, worker_name
from flows.process.ending import STOP
from flows.process.locks import lock_file

pytestmark = pytest.mark.usefixtures("without_profiles")


@pytest.mark.parametrize(("holder", "named"), [(f"process 7 {OWN}", "process 7"), ("", "another process")])
def test_a_folder_is_served_once(holder: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    LOCK.parent.mkdir()
    with (
        lock_file(LOCK, holder),
        pytest.raises(UserError, match=f"^{named} serves {tmp_path} already") as error,
        alone(OWN),
    ):
        pass
    assert error.value.code == Exit.BUSY


def test_runs_are_looked_after_although_a_notification_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(api: Api) -> None:
        raise Refused("500 Internal Server Error", 500)

    looked = Mock()
    monkeypatch.setattr(serve, "switch_off_impossible", looked.schedules)
    monkeypatch.setattr(automations, "stop_unwanted_runs", looked.unwanted)
    monkeypatch.setattr(automations, "end_dead_runs", looked.dead)
    monkeypatch.setattr(serve, "create_queues", looked.queues)
    with pytest.raises(Refused):
        serve.look(refused, [], {}, Mock())
    assert [call[0] for call in looked.method_calls] == ["schedules", "unwanted", "dead", "queues"]


def test_a_queue_that_was_deleted_is_made_again() -> None:
    """Prefect gives a worker no run of any queue if one of its queues does not exist."""
    made: list[str] = []

    def ask(path: str, **given: Any) -> Any:
        return [{"name": "default"}, {"name": "gpu"}] if path.endswith("/filter") else made.append(given["name"])

    serve.create_queues(cast(Api, Mock(ask=ask)), ["nightly"])
    assert made == ["cpu", "nightly"]


def test_a_folder_may_have_a_percent_sign(tmp_path: Path) -> None:
    """Prefect allows none in the name of a worker."""
    folder = tmp_path / "100%"
    name = workers.worker_name(folder)
    assert not {"/", "%"} & set(name)
    (folder / workers.LOCK).parent.mkdir(parents=True)
    with (
        lock_file(folder / workers.LOCK, f"process 7 {OWN}"),
        pytest.raises(UserError, match=re.escape(f"serves {folder} on ")),
    ):
        workers.refuse_to_mix(OWN, "another", {name})


def test_a_terminal_that_is_closed_interrupts_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends SIGHUP twice, and the second would interrupt the end of the runs."""
    monkeypatch.setattr(workers, "hold_what_starts", Mock())
    before = {number: signal.getsignal(number) for number in (*STOP, signal.SIGHUP)}
    try:
        with workers.until_stopped():
            assert [signal.getsignal(number) for number in STOP] == [workers.interrupt] * len(STOP)
            workers.interrupt()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_server_that_fails_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Mock(side_effect=[Refused("500 Internal Server Error", 500), KeyboardInterrupt])
    monkeypatch.setattr(workers, "Api", Mock())
    monkeypatch.setattr(workers, "LOOK_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        workers.keep_alive([], OWN, looked)
    assert looked.call_count == 2


def test_runs_of_a_worker_that_is_offline_for_a_while_are_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the server was down: it takes all workers for offline until they report."""
    ended, listed = Mock(), [{"name": "another:\\srv", "status": "OFFLINE"}, {"name": worker_name(Path.cwd())}]
    monkeypatch.setattr(serve, "Api", Mock(return_value=Mock(ask=lambda *_, **__: listed)))
    for module, name in ((serve, "create_pool"), (serve, "deploy"), (automations, "put")):
        monkeypatch.setattr(module, name, Mock())
    monkeypatch.setattr(automations, "end_dead_runs", ended)
    serve.prepare(OWN, None)
    assert ended.call_count == 0
    del listed[0]
    serve.prepare(OWN, None)
    assert ended.call_count == 1


@pytest.mark.parametrize(("before", "now"), [("", "shared "), ("shared ", "")])
def test_a_folder_may_begin_and_cease_to_share(
    before: str, now: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect lists the worker of the `vdmctl serve` before for a while."""
    monkeypatch.chdir(tmp_path)
    own = worker_name(Path.cwd())
    listed = [{"name": before + own, "status": "ONLINE"}]
    monkeypatch.setattr(serve, "Api", Mock(return_value=Mock(ask=lambda *_, **__: listed)))
    for module, name in ((serve, "create_pool"), (serve, "deploy"), (automations, "put")):
        monkeypatch.setattr(module, name, Mock())
    monkeypatch.setattr(automations, "end_dead_runs", Mock())
    with alone(OWN):
        serve.prepare(OWN, now + own)


def test_a_run_is_ended_when_it_had_no_process_for_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By this machine's monotonic clock: the server's clock may differ, and a suspended machine has no processes."""
    now, alive = [1000.0], {"here": 7}
    run = {"state": {"type": "RUNNING", "timestamp": "2000-01-01T00:00:00Z"}}
    runs = [{"id": name, "name": name, **run} for name in ("here", "gone")]
    api: Any = Mock(url=OWN, ask=Mock(side_effect=lambda path, **_: runs if "filter" in path else {"status": "ACCEPT"}))
    monkeypatch.setattr(automations, "engines", lambda url: alive)
    monkeypatch.setattr("flows.orchestration.automations.time.monotonic", lambda: now[0])
    absent: dict[str, float] = {}

    def ended(seconds: float) -> list[str]:
        now[0] += seconds
        api.ask.reset_mock()
        automations.end_dead_runs(api, absent, after=60)
        return [call.args[0] for call in api.ask.call_args_list[1:]]

    assert ended(0) == []
    assert ended(59) == []
    assert ended(1) == ["flow_runs/gone/set_state"]
    assert api.ask.call_args_list[0].kwargs["work_pools"] == {"name": {"any_": ["vdm"]}}
    del alive["here"]
    runs.pop()
    assert ended(0) == []
    assert absent == {"here": 1060.0}


def test_a_run_is_not_stopped_because_something_else_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *process: killed.append(process))
    monkeypatch.setattr(automations, "engines", lambda url, folder: {"1": 7})
    with answering() as url, pytest.raises(Refused, match="404"):
        automations.stop_unwanted_runs(Api(url), tmp_path)
    assert killed == []


def test_a_run_that_starts_while_the_others_stop_is_stopped_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running, stopped = iter([{"first": 7}, {"first": 7}, {"second": 8}, {}]), []
    monkeypatch.setattr(engines, "engines", lambda url, folder: next(running, {}))
    monkeypatch.setattr(os, "kill", lambda pid, number: stopped.append(pid))
    engines.stop_engines(OWN, tmp_path, 60)
    assert stopped == [7, 8]


def test_advice_is_quoted_for_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path / "my data")
    home = f"PREFECT_HOME={Path.cwd()}/.vdm/prefect"
    assert shlex.split(workers.with_own_home().strip("`"))[:2] == [home, "vdmctl"]
    pool, queue = {"name": "vdm", "is_paused": False}, {"name": "big jobs", "is_paused": True}
    api: Any = Mock(ask=lambda path, **_: [queue] if "queues" in path else [pool])
    (one,) = paused(api)
    assert shlex.split(one["resume"]) == ["prefect", "work-queue", "resume", "big jobs", "--pool", "vdm"]


@pytest.mark.parametrize(
    ("answer", "message", "code"),
    [
        (404, "has no work pool vdm; run `vdmctl serve` on the server's machine", Exit.MISSING),
        ({"type": "docker"}, "the work pool vdm is of type docker, not process; `prefect work-pool delete", Exit.USAGE),
    ],
)
def test_a_pool_with_which_this_machine_cannot_work(answer: Any, message: str, code: Exit) -> None:
    with answering(vdm=answer) as url, pytest.raises(UserError, match=message) as raised:
        require_pool(Api(url))
    assert raised.value.code is code


@pytest.mark.processes
def test_a_worker_has_time_to_report_its_last_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prefect's worker kills itself at the second signal."""
    program = (
        "import os, pathlib, signal, time\n"
        "def first(*_):\n"
        "    for number in (signal.SIGINT, signal.SIGTERM):\n"
        "        signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        "    time.sleep(1)\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGTERM, first)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("VDM_PROJECT", "PATH"):  # `start_worker` sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(workers, "prefect", lambda *_: [sys.executable, "-c", program])
    with ExitStack() as stack:
        kept = workers.start_worker(stack, OWN, "name", ["default"])
        while not Path("ready").exists():
            time.sleep(0.05)
    assert kept.process.returncode == 0


@pytest.mark.parametrize(
    ("options", "ends"),
    [({}, True), ({"share": True}, False), ({"worker": False}, False), ({"worker": False, "share": True}, False)],
)
def test_runs_are_ended_only_where_all_their_processes_can_be_seen(
    options: dict[str, bool], ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers on other machines may share the server, and their processes are not here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VDM_SHARE", "")  # `serve` sets it
    monkeypatch.setattr("flows.registry.publishing.require_remotes", Mock())
    replaced = "require_project configure require_server prepare Api require_clock require_queues start_worker"
    for name in [*replaced.split(), "switch_off_impossible"]:
        monkeypatch.setattr(serve, name, Mock())
    made = Mock()
    monkeypatch.setattr(serve, "create_queues", made)
    for name in ("until_stopped", "alone"):
        monkeypatch.setattr(serve, name, lambda *_: nullcontext())
    monkeypatch.setattr(serve, "find_address", lambda *_: Mock(url=OWN))
    monkeypatch.setattr(serve, "answers", lambda url: True)
    monkeypatch.setattr(serve, "schedules", lambda api: [])
    monkeypatch.setattr(serve, "keep_alive", lambda kept, url, look: look(Mock()))
    monkeypatch.setattr(automations, "stop_unwanted_runs", Mock())
    ended = Mock()
    monkeypatch.setattr(automations, "end_dead_runs", ended)
    serve.serve(None, None, queues=["nightly"], **options)
    assert ended.called is ends
    assert cast(Mock, serve.require_clock).called is options.get("worker", True)
    assert made.call_args.args[1] == (["nightly"] if options.get("worker", True) else [])


@pytest.mark.parametrize(("seconds", "how"), [(-180, "behind"), (180, "ahead of")])
def test_a_machine_whose_clock_is_wrong_is_refused(seconds: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would mark its runs as crashed, since their heartbeats look old."""
    with answering(version="3") as url:
        api = Api(url)
        workers.require_clock(api)
        monkeypatch.setattr(workers, "time", SimpleNamespace(time=lambda: time.time() + seconds))
        with pytest.raises(UserError, match=rf"clock of this machine is 1(79|80|81) s {how} that of the") as raised:
            workers.require_clock(api)
    assert raised.value.code is Exit.USAGE


def test_a_worker_starts_only_after_all_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checks = "require_project require_server require_clock require_pool require_queues refuse_to_mix share_versions"
    for name in [*checks.split(), "find_address", "Api", "workers", "configure", "keep_alive"]:
        monkeypatch.setattr(workers, name, MagicMock())
    for name in ("until_stopped", "alone"):
        monkeypatch.setattr(workers, name, lambda *_: nullcontext())

    def started(*_: object) -> Mock:
        assert [name for name in checks.split() if not getattr(workers, name).called] == []
        return Mock()

    monkeypatch.setattr(workers, "start_worker", started)
    workers.work(None)


def test_only_runs_of_the_server_and_of_the_folder_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def process(pid: int, url: str = OWN, folder: str = "/mine", module: str = "prefect.engine") -> SimpleNamespace:
        given = {"PREFECT__FLOW_RUN_ID": f"run {pid}", "PREFECT_API_URL": url, "VDM_PROJECT": folder}
        return SimpleNamespace(pid=pid, cmdline=lambda: ["python", "-m", module], environ=lambda: given)

    listed = [process(1), process(2, folder="/other"), process(3, url=TEAM), process(4, module="flows.cli")]
    monkeypatch.setattr(engines.psutil, "process_iter", lambda: listed)
    assert engines.engines(OWN, Path("/mine")) == {"run 1": 1}
    assert engines.engines(OWN) == {"run 1": 1, "run 2": 2}


def test_the_server_is_asked_for_the_workers_of_the_last_hour() -> None:
    api: Any = Mock(ask=Mock(return_value=[{"name": "a"}]))
    assert workers.heard_of(api, 3600) == {"a"}
    after = api.ask.call_args.kwargs["workers"]["last_heartbeat_time"]["after_"]
    assert 3590 < (datetime.now(UTC) - datetime.fromisoformat(after)).total_seconds() < 3700


@pytest.mark.parametrize(
    ("worker", "other", "refused"),
    [("a", "shared b:x", True), ("shared a", "b:x", True), ("a", "b:x", True), ("shared a", "shared b:x", False)],
)
def test_workers_that_share_and_those_that_do_not_never_mix(worker: str, other: str, refused: bool) -> None:
    with pytest.raises(UserError, match="already, or did") if refused else nullcontext():
        workers.refuse_to_mix(OWN, worker, {other})


def test_notifications_do_not_wait_for_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("end_dead_runs", "stop_unwanted_runs"):
        monkeypatch.setattr(automations, name, Mock())
    monkeypatch.setattr(serve, "switch_off_impossible", Mock())
    monkeypatch.setattr(serve, "create_queues", Mock(side_effect=Refused("404 Not Found", 404)))
    looked = Mock()
    with pytest.raises(Refused):
        serve.look(looked, [], None, Mock())
    assert looked.called


def test_a_folder_that_another_user_hides_may_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes are private, and without a look at the lock nobody knows whether its holder has ended."""
    name = workers.worker_name(tmp_path)
    workers.refuse_to_mix(OWN, "another", {name})  # it has ended
    hidden = Mock(side_effect=PermissionError(13, "Permission denied"))
    for module in ("flows.orchestration.workers", "flows.process.locks"):
        monkeypatch.setattr(f"{module}.open_regular", hidden, raising=False)
    with pytest.raises(UserError, match=re.escape(f"serves {tmp_path} on ")):
        workers.refuse_to_mix(OWN, "another", {name})
