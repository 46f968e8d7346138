"""How the work of a request becomes an answer: one document, or lines of JSON while it is done; errors are one line."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from flows.app.answers import Frame
from flows.app.pictures import NothingFits
from flows.app.queue import Begin, Queue, QueueIsFull
from flows.core.documents import Document
from flows.core.errors import Exit, UserError, brief, file_problem
from flows.core.escaping import visible
from flows.process.guard import RETRY, refuse

STOPPED = "the app is being stopped"
GIVEN_UP = 499
"""The status of an answer that nobody waits for."""


async def whole(queue: Queue, request: Request, begin: Begin) -> Response:
    """Return the last document of the work, which is given up if the client goes away, or if the queue is closed."""
    answering = asyncio.create_task(last(queue, begin))
    others = [asyncio.create_task(left(request)), asyncio.create_task(queue.closed.wait())]
    try:
        await asyncio.wait([answering, *others], return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return JSONResponse(answering.result().model_dump())
        if queue.closed.is_set():
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, STOPPED)
        return Response(status_code=GIVEN_UP)
    finally:
        for task in (answering, *others):
            task.cancel()
        await asyncio.gather(answering, *others, return_exceptions=True)


async def last(queue: Queue, begin: Begin) -> Document:
    """Return the last document of the work."""
    found: Document | None = None
    async with aclosing(queue.answers(begin)) as answers:
        async for answer in answers:
            if isinstance(answer, Document):
                found = answer
    if found is None:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, STOPPED)
    return found


async def left(request: Request) -> None:
    """Wait until the client is gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def streamed(queue: Queue, begin: Begin) -> Response:
    """Return a stream of lines of JSON; a full queue, and work that cannot begin, still has its own status."""
    answers = queue.answers(begin)
    first = await anext(answers, None)

    async def lines() -> AsyncIterator[str]:
        async with aclosing(answers):
            try:
                if first is not None:
                    yield write_line(first)
                async for answer in answers:
                    yield write_line(answer)
            except Exception as error:  # the status is sent already
                status, reason, _ = explain_error(error)
                yield json.dumps({"event": "error", "status": status, "error": reason}) + "\n"
                if status == HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def write_line(answer: Document | int) -> str:
    """Return what the work yields as a line: requests that are ahead, a step, or the result."""
    if isinstance(answer, int):
        event: dict[str, Any] = {"event": "waiting", "ahead": answer}
    elif isinstance(answer, Frame):
        event = answer.model_dump()
    else:
        event = {"event": "done", "result": answer.model_dump()}
    return json.dumps(event, allow_nan=False) + "\n"


def explain_error(error: Exception) -> tuple[int, str, dict[str, Any]]:
    """Return the status of an error, its line, and further keys of the answer."""
    match error:
        case HTTPException():
            return error.status_code, visible(error.detail), {}
        case RequestValidationError():
            first = error.errors()[0]
            place = ".".join(brief(part, 60) for part in first["loc"] if part != "body")
            if first["type"] == "json_invalid":
                return HTTPStatus.BAD_REQUEST, f"the body is no JSON: {brief(first['ctx']['error'])}", {}
            return HTTPStatus.UNPROCESSABLE_ENTITY, visible(f"{place}: {brief(first['msg'])}".removeprefix(": ")), {}
        case QueueIsFull():
            return HTTPStatus.TOO_MANY_REQUESTS, "many requests wait already; try again later", {}
        case NothingFits():
            refused_ones = [one.model_dump() for one in error.refused]
            return HTTPStatus.UNPROCESSABLE_ENTITY, str(error), {"refused": refused_ones}
        case UserError():
            ours = error.code is Exit.MISSING
            return HTTPStatus.SERVICE_UNAVAILABLE if ours else HTTPStatus.UNPROCESSABLE_ENTITY, str(error), {}
        case OSError():
            return HTTPStatus.SERVICE_UNAVAILABLE, file_problem(error), {}
        case MemoryError():
            return HTTPStatus.SERVICE_UNAVAILABLE, "there is too little memory for this; ask for less", {}
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
            return HTTPStatus.SERVICE_UNAVAILABLE, "there is too little memory for this; ask for less", {}
    return HTTPStatus.INTERNAL_SERVER_ERROR, "a bug; the app's own output says where", {}


def answer_errors(app: FastAPI) -> None:
    """Make every error one line of JSON."""

    async def one_line(_: Request, error: Exception) -> Response:
        status, reason, more = explain_error(error)
        headers = dict(getattr(error, "headers", None) or {}) | (RETRY if isinstance(error, QueueIsFull) else {})
        return refuse(HTTPStatus(status), reason, headers, **more)

    for kind in (HTTPException, RequestValidationError, QueueIsFull, UserError, OSError, MemoryError, Exception):
        app.add_exception_handler(kind, one_line)
