"""The routes of the app: the page, and the same over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, HTTPException, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from flows.app import work
from flows.app.answers import About, Classes, Drawn, Examples, Health, Problem, Scores
from flows.app.champion import Following
from flows.app.metrics import Counting, Figures
from flows.app.pictures import example
from flows.app.questions import (
    MOST_IMAGES,
    MOST_PICTURES,
    MOST_STEPS,
    MOST_TIMES,
    ToClassify,
    ToFillIn,
    ToSample,
    ToScore,
)
from flows.app.queue import Queue
from flows.app.replies import answer_errors, streamed, whole
from flows.core.params import Evaluate, Sample
from flows.images.made_to_fit import MOST_PIXELS
from flows.process.guard import MOST_BODY_BYTES, Guard
from flows.report.page import page
from vdm.samplers import SAMPLERS, sampler_name

PAGE = Path(__file__).parent / "page"
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds until it may be tried again."}}
LIMITS = {
    "images": MOST_IMAGES,
    "steps": MOST_STEPS,
    "pictures": MOST_PICTURES,
    "times": MOST_TIMES,
    "bytes": MOST_BODY_BYTES,
    "pixels": MOST_PIXELS,
}
# Of a report, which runs no script and has its styles and pictures inside.
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
Responses = dict[int | str, dict[str, Any]]
NOT_ALLOWED: Responses = {
    400: {"model": Problem, "description": "The request is no HTTP or JSON as it should be."},
    401: {"model": Problem, "description": "The app needs its password."},
    403: {"model": Problem, "description": "Other names and pages of other origins may not use the app."},
    413: {"model": Problem, "description": "The request is too large."},
}
NOT_DONE: Responses = {
    408: {"model": Problem, "description": "The rest of the request did not come."},
    422: {"model": Problem, "description": "The app cannot do what is asked; of pictures, `refused` says why of each."},
    429: {"model": Problem, "description": "Many requests wait already.", "headers": RETRY_AFTER},
    503: {"model": Problem, "description": "The app lacks memory or a file, or is being stopped."},
}
AS_JSON = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
# Else the problems of a page would be said to be pages.
NO_REPORT: Responses = {
    code: {"description": about["description"], "content": AS_JSON}
    for code, about in (NOT_ALLOWED | {404: {"description": "There are no results of the model."}}).items()
}
STREAMED: Responses = NOT_DONE | {
    200: {
        "description": "A document; with `stream` a line of JSON for each step, then one with `done` or `error`.",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
}


class Settings(NamedTuple):
    """What requests leave out, as in params.yaml, for the device of the app."""

    evaluate: Evaluate
    sample: Sample
    most_evaluations: int
    """Of the network, for a request."""


def application(
    following: Following, settings: Settings, queue: Queue, password: str | None = None, names: Collection[str] = ()
) -> FastAPI:
    """Return the app.  `password` is USER:PASSWORD, without which only this machine may ask; `names` need it, too."""

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(following.keep_looking())
        yield
        queue.close()
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    most, limits = settings.most_evaluations, LIMITS | {"evaluations": settings.most_evaluations}
    writing_report = asyncio.Lock()
    figures = Figures(following, queue)
    app = FastAPI(
        title="vdm",
        version=version("vdm-pipeline"),
        lifespan=alive,
        docs_url=None,
        redoc_url=None,
        responses=NOT_ALLOWED,
    )
    app.add_middleware(Guard, password=password, names=names)
    app.mount("/page", StaticFiles(directory=PAGE))
    answer_errors(app)

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")

    @app.get("/health")
    async def health() -> Health:
        """Whether the app answers, and with which model.  It needs no password."""
        model = following.served.model
        return Health(
            model=model.name,
            model_sha256=model.sha256,
            follows_champion=following.follows,
            problem=following.problem,
            waiting=queue.length,
            device=str(model.device),
        )

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(figures.registry), media_type=kind)

    @app.get("/model")
    async def about_model() -> About:
        """The model that answers: card, lineage, figures, noise schedule, and what a request may ask."""
        served = following.served
        evaluated = served.own(settings.evaluate) if following.have_results.is_set() else None
        left_out = defaults(settings.sample, evaluated)
        titles = {name: sampler.title for name, sampler in SAMPLERS.items()}
        return served.about(defaults=left_out, samplers=titles, limits=limits)

    @app.get("/examples")
    async def examples() -> Examples:
        """A few test images, to try the model with."""
        served = following.served
        named = enumerate(served.examples, 1)
        return Examples(images=[example(f"test image {number}.npy", image, served.model) for number, image in named])

    @app.get("/report", response_class=HTMLResponse, responses=NO_REPORT)
    async def report() -> Response:
        """The report page about the model."""
        served = following.served
        if not (dossier := served.dossier):
            raise HTTPException(HTTPStatus.NOT_FOUND, served.problem or "the results are still being read")
        async with writing_report:  # once for all who ask
            if served.report is None:
                served.report = (await asyncio.to_thread(page, dossier)).html.encode()
        return HTMLResponse(served.report, headers={"Content-Security-Policy": REPORT_POLICY})

    @app.post("/sample", response_model=Drawn, responses=STREAMED)
    async def sample(asked: ToSample, request: Request) -> Response:
        """Draw images.  Image i of a seed is the same picture, however many are drawn."""
        begin = partial(work.draw_sample, following.served.model, settings.sample, most, asked)
        return await (streamed(queue, begin) if asked.stream else whole(queue, request, begin))

    @app.post("/fill-in", response_model=Drawn, responses=STREAMED)
    async def fill_in(asked: ToFillIn, request: Request) -> Response:
        """Fill in a picture where its mask is bright: an approximation, ten times slower than drawing."""
        begin = partial(work.draw_filled_in, following.served.model, settings.sample, most, asked)
        return await (streamed(queue, begin) if asked.stream else whole(queue, request, begin))

    @app.post("/score", response_model=Scores, responses=NOT_DONE)
    async def score(asked: ToScore, request: Request) -> Response:
        """Evaluate the bits/dim of pictures, without their class."""
        await following.have_results.wait()
        served = following.served
        evaluated = served.own(settings.evaluate)
        return await whole(
            queue, request, partial(work.score, served.model, evaluated, most, asked, served.calibration)
        )

    @app.post("/classify", response_model=Classes, responses=NOT_DONE)
    async def classify(asked: ToClassify, request: Request) -> Response:
        """Classify pictures by their likelihood given each class."""
        await following.have_results.wait()
        served = following.served
        return await whole(
            queue, request, partial(work.classify_pictures, served.model, served.own(settings.evaluate), most, asked)
        )

    paths = frozenset(str(route.path) for route in app.routes if hasattr(route, "path"))
    app.add_middleware(Counting, figures=figures, paths=paths)  # outside the guard, whose refusals count
    return app


def defaults(drawn: Sample, evaluated: Evaluate | None) -> dict[str, Any]:
    """Return what a request may leave out; `evaluated` is None until the model's own evaluation was read."""
    return {
        "num_images": ToSample().num_images,
        "steps": drawn.num_timesteps,
        "sampler": sampler_name(drawn.order, drawn.eta),
        "seed": drawn.seed,
        "guidance": drawn.guidance,
        "times": evaluated and evaluated.times_per_image,
    }
