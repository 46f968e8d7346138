"""Who may ask, and how much: nothing of a request is trusted.

A web page that a visitor of this machine has open must not use the app.  Its requests have a foreign Origin; if it
rebinds its own name to 127.0.0.1, they have a foreign Host.  With a password the browser sends the password to the
app's own name only.
"""

import asyncio
import base64
import hmac
from contextlib import suppress
from http import HTTPStatus
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.process.addresses import is_loopback
from flows.serving.questions import MOST_BYTES

BODY_SECONDS = 60.0
"""How long a request's body may take."""
OPEN = {"/health"}
"""What is answered without the password, for whoever watches the app."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """Passes on what may be asked, with at most `MOST_BYTES` of a body; answers anything else with one line."""

    def __init__(self, app: ASGIApp, password: str | None = None) -> None:
        self.app = app
        self.expected = f"Basic {base64.b64encode(password.encode()).decode()}" if password else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        if refusal := self.refusal(scope["path"], headers):
            await refusal(scope, receive, with_headers)
        else:
            await self.app(scope, bounded(receive, headers), with_headers)

    def refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        """Return the answer to a request that may not be asked; None for any other."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.expected and not is_loopback(name_in(host)):
            return refused(HTTPStatus.FORBIDDEN, "this app answers to 127.0.0.1 and localhost, and to no other name")
        if origin is not None and origin.partition("://")[2] != host:
            return refused(HTTPStatus.FORBIDDEN, "pages of other origins may not use this app")
        given = headers.get("authorization", "")
        if self.expected and path not in OPEN and not hmac.compare_digest(given.encode(), self.expected.encode()):
            asking = {"WWW-Authenticate": 'Basic realm="vdm"'}
            return refused(HTTPStatus.UNAUTHORIZED, "the app needs the USER:PASSWORD of VDM_APP_AUTH_STRING", asking)
        if int(headers.get("content-length", "0")) > MOST_BYTES:
            return refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
        return None


def name_in(host: str) -> str:
    """Return the name in a header `Host`, without the port; "" if there is none."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


TOO_LARGE = f"the request is larger than {MOST_BYTES:,} bytes, the limit"


def refused(status: HTTPStatus, reason: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """Return an answer of one line."""
    return JSONResponse({"error": reason, **more}, int(status), headers)


def bounded(receive: Receive, headers: Headers) -> Receive:
    """Return a function that receives a body, and raises HTTPException for one that is too large or too slow."""
    size, is_whole = 0, headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    end = monotonic() + BODY_SECONDS

    async def receive_some() -> Message:
        nonlocal size, is_whole
        if is_whole:  # what follows is the end of the connection
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), end - monotonic())
        except TimeoutError as error:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the rest of the request did not come") from error
        size += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        if size > MOST_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
        return message

    return receive_some
