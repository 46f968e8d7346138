"""The figures of the app for Prometheus: what was asked, what waits, and which model answers."""

import shutil
from datetime import datetime
from http import HTTPStatus
from math import nan
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.app.champion import Following
from flows.app.queue import Queue

SECONDS = 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300


class Figures:
    """The figures of one app.  Those of the model, the queue and the disk are read when somebody asks for them."""

    def __init__(self, following: Following, queue: Queue) -> None:
        self.registry = CollectorRegistry()
        self.following = following
        named: dict[str, Any] = {"registry": self.registry, "namespace": "vdm"}
        labels = "path", "status"
        self.requests = Counter("app_requests", "Requests by path and status of the answer.", labels, **named)
        for path in ("/sample", "/fill-in", "/score", "/classify"):
            self.requests.labels(path, "429")  # at 0, since Prometheus sees no increase to the first value of a series
        self.seconds = Histogram(
            "app_request_seconds", "Seconds until the end of the answer.", ["path"], buckets=SECONDS, **named
        )
        waiting = "Requests that wait or are worked on."
        Gauge("app_waiting", waiting, **named).set_function(lambda: queue.length)
        problem = "1 if the present champion cannot answer, so that an older one does."
        Gauge("app_problem", problem, **named).set_function(lambda: following.problem is not None)
        bpd = "Bits/dim of the version that answers; NaN without one."
        Gauge("model_bits_per_dim", bpd, **named).set_function(self.bpd)
        created = "When the version that answers was registered; NaN without one."
        Gauge("model_created_timestamp_seconds", created, **named).set_function(self.created)
        free, folder = "Free bytes on the disk of the project.", following.project.folder
        Gauge("disk_free_bytes", free, **named).set_function(lambda: shutil.disk_usage(folder).free)

    def bpd(self) -> float:
        """Return the bits/dim of the version that answers."""
        version = self.following.served.version
        return nan if version is None or version.metrics.bpd is None else version.metrics.bpd

    def created(self) -> float:
        """Return when the version that answers was registered."""
        version = self.following.served.version
        return datetime.fromisoformat(version.created).timestamp() if version else nan


class Counting:
    """Counts requests and how long they take.  `paths` are those of the app; all others are counted as one."""

    def __init__(self, app: ASGIApp, figures: Figures, paths: frozenset[str]) -> None:
        self.app, self.figures, self.paths = app, figures, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begin = int(HTTPStatus.INTERNAL_SERVER_ERROR), perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.figures.requests.labels(path, str(status)).inc()
            self.figures.seconds.labels(path).observe(perf_counter() - begin)
