"""Small servers that give the answers that a test wants, and the addresses that tests use."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread
from typing import Any

TEAM, OWN, GIVEN = (f"http://{name}.example.org:4200/api" for name in ("team", "own", "given"))


@contextmanager
def answering(**answers: Any) -> Iterator[str]:
    """Yield the URL of a server with an answer, or an error's number, by the last part of the path."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, *folders, name = self.path.partition("?")[0].split("/")
            found = answers.get(name, 404) if all(folders) else 404
            self.send_response(found if type(found) is int else 200)  # True is an answer
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
