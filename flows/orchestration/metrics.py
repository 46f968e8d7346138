"""The figures of the loop for Prometheus, on loopback beside `vdmctl serve`: read when somebody asks for them.

One scrape reads at a time, in the thread that answers, and others get what it read if they come within a second.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from threading import Thread
from time import monotonic

import uvicorn
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.core.errors import Exit, UserError, file_problem
from flows.orchestration.runs import OF_FLOW
from flows.orchestration.server import LOOPBACK, connect
from flows.orchestration.tasks import STAGE
from flows.process.answering import configure_server, listen_at
from flows.process.guard import Guard
from flows.project.project import Project
from flows.registry.costs import Costs
from flows.registry.versions import open_registry

MOST_RUNS = 200
"""Of how many runs the states are counted."""
KNOWN_SECONDS = 1.0
"""How long figures answer that were read."""


def start_metrics(project: Project, url: str, port: int) -> None:
    """Answer scrapes at a port of loopback until the process ends.  Raises UserError (exit 2) if it is in use.

    Prefect was configured to `url`.
    """
    registry = CollectorRegistry()
    registry.register(Loop(project, url))

    async def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=kind)

    try:
        at = listen_at(LOOPBACK, port)
    except OSError as error:
        raise UserError(f"--metrics-port {port}: {file_problem(error)}; choose another", Exit.USAGE) from error
    server = uvicorn.Server(configure_server(Guard(Starlette(routes=[Route("/metrics", metrics)]))))
    Thread(target=server.run, args=([at],), daemon=True).start()


class Loop(Collector):
    """What the server at `url`, the registry and the disk say."""

    def __init__(self, project: Project, url: str) -> None:
        self.project, self.url = project, url
        self.figures: list[Metric] = []
        self.known_until = 0.0

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that nothing is read before the first scrape."""
        return []

    def collect(self) -> list[Metric]:
        """Return every figure that can be read, as it is or was within the last second."""
        if monotonic() > self.known_until:
            self.figures = list(self.read())
            self.known_until = monotonic() + KNOWN_SECONDS
        return self.figures

    def read(self) -> Iterator[Metric]:
        """Yield every figure that can be read."""
        free = shutil.disk_usage(self.project.folder).free
        yield GaugeMetricFamily("vdm_disk_free_bytes", "Free bytes on the disk of the project.", free)
        server: list[Metric] = []
        with suppress(UserError):
            server = list(self.runs())
        yield GaugeMetricFamily("vdm_server_answers", "1 if the Prefect server answers.", bool(server))
        yield from server
        try:
            registry = open_registry(self.project.repository)
            champion = registry.champion
        except UserError:
            return
        if known := [registry.costs[each.commit] for each in registry.versions if each.commit in registry.costs]:
            yield from cost_metrics(known[-1])
        if champion:
            created = datetime.fromisoformat(champion.created).timestamp()
            about = "When the champion was registered."
            yield GaugeMetricFamily("vdm_champion_created_timestamp_seconds", about, created)
            if champion.metrics.bpd is not None:
                yield GaugeMetricFamily("vdm_champion_bits_per_dim", "Bits/dim of the champion.", champion.metrics.bpd)

    def runs(self) -> Iterator[Metric]:
        """Yield the states of the newest runs, and the begin and the stages of the newest.  Raises UserError."""
        with connect(self.url) as client:
            newest = FlowRunSort.EXPECTED_START_TIME_DESC
            runs = client.read_flow_runs(flow_filter=OF_FLOW, sort=newest, limit=MOST_RUNS)
            states = GaugeMetricFamily("vdm_runs", f"The newest {MOST_RUNS} runs by state.", labels=["state"])
            for state, count in sorted(Counter(str(run.state_name) for run in runs).items()):
                states.add_metric([state], count)
            yield states
            started = {run.start_time.timestamp(): run.id for run in runs if run.start_time}
            if not started:
                return
            about = "When the newest run began."
            yield GaugeMetricFamily("vdm_newest_run_started_timestamp_seconds", about, max(started))
            chosen = FlowRunFilter(id=FlowRunFilterId(any_=[started[max(started)]]))
            stages = GaugeMetricFamily("vdm_stage_seconds", "Seconds of the newest run's stages.", labels=["stage"])
            for task in client.read_task_runs(flow_run_filter=chosen):
                if STAGE in task.tags:
                    stages.add_metric([task.name], task.estimated_run_time.total_seconds())
            yield stages


def cost_metrics(costs: Costs) -> Iterator[Metric]:
    """Yield what the newest version cost whose costs are known."""
    of = "of the newest version, with the runs that its run repeated."
    yield GaugeMetricFamily("vdm_newest_version_core_hours", f"Processor time {of}", costs.core_hours)
    yield GaugeMetricFamily("vdm_newest_version_card_hours", f"Time on cards {of}", costs.card_hours)
    minutes = GaugeMetricFamily("vdm_newest_version_minutes", f"Minutes {of}", labels=["stage"])
    for stage, taken in costs.minutes.items():
        minutes.add_metric([stage], taken)
    yield minutes
