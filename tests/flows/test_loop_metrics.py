"""Prometheus reads what the loop does, from a real server of Prefect."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread, active_count
from time import monotonic, sleep
from unittest.mock import patch

import httpx
import pytest
from forge import Forge, crown
from prefect import flow, task
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness
from prometheus_client.parser import text_string_to_metric_families

from flows.core.errors import Exit, UserError
from flows.orchestration.metrics import KNOWN_SECONDS, start_metrics
from flows.orchestration.server import configure
from flows.orchestration.tasks import STAGE
from flows.process import answering
from flows.project.project import Project
from flows.registry.costs import Costs

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@task(name="champion", task_run_name="champion")
def champion() -> None:
    """Be a task that is no stage."""


@task(name="train", task_run_name="train", tags={STAGE})
def train(port: int) -> float:
    """Be a stage, which lasts until Prometheus reads that it does; return its seconds."""
    sleep(KNOWN_SECONDS)  # until nobody knows the run before this one
    stage, end = ("vdm_stage_seconds", "train"), monotonic() + 30
    while not (seconds := scraped(port).get(stage, 0.0)):
        assert monotonic() < end, "the stage that is in progress has no seconds"
        sleep(0.2)
    return seconds


@flow(name="train-vdm")
def run(port: int, *, good: bool) -> float:
    """Be a run, which fails unless it is good."""
    champion()
    seconds = train(port)
    if not good:
        raise ValueError
    return seconds


def asked(port: int, method: str = "GET", **headers: str) -> httpx.Response:
    """Return the answer to a request for the figures."""
    url = f"http://127.0.0.1:{port}/metrics"
    return httpx.request(method, url, headers=headers, trust_env=False, timeout=30)


def scraped(port: int) -> dict[tuple[str, ...], float]:
    """Return the figures by name and labels."""
    text = asked(port).text
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


@pytest.fixture
def silent_server() -> Iterator[tuple[str, list[float]]]:
    """Yield the URL of what is no server of Prefect, and when it was asked."""
    times = list[float]()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            times.append(monotonic())
            sleep(0.3)
            self.send_error(HTTPStatus.NOT_FOUND)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server, patch.dict(os.environ):
        Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        configure(url)
        yield url, times
        server.shutdown()
    refresh_global_settings_context()


def test_anybody_may_ask_much_and_nothing_is_held(
    forge: Forge, silent_server: tuple[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "SILENT_SECONDS", 1.0)
    url, times = silent_server
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start_metrics(Project(forge.root), url, port)
    assert asked(port).status_code == 200
    one, threads = len(times), active_count()
    sleep(KNOWN_SECONDS)
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(asked, [port] * 30))
    assert {each.status_code for each in found} == {200}
    assert len(times) == 2 * one  # one of them read, and all others got the same
    for headers in ({"Host": "rebound.example"}, {"Origin": "http://foreign.example"}):
        assert asked(port, **headers).status_code == 403
    assert (asked(port, "HEAD").status_code, asked(port, "HEAD").content) == (200, b"")
    assert asked(port, "POST").status_code == 405
    assert active_count() <= threads + 1
    with ExitStack() as stack:
        half = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(100)]
        for connection in half:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n")
        assert asked(port).status_code == 200
        assert active_count() <= threads + 1
        assert {connection.recv(1) for connection in half} == {b""}  # closed, each


def test_prometheus_reads_the_runs_and_the_champion(forge: Forge) -> None:
    costs = Costs(minutes={"train": 2.5}, core_hours=0.5, card_hours=0.25)
    crown(forge.project, "v1.0.0", costs=costs)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--metrics-port {port}: .*; choose another") as refused:
            start_metrics(Project(forge.root), "", port)
        assert refused.value.code is Exit.USAGE
    with patch.dict(os.environ):
        with prefect_test_harness(server_startup_timeout=120):
            url = str(get_current_settings().api.url)
            configure(url)
            start_metrics(Project(forge.root), url, port)
            for good in (True, False, True):
                with suppress(ValueError):
                    in_progress = run(port, good=good)
            sleep(KNOWN_SECONDS)
            found = scraped(port)
            assert asked(port, "HEAD").status_code == 200
        configure(url)  # where nothing answers now
        sleep(KNOWN_SECONDS)
        stopped = scraped(port)
    refresh_global_settings_context()
    assert found["vdm_server_answers",] == 1
    assert (found["vdm_runs", "Completed"], found["vdm_runs", "Failed"]) == (2, 1)
    assert 0 < in_progress < found["vdm_stage_seconds", "train"]
    assert ("vdm_stage_seconds", "champion") not in found
    assert found["vdm_newest_run_started_timestamp_seconds",] > 0
    reigning = Project(forge.root).registry.champion
    assert reigning
    assert found["vdm_champion_bits_per_dim",] == reigning.metrics.bpd
    assert found["vdm_newest_version_minutes", "train"] == 2.5
    assert (found["vdm_newest_version_core_hours",], found["vdm_newest_version_card_hours",]) == (0.5, 0.25)
    created = datetime.fromisoformat(reigning.created).timestamp()
    assert (
        found["vdm_champion_created_timestamp_seconds",]
        == stopped["vdm_champion_created_timestamp_seconds",]
        == created
    )
    assert found["vdm_disk_free_bytes",] > 0
    assert stopped["vdm_server_answers",] == 0
