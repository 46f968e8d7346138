"""Test how a machine refuses a Prefect server with which it cannot work; the server here only gives the answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from prefect import __version__

from flows.core.errors import Exit, UserError
from flows.orchestration.server import Api, require_server
from flows.orchestration.workers import require_pool


@contextmanager
def answering(**answers: Any) -> Iterator[str]:
    """Yield the URL of a server with an answer, or an error's number, by the last part of the path."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.rpartition("/")[2].partition("?")[0], 404)
            self.send_response(found if isinstance(found, int) else 200)
            self.end_headers()
            self.wfile.write(found.encode() if isinstance(found, str) else json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "message", "code"),
    [
        ('"2.20.1"', r"the server at .* is Prefect 2.20.1, and this machine has 3.*; install one version", Exit.USAGE),
        (401, "the server refuses the password; set PREFECT_API_AUTH_STRING=USER:PASSWORD", Exit.USAGE),
        (404, r"not a Prefect server, or one of another version \(404 Not Found\)", Exit.MISSING),
        (500, r"the server fails \(500 .*\); its own output says why, such as a full disk", Exit.MISSING),
        (503, r"the server fails \(503 .*\); its own output says why, such as a full disk", Exit.MISSING),
        ("<html>", "something other than a Prefect server answers; correct PREFECT_API_URL", Exit.MISSING),
    ],
)
def test_a_server_with_which_this_machine_cannot_work(answer: int | str, message: str, code: Exit) -> None:
    with answering(version=answer) as url, pytest.raises(UserError, match=message) as raised:
        require_server(url)
    assert raised.value.code is code


def test_a_server_that_cannot_write_is_not_taken_for_another_one() -> None:
    """Prefect's server writes a token before every POST, which fails on a full disk."""
    with (
        answering(version=f'"{__version__}"', **{"csrf-token": 500}) as url,
        pytest.raises(UserError, match=r"the server fails \(500 .*\); its own output says why, such as a full disk"),
    ):
        require_server(url)


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
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"no Prefect server answers \(the answer breaks off: IncompleteRead"):
            require_server(f"http://127.0.0.1:{server.server_port}/api")
        server.shutdown()


def test_nobody_answers() -> None:
    with answering() as url:
        pass
    with pytest.raises(
        UserError, match=r"no Prefect server answers \(.*refused\); `vdmctl serve` starts one"
    ) as raised:
        require_server(url)
    assert raised.value.code is Exit.MISSING


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
