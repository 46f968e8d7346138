"""The figures of the loop for Prometheus, on loopback beside `vdmctl serve`: read when somebody asks for them."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.core.errors import Exit, UserError, file_problem
from flows.orchestration.runs import OF_FLOW
from flows.orchestration.server import LOOPBACK, connect
from flows.registry.costs import Costs
from flows.registry.project import Project

MOST_RUNS = 200
"""Of how many runs the states are counted."""


def start_metrics(project: Project, url: str, port: int) -> None:
    """Answer scrapes at a port of loopback until the process ends.  Raises UserError (exit 2) if it is in use.

    Prefect was configured to `url`.
    """
    registry = CollectorRegistry()
    registry.register(Loop(project, url))
    try:
        start_http_server(port, LOOPBACK, registry)
    except OSError as error:
        raise UserError(f"--metrics-port {port}: {file_problem(error)}; choose another", Exit.USAGE) from error


class Loop(Collector):
    """What the server at `url`, the registry and the disk say."""

    def __init__(self, project: Project, url: str) -> None:
        self.project, self.url = project, url

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every figure that can be read."""
        free = shutil.disk_usage(self.project.folder).free
        yield GaugeMetricFamily("vdm_disk_free_bytes", "Free bytes on the disk of the project.", free)
        server: list[Metric] = []
        with suppress(UserError):
            server = list(self.runs())
        yield GaugeMetricFamily("vdm_server_answers", "1 if the Prefect server answers.", bool(server))
        yield from server
        try:
            registry = self.project.registry
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
                stages.add_metric([task.name], task.total_run_time.total_seconds())
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
