"""Test which Prefect server a folder has, and how a machine refuses one with which it cannot work.

The servers here only give the answers.
"""

import base64
import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from prefect import __version__
from prefect.settings import PREFECT_API_URL, Settings, temporary_settings

from flows import cli
from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.orchestration import automations, engines, serve, workers
from flows.orchestration import server as of_server
from flows.orchestration.automations import Notifications
from flows.orchestration.plugin import full_name
from flows.orchestration.server import Api, Refused, answers, bypass_proxy, find_address, refusal, require_server
from flows.orchestration.status import (
    address,
    all_runs,
    loop,
    paused,
    problems,
    problems_of_loop,
    reason,
    server,
    status,
)
from flows.orchestration.workers import LOCK, alone, require_pool, worker_name
from flows.process.locks import lock_file

TEAM, OWN, GIVEN = (f"http://{name}.example.org:4200/api" for name in ("team", "own", "given"))
PROFILES = f"""active = "team"
[profiles.team]
PREFECT_API_URL = "{TEAM}"
[profiles.own]
PREFECT_API_URL = "{OWN}"
PREFECT_API_AUTH_STRING = "operator:secret"
[profiles.plain]
PREFECT_LOGGING_LEVEL = "INFO"
"""


@pytest.fixture(autouse=True)
def unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Prefect have no settings but those of the test."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    for name in ("API_URL", "API_AUTH_STRING", "PROFILE", "PROFILES_PATH"):
        monkeypatch.delenv(f"PREFECT_{name}", raising=False)


