"""A small server that gives the answers that a test wants."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

OWN = "http://own.example.org:4200/api"


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
