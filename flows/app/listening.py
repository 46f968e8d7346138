"""Listen at an address until Ctrl-C or SIGTERM, and tell `vdmctl status` that the app runs."""

import asyncio
import logging
import os
import resource
import socket
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from flows.app.queue import Queue
from flows.core.errors import Exit, UserError
from flows.process.addresses import is_loopback, reachable_host
from flows.process.answering import configure_server, listen_at
from flows.process.apps import announce
from flows.process.ending import handle_stop
from flows.process.streams import say_on_stderr

PASSWORD = "VDM_APP_AUTH_STRING"
STOP_SECONDS = 5
"""How long answers that are being sent may take when the app is stopped."""
MOST_FILES = 65_536
LAST_SECONDS = 1.0
"""How long the work on the device may take to stop after the last answer."""


def require_password(host: str) -> str | None:
    """Return the USER:PASSWORD of the app, if it is set.

    Raises UserError (exit 2) for a host that other machines can reach when it is not set, or is no such text.
    """
    password = os.environ.get(PASSWORD)
    if not password and not is_loopback(host):
        raise UserError(f"--host {host} lets other machines in; set {PASSWORD}=USER:PASSWORD", Exit.USAGE)
    if password and not all(password.partition(":")):
        raise UserError(f"{PASSWORD} must be USER:PASSWORD", Exit.USAGE)
    return password


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address.  Raises UserError (exit 2) if that cannot be."""
    try:
        return listen_at(host, port)
    except OSError as error:
        reason = f"{error.strerror or error}; --port picks another port, --host another address"
        raise UserError(f"the app cannot listen at {host}, port {port}: {reason}", Exit.USAGE) from error


def listen(app: FastAPI, queue: Queue, at: socket.socket, host: str, folder: Path, said: str) -> None:
    """Answer until a signal of STOP.  `said` is what answers, for the line on stderr.

    It ends the process.
    """
    allow_many_connections()
    port = at.getsockname()[1]
    here = reachable_host(host)
    url = f"http://{f'[{here}]' if ':' in here else here}:{port}"
    server = server_of(app, queue)

    def stop(*_: Any) -> None:
        server.should_exit = True

    with handle_stop(stop), announce(url, folder), at:
        say_on_stderr(f"{said} answers at {url}; Ctrl-C stops it")
        server.run(sockets=[at])
    say_on_stderr("stopped")
    queue.wait(LAST_SECONDS)
    os._exit(Exit.DONE)  # Python would wait for a batch of a large model, and then unload torch for seconds


class AppServer(uvicorn.Server):
    """A server whose queue is closed before its last second, so that whoever waits is told why."""

    def __init__(self, config: uvicorn.Config, queue: Queue) -> None:
        super().__init__(config)
        self.queue = queue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(STOP_SECONDS - 1, self.queue.close)
        await super().shutdown(sockets)


def server_of(app: FastAPI, queue: Queue) -> AppServer:
    """Return the server of the app, which logs no request."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # pictures that are damaged are no news
    config = configure_server(app, lifespan="on", timeout_graceful_shutdown=STOP_SECONDS)
    return AppServer(config, queue)


def allow_many_connections() -> None:
    """Let this process have as many open files as it may: a connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