@contextmanager
def answering(**answers: Any) -> Iterator[str]:
    """Yield the URL of a server with an answer, or an error's number, by the last part of the path."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, *folders, name = self.path.partition("?")[0].split("/")
            found = answers.get(name, 404) if all(folders) else 404
            self.send_response(found if isinstance(found, int) else 200)
            self.end_headers()
            self.wfile.write(found.encode() if isinstance(found, str) else json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@contextmanager
def saying(said: bytes) -> Iterator[str]:
    """Yield the URL of a server that says the same to everybody, whether or not that is HTTP."""

    class Say(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(10_000)
            self.request.sendall(said)

    with TCPServer(("127.0.0.1", 0), Say) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "message", "code"),
    [
        ('"2.20.1"', r"the server at .* is Prefect 2.20.1, and this machine has 3.*; install one version", Exit.USAGE),
        (401, "the server refuses the password; set PREFECT_API_AUTH_STRING=USER:PASSWORD", Exit.USAGE),
        (404, r"not a Prefect server, or one of another version \(404 Not Found\)", Exit.MISSING),
        (501, r"not a Prefect server, or one of another version \(501 Not Implemented\)", Exit.MISSING),
        (500, r"the server fails \(500 .*\); its own output says why, such as a full disk", Exit.MISSING),
        (503, r"the server fails \(503 .*\); its own output says why, such as a full disk", Exit.MISSING),
        ("<html>", r"not a Prefect server, .* \(Expecting value: .*\); correct PREFECT_API_URL", Exit.MISSING),
    ],
)
def test_a_server_with_which_this_machine_cannot_work(answer: int | str, message: str, code: Exit) -> None:
    with answering(version=answer) as url, pytest.raises(UserError, match=message) as raised:
        require_server(url)
    assert raised.value.code is code


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_9.2"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "Expecting value: "),
        (b"HTTP/1.0 200 OK\r\n\r\n\xff", "'utf-8' codec can't decode byte 0xff"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "list indices must be integers"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "404 Not Found"),
    ],
)
def test_something_else_that_answers_is_one_line(said: bytes, reason: str) -> None:
    with saying(said) as url:
        assert answers(url)
        line = rf"{url}: not a Prefect server, or one of another version \({re.escape(reason)}.*\); correct .* --port$"
        with pytest.raises(UserError, match=line) as raised:
            require_server(url)
        assert raised.value.code is Exit.MISSING
        with pytest.raises(SystemExit, match=line):
            full_name("train-vdm", url)


@pytest.mark.parametrize(
    ("url", "message", "code"),
    [
        ("http://localhost:99999/api", "not the address of a server: Port out of range", Exit.USAGE),
        (
            "localhost:4200/api",
            r"not a Prefect server, .* \(an address begins with http:// or https://\); correct PREFECT_API_URL",
            Exit.MISSING,
        ),
        ("http://server:port/api", "not the address of a server: Port could not be cast", Exit.USAGE),
    ],
)
def test_what_cannot_be_an_address(url: str, message: str, code: Exit) -> None:
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(UserError, match=re.escape(url) + ": " + message) as raised,
    ):
        find_address(None, None)
    assert raised.value.code is code


def test_a_server_is_started_where_the_url_says_or_not_at_all() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1/api"}):
        assert find_address(None, None).port == 80
    with (
        temporary_settings({PREFECT_API_URL: "https://127.0.0.1:9/api"}),
        pytest.raises(UserError, match=r"no Prefect server answers .* \(--host lets other machines in\)"),
    ):
        find_address(None, None)


def test_an_address_may_end_in_slashes() -> None:
    with answering(health=True, version=f'"{__version__}"') as url, temporary_settings({PREFECT_API_URL: f"{url}//"}):
        assert answers(f"{url}/")
        require_server(f"{url}/")
        assert find_address(None, None).url == url


def test_no_request_to_loopback_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, answering(health=True, version=f'"{__version__}"') as url:
        monkeypatch.setenv("http_proxy", "http://{}:{}".format(*proxy.getsockname()))
        monkeypatch.setenv("no_proxy", "")
        assert answers(url)
        require_server(url)
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize(
    ("url", "before", "after"),
    [
        ("http://127.0.0.1:4200/api", "", "127.0.0.1"),
        ("http://localhost:4200/api", "example.org", "example.org,localhost"),
        ("http://[::1]:4200/api", "localhost,::1", "localhost,::1"),
        ("http://127.0.0.1:4200/api", "*", "*"),
        (TEAM, "localhost", "localhost"),
    ],
)
def test_programs_that_prefect_starts_reach_loopback_without_a_proxy(
    url: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", before)
    bypass_proxy(url)
    assert os.environ["no_proxy"] == after


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, TEAM),
        ({"PREFECT_PROFILE": "own"}, OWN),
        ({"PREFECT_PROFILE": "own", "PREFECT_API_URL": GIVEN}, GIVEN),
        ({"PREFECT_PROFILE": "plain"}, ""),
        ({"PREFECT_PROFILE": "unknown"}, ""),
        ({"PREFECT_PROFILES_PATH": "/nowhere"}, ""),
    ],
)
def test_the_address_is_that_of_prefects_settings(
    environment: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles.toml").write_text(PROFILES)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert address(tmp_path) == expected == (Settings().api.url or "")


def test_the_password_may_be_in_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles.toml").write_text(PROFILES)
    monkeypatch.setenv("PREFECT_PROFILE", "own")
    with answering() as url:
        assert Api(url).headers["Authorization"] == f"Basic {base64.b64encode(b'operator:secret').decode()}"


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


@pytest.mark.parametrize("failure", [ConnectionError("down"), Refused("503 Service Unavailable", 503)])
def test_a_notification_is_tried_again_when_the_server_failed(
    failure: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([failure, Refused("422 Unprocessable", 422, "no such trigger"), None])

    def put(*_: object) -> None:
        if answer := next(answers):
            raise answer

    notification = {"name": "mail", "block": "sendgrid-email/vdm", "trigger": {}, "actions": []}
    monkeypatch.setattr(automations, "notifications", lambda: [notification])
    monkeypatch.setattr(automations, "block", lambda api, name: "1")
    monkeypatch.setattr(automations, "put", put)
    found, api = Notifications(), cast(Api, None)  # what would use it is replaced
    with pytest.raises(type(failure)):
        found.look(api)
    for _ in range(3):
        found.look(api)
    assert capsys.readouterr().err == "mail: off, since the server refuses it: no such trigger\n"


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


def test_all_runs_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.orchestration.status.PAGE", 2)
    api: Any = Mock(ask=lambda path, *, offset, limit, **_: [{"id": number} for number in range(5)][offset:][:limit])
    assert [run["id"] for run in all_runs(api, "SCHEDULED", sort="EXPECTED_START_TIME_ASC")] == [0, 1, 2, 3, 4]


def test_a_run_is_not_stopped_because_something_else_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *process: killed.append(process))
    monkeypatch.setattr(automations, "engines", lambda url, folder: {"1": 7})
    with answering() as url, pytest.raises(Refused, match="404"):
        automations.stop_unwanted_runs(Api(url), tmp_path)
    assert killed == []


def test_what_a_server_refuses_is_not_about_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(arguments: list[str]) -> None:
        raise Refused("503 Service Unavailable", 503)

    monkeypatch.setattr(cli, "call", call)
    assert cli.run(["serve"]) == Exit.MISSING
    assert capsys.readouterr().err == "vdmctl: 503 Service Unavailable\n"


def test_an_automation_that_is_updated_goes_on_waiting() -> None:
    """Prefect keeps what a trigger has seen by the trigger's id."""
    api: Any = Mock(ask=Mock(return_value=[{"id": "1", "enabled": True, "trigger": {"id": "7", "within": 1}}]))
    automations.put(api, {"name": "late", "trigger": {"type": "event"}, "actions": []})
    assert api.ask.call_args.args == ("automations/1", "PUT")
    assert api.ask.call_args.kwargs["trigger"] == {"type": "event", "id": "7"}


