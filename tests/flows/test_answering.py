"""HTTP at an address: connections that ask, and do not read what is answered."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Thread
from typing import NamedTuple

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.process import answering
from flows.process.answering import configure_server, listen_at
from flows.process.guard import PART_BYTES, Guard

pytestmark = [pytest.mark.slow]
LARGE = bytes(8 * 2**20)


class Answering(NamedTuple):
    """A server in this process, and its port."""

    server: uvicorn.Server
    port: int

    def get(self, path: str) -> httpx.Response:
        """Return the answer to a request."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=60)

    @property
    def unsent(self) -> list[int]:
        """How many bytes wait to be sent on each connection."""
        connections = self.server.server_state.connections.copy()
        return [connection.transport.get_write_buffer_size() for connection in connections]  # type: ignore[union-attr]

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """Yield a connection that has little room for answers."""
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.settimeout(60)
            made.connect(("127.0.0.1", self.port))
            yield made


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    """Yield a server that ends connections of which nothing was read for a second."""
    monkeypatch.setattr(answering, "UNREAD_SECONDS", 1.0)
    monkeypatch.setattr(answering, "SILENT_SECONDS", 0.5)

    async def large(_: Request) -> Response:
        return Response(LARGE)

    app = Guard(Starlette(routes=[Route("/large", large)]))
    server = uvicorn.Server(configure_server(app))
    with listen_at("127.0.0.1", 0) as at:
        thread = Thread(target=server.run, args=([at],))
        thread.start()
        try:
            yield Answering(server, at.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until it is true."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def ask(path: str) -> bytes:
    """Return a request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.mark.parametrize("path", ["/large", "/nowhere"])
def test_clients_that_ask_on_and_never_read_do_not_hold_the_connections(
    served: Answering, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(answering, "MOST_CONNECTIONS", 20)
    with ExitStack() as stack:
        unread = [stack.enter_context(served.connection()) for _ in range(20)]
        for connection in unread:
            connection.setblocking(False)
        begin = time.monotonic()
        while time.monotonic() < begin + 0.7:
            for connection in unread:
                with suppress(OSError):
                    connection.send(100 * ask(path))
        assert max(served.unsent, default=0) <= 2 * PART_BYTES + 1024
        wait_until(lambda: not served.server.server_state.connections)
        assert served.get("/large").content == LARGE


def test_an_answer_that_nobody_reads_ends_though_nothing_more_is_asked(served: Answering) -> None:
    with served.connection() as connection:
        connection.sendall(ask("/large"))
        wait_until(lambda: any(served.unsent))
        assert max(served.unsent, default=0) <= 2 * PART_BYTES + 1024
        wait_until(lambda: not served.server.server_state.connections)


def test_whoever_reads_slowly_gets_the_whole_answer(served: Answering) -> None:
    with served.connection() as connection:
        connection.sendall(ask("/large"))
        end, received = time.monotonic() + 3, 0
        while time.monotonic() < end:
            received += len(connection.recv(4096))
            time.sleep(0.1)
        while some := connection.recv(2**20):
            received += len(some)
        assert received > len(LARGE)
