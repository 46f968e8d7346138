"""Who may ask a program of the project over HTTP, and how much: nothing of a request is trusted.

A web page that a visitor of this machine has open must not use the program.  Its requests have a foreign Origin; if it
rebinds its own name to the program's address, they have a foreign Host.  An address cannot be rebound, so with a
password every address may be named, and names that were allowed.
"""

import asyncio
import base64
import hmac
from collections.abc import Collection
from contextlib import suppress
from http import HTTPStatus
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException  # Starlette's would be a 400 while FastAPI reads a body
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.process.addresses import is_address, is_loopback

MOST_BODY_BYTES = 8 * 2**20
"""Of a request's body."""
MOST_RECEIVED = 8 * MOST_BODY_BYTES
"""Of all bodies that are being received."""
PART_BYTES = 2**16
"""Of an answer, between which is looked whether its client reads: so much more may be unsent."""
BODY_SECONDS = 60.0
"""How long a request's body may take."""
GUESS_SECONDS = 1.0
"""How long the answer to a wrong password takes."""
RETRY = {"Retry-After": "5"}
OPEN = {"/health"}
"""What is answered without the password, for whoever watches the program."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """Passes on what may be asked, with at most `MOST_BODY_BYTES` of a body; answers anything else with one line.

    `password` is USER:PASSWORD; `names` are those under which the app is reached with it, besides its addresses.  A
    HEAD is answered like a GET, without the body, which the server leaves out.
    """

    def __init__(self, app: ASGIApp, password: str | None = None, names: Collection[str] = ()) -> None:
        self.app = app
        self.expected = base64.b64encode(password.encode()) if password else None
        self.names = {name.lower() for name in names}
        self.received = Received()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            rest = memoryview(message.get("body", b""))
            while len(rest) > PART_BYTES:
                await send({**message, "body": bytes(rest[:PART_BYTES]), "more_body": True})
                rest = rest[PART_BYTES:]
            await send({**message, "body": bytes(rest)} if "body" in message else message)

        headers = Headers(scope=scope)
        if refusal := self.refusal(scope["path"], headers):
            if refusal.status_code == HTTPStatus.UNAUTHORIZED and "authorization" in headers:
                await asyncio.sleep(GUESS_SECONDS)
            await refusal(scope, receive, with_headers)
            return
        body = Body(receive, headers, self.received)
        try:
            asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self.app(asked, body.receive, with_headers)
        finally:
            body.end()

    def refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        """Return the answer to a request that may not be asked; None for any other."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.may_be_named(host_name(host)):
            advice = "--allow-host allows another" if self.expected else "and to no other name"
            return refuse(HTTPStatus.FORBIDDEN, f"this app answers to 127.0.0.1 and localhost; {advice}")
        if origin is not None and origin.partition("://")[2] != host:
            return refuse(HTTPStatus.FORBIDDEN, "pages of other origins may not use this app")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        knows = scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), self.expected or b"")
        if self.expected and path not in OPEN and not knows:
            asking = {"WWW-Authenticate": 'Basic realm="vdm"'}
            return refuse(HTTPStatus.UNAUTHORIZED, "the app needs the USER:PASSWORD of VDM_APP_AUTH_STRING", asking)
        if "transfer-encoding" in headers and "content-length" in headers:
            return refuse(HTTPStatus.BAD_REQUEST, "a request has Content-Length or Transfer-Encoding, not both")
        if int(headers.get("content-length", "0")) > MOST_BODY_BYTES:
            return refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
        return None

    def may_be_named(self, name: str) -> bool:
        """Whether the app answers to a name: without a password only this machine's own."""
        return is_loopback(name) or (self.expected is not None and (is_address(name) or name in self.names))


def host_name(host: str) -> str:
    """Return the name in a header `Host`, without the port; "" if there is none."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


TOO_LARGE = f"the request is larger than {MOST_BODY_BYTES:,} bytes, the limit"


def refuse(status: HTTPStatus, reason: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """Return an answer of one line."""
    return JSONResponse({"error": reason, **more}, int(status), headers)


class Received:
    """How many bytes are kept of all bodies that are being received."""

    size = 0


class Body:
    """The body of a request while it is received, with limits of its size, of its time, and of all bodies together."""

    def __init__(self, receive: Receive, headers: Headers, received: Received) -> None:
        self.next, self.received = receive, received
        self.is_whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self.deadline = monotonic() + BODY_SECONDS
        self.size = 0

    async def receive(self) -> Message:
        """Receive some of it.  Raises HTTPException if it is too large or too slow, or if all bodies are too large."""
        if self.is_whole:  # what follows is the end of the connection
            return await self.next()
        try:
            message = await asyncio.wait_for(self.next(), self.deadline - monotonic())
        except TimeoutError as error:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the rest of the request did not come") from error
        size = len(message.get("body", b""))
        self.size += size
        self.received.size += size
        if self.size > MOST_BODY_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
        if self.received.size > MOST_RECEIVED:
            reason = "too many large requests come at once; try again later"
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, reason, RETRY)
        if not message.get("more_body", False):
            self.end()
        return message

    def end(self) -> None:
        """Stop counting it among those that are being received."""
        if not self.is_whole:
            self.is_whole = True
            self.received.size -= self.size