def test_a_run_that_starts_while_the_others_stop_is_stopped_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running, stopped = iter([{"first": 7}, {"first": 7}, {"second": 8}, {}]), []
    monkeypatch.setattr(engines, "engines", lambda url, folder: next(running, {}))
    monkeypatch.setattr(os, "kill", lambda pid, number: stopped.append(pid))
    engines.stop_engines(OWN, tmp_path, 60)
    assert stopped == [7, 8]


def test_the_certificates_are_those_of_prefects_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Mock(side_effect=FileNotFoundError(2, "No such file or directory"))
    monkeypatch.setattr("ssl.create_default_context", asked)
    monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", "/etc/ca.pem")
    with pytest.raises(UserError, match=r"^PREFECT_API_SSL_CERT_FILE: /etc/ca.pem: No such file or directory$"):
        answers("https://127.0.0.1:9/api")
    assert asked.call_args.kwargs == {"cafile": "/etc/ca.pem"}


@pytest.mark.parametrize(("existing", "said"), [([], True), ([True], True), ([False], False)])
def test_a_notification_that_stays_off_is_not_said_to_be_on(
    existing: list[bool], said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [{"id": "1", "enabled": enabled, "trigger": {"id": "t"}} for enabled in existing]
    notification = {"name": "mail", "block": "sendgrid-email/vdm", "trigger": {}, "actions": []}
    monkeypatch.setattr(automations, "notifications", lambda: [notification])
    monkeypatch.setattr(automations, "block", lambda api, name: "1")
    api: Any = Mock(ask=lambda path, *_, **__: listed if path == "automations/filter" else {"enabled": True})
    Notifications().look(api)
    assert ("mail: on" in capsys.readouterr().err) is said


def test_the_block_of_a_notification_may_have_any_name() -> None:
    with answering(**{"mein%20B%C3%A4r": {"id": "7"}}) as url:
        assert automations.block(Api(url), "custom-webhook/mein Bär") == "7"
        assert automations.block(Api(url), "custom-webhook/a/b?c#d") is None


def test_advice_is_quoted_for_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path / "my data")
    home = f"PREFECT_HOME={Path.cwd()}/.vdm/prefect"
    assert shlex.split(workers.with_own_home().strip("`"))[:2] == [home, "vdmctl"]
    pool, queue = {"name": "vdm", "is_paused": False}, {"name": "big jobs", "is_paused": True}
    api: Any = Mock(ask=lambda path, **_: [queue] if "queues" in path else [pool])
    (one,) = paused(api)
    assert shlex.split(one["resume"]) == ["prefect", "work-queue", "resume", "big jobs", "--pool", "vdm"]


def test_a_server_that_cannot_write_is_not_taken_for_another_one() -> None:
    """Prefect's server writes a token before every POST, which fails on a full disk."""
    with (
        answering(version=f'"{__version__}"', **{"csrf-token": 500}) as url,
        pytest.raises(UserError, match=r"the server fails \(500 .*\); its own output says why, such as a full disk"),
    ):
        require_server(url)


def test_a_server_that_gives_no_token_without_the_password_is_not_taken_for_another_one() -> None:
    """Prefect's server refuses a POST without a token before it looks at the password."""
    with (
        answering(filter=403, **{"csrf-token": 401}) as url,
        pytest.raises(OSError, match="401 Unauthorized") as raised,
    ):
        Api(url).ask("flows/filter")
    assert refusal(raised.value) == "the server refuses the password; set PREFECT_API_AUTH_STRING=USER:PASSWORD"


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    class Dying(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"{")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Dying) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(UserError, match=r"no Prefect server answers \(the answer breaks off: IncompleteRead"):
            require_server(f"http://127.0.0.1:{server.server_port}/api")
        server.shutdown()


def test_nobody_answers() -> None:
    with answering() as url:
        pass
    with pytest.raises(
        UserError, match=r"no Prefect server answers \(.*refused\); start one with `vdmctl serve`"
    ) as raised:
        require_server(url)
    assert raised.value.code is Exit.MISSING
    assert not answers(url)


def test_a_port_that_accepts_and_says_nothing_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_server, "SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not answers("http://{}:{}/api".format(*silent.getsockname()))


