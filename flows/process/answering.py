"""Answer HTTP at an address: how many connections there may be, and how long one may ask nothing or read nothing."""

import asyncio
import logging
import resource
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

SILENT_SECONDS = 5.0
"""How long a connection may take to ask something, or what follows an answer."""
UNREAD_SECONDS = 30.0
"""How long a client may read nothing of an answer."""
MOST_CONNECTIONS, OTHER_FILES = 4096, 128
"""How many connections are taken, and how many open files are kept for other things."""


class Impatient(H11Protocol):
    """HTTP for connections that ask something soon, and again soon after an answer: else they are closed.

    So is one that goes on sending the body of a request that was answered without it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self.connections) > min(MOST_CONNECTIONS, files - OTHER_FILES):
            transport.abort()
        self.waiting = self.loop.call_later(SILENT_SECONDS, self.close_unless_asked, None)

    def on_response_complete(self) -> None:
        answered = self.cycle
        super().on_response_complete()  # which may begin with the next request
        self.waiting.cancel()
        self.waiting = self.loop.call_later(SILENT_SECONDS, self.close_unless_asked, answered)

    def close_unless_asked(self, answered: RequestResponseCycle | None) -> None:
        """Close the connection if no request has begun since that one."""
        if self.cycle is answered:
            self.transport.close()


def listen_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address.  Raises OSError if that cannot be."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    at = socket.create_server((host, port), family=family, backlog=1024)
    # Of every connection that is taken here.  The system ends one whose bytes nobody reads, also after it was closed.
    at.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNREAD_SECONDS))
    return at


def configure_server(app: ASGIApp, **more: Any) -> uvicorn.Config:
    """Return the settings of a server that logs no request."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # requests that are no HTTP are no news
    return uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **more,
    )
