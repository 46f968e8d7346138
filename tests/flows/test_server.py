"""Which Prefect server a folder has, and how a machine refuses one with which it cannot work.

The servers here only give the answers.
"""

import base64
import os
import re
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import pytest
from prefect import __version__
from prefect.settings import PREFECT_API_URL, Settings, temporary_settings
from project import ROOT
from servers import GIVEN, OWN, TEAM, answering, saying

from flows import cli
from flows.core.errors import Exit, UserError
from flows.orchestration import server as of_server
from flows.orchestration.plugin import full_name
from flows.orchestration.server import Api, Refused, answers, bypass_proxy, find_address, refusal, require_server
from flows.orchestration.status import address

pytestmark = pytest.mark.usefixtures("without_profiles")

PROFILES = f"""active = "team"
[profiles.team]
PREFECT_API_URL = "{TEAM}"
[profiles.own]
PREFECT_API_URL = "{OWN}"
PREFECT_API_AUTH_STRING = "operator:secret"
[profiles.plain]
PREFECT_LOGGING_LEVEL = "INFO"
"""


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


def test_what_a_server_refuses_is_not_about_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(arguments: list[str]) -> None:
        raise Refused("503 Service Unavailable", 503)

    monkeypatch.setattr(cli, "call", call)
    assert cli.run(["serve"]) == Exit.MISSING
    assert capsys.readouterr().err == "vdmctl: 503 Service Unavailable\n"


def test_the_certificates_are_those_of_prefects_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Mock(side_effect=FileNotFoundError(2, "No such file or directory"))
    monkeypatch.setattr("ssl.create_default_context", asked)
    monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", "/etc/ca.pem")
    with pytest.raises(UserError, match=r"^PREFECT_API_SSL_CERT_FILE: /etc/ca.pem: No such file or directory$"):
        answers("https://127.0.0.1:9/api")
    assert asked.call_args.kwargs == {"cafile": "/etc/ca.pem"}


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


def test_a_temporary_server_in_the_folder_is_closed_to_pages_of_other_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m flows.train_vdm` starts one if no server is set.  By Prefect's defaults any web page could use it."""
    monkeypatch.chdir(ROOT)
    for name in ("SERVER_CSRF_PROTECTION_ENABLED", "SERVER_CORS_ALLOWED_ORIGINS", "UI_API_URL"):
        monkeypatch.delenv(f"PREFECT_{name}", raising=False)
    settings = Settings().server
    assert settings.api.csrf_protection_enabled
    assert settings.api.cors_allowed_origins == ""
    assert settings.ui.api_url == "/api"  # or the pages of a server at another name or port could not use it


def test_a_run_without_a_server_starts_a_temporary_one_whatever_the_profile_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "profiles.toml").write_text(
        'active = "local"\n[profiles.local]\nPREFECT_SERVER_ALLOW_EPHEMERAL_MODE = "false"\n'
    )
    assert Settings().server.ephemeral.enabled
    monkeypatch.chdir(tmp_path)
    assert not Settings().server.ephemeral.enabled