def test_a_server_of_this_version_is_accepted() -> None:
    with answering(version=f'"{__version__}"') as url:
        require_server(url)


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
    online = {"url": "http://a/api", "answers": True, "workers": [{"name": "w", "status": "ONLINE"}]}
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
    monkeypatch.setenv("VDM_PROJECT", "")  # `start_worker` sets it
    monkeypatch.setattr(workers, "prefect", lambda *_: [sys.executable, "-c", program])
    with ExitStack() as stack:
        kept = workers.start_worker(stack, OWN, "name", ["default"])
        while not Path("ready").exists():
            time.sleep(0.05)
    assert kept.process.returncode == 0


def test_the_password_is_sent_to_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "operator:secret")
    with answering(version=f'"{__version__}"') as other:
        said = f"HTTP/1.0 302 Found\r\nLocation: {other}/admin/version\r\n\r\n".encode()
        with saying(said) as url, pytest.raises(UserError, match="302 Found"):
            require_server(url)


def test_names_of_flows_are_text_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.orchestration.plugin.require_server", lambda url: None)
    monkeypatch.setattr("flows.orchestration.plugin.Api", lambda url: None)
    names = ["\x1b[31mred/train-vdm", "train-vdm/train-vdm"]
    monkeypatch.setattr("flows.orchestration.plugin.by_full_name", lambda api, name: names)
    with pytest.raises(SystemExit) as raised:
        full_name("train-vdm", "http://127.0.0.1:4200/api")
    assert "\x1b" not in str(raised.value)
    assert "\\u001b[31mred/train-vdm" in str(raised.value)


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
    replaced = "require_project configure require_server prepare Api require_queues start_worker"
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
    assert made.call_args.args[1] == (["nightly"] if options.get("worker", True) else [])


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
    with pytest.raises(UserError, match="already; ") if refused else nullcontext():
        workers.refuse_to_mix(OWN, worker, {other})


EVENT = {"type": "event", "posture": "Reactive", "expect": ["vdm.failed"], "threshold": 1}
MAIL = {"type": "send-notification", "subject": "s", "body": "b"}
NOTIFICATION: dict[str, Any] = {"name": "mail", "block": "sendgrid-email/vdm", "trigger": EVENT, "actions": [MAIL]}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([NOTIFICATION, NOTIFICATION | {"block": "slack-webhook/vdm"}], "mail: the name of two automations"),
        ([NOTIFICATION | {"name": automations.silent_runs().name}], "stuck runs: the name of two automations"),
        ([NOTIFICATION | {"trigger": EVENT | {"expct": []}}], "mail: Prefect does not know expct"),
        ([NOTIFICATION | {"actions": [MAIL | {"subjct": ""}]}], "mail: Prefect does not know subjct"),
        ([NOTIFICATION | {"enable": False}], "mail: Prefect does not know enable"),
        ([NOTIFICATION | {"actions": [MAIL | {"type": "mail"}]}], "mail: Prefect does not know the action mail"),
    ],
)
def test_notifications_that_prefect_would_misunderstand_are_refused(
    entries: list[dict[str, Any]], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layout.AUTOMATIONS.write_text(json.dumps({"automations": entries}))
    with pytest.raises(UserError, match=rf"{re.escape(reason)}$") as error:
        Notifications()
    assert error.value.code == Exit.USAGE


def test_a_notification_has_all_that_its_entry_says() -> None:
    made: list[dict[str, Any]] = []
    more = {"enabled": "no", "description": "mine", "actions_on_resolve": [MAIL]}

    def ask(path: str, **given: Any) -> Any:
        if path.endswith("/filter"):
            return []
        made.append(given)
        return given | {"enabled": given["enabled"] != "no"}  # as Prefect reads it

    assert not automations.put(cast(Api, Mock(ask=ask)), automations.automation(NOTIFICATION | more, "7"))
    sent = [MAIL | {"block_document_id": "7"}]
    assert made == [{"name": "mail", "trigger": EVENT, "actions": sent, **more, "actions_on_resolve": sent}]


@pytest.mark.parametrize(("key", "named"), [(None, "or in one that was deleted"), ("7", "`--queue nightly` makes")])
def test_a_late_run_of_a_deleted_queue_is_not_said_to_wait_for_a_worker(key: str | None, named: str) -> None:
    late = {"name": "owl", "state_name": "Late", "expected_start_time": "T", "idempotency_key": None}
    late |= {"work_queue_name": "nightly", "work_queue_id": key}

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


def test_notifications_do_not_wait_for_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("end_dead_runs", "stop_unwanted_runs"):
        monkeypatch.setattr(automations, name, Mock())
    monkeypatch.setattr(serve, "switch_off_impossible", Mock())
    monkeypatch.setattr(serve, "create_queues", Mock(side_effect=Refused("404 Not Found", 404)))
    looked = Mock()
    with pytest.raises(Refused):
        serve.look(looked, [], None, Mock())
    assert looked.called
