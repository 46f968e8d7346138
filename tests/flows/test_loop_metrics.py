"""Prometheus reads what the loop does, from a real server of Prefect."""

import os
import socket
from contextlib import suppress
from datetime import datetime
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
from flows.orchestration.metrics import start_metrics
from flows.orchestration.server import configure
from flows.registry.costs import Costs
from flows.registry.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@task(name="train", task_run_name="train")
def train() -> None:
    """Be a stage."""


@flow(name="train-vdm")
def run(*, good: bool) -> None:
    """Be a run, which fails unless it is good."""
    train()
    if not good:
        raise ValueError


def scraped(port: int) -> dict[tuple[str, ...], float]:
    """Return the figures by name and labels."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=30).text
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


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
                    run(good=good)
            found = scraped(port)
        configure(url)  # where nothing answers now
        stopped = scraped(port)
    refresh_global_settings_context()
    assert found["vdm_server_answers",] == 1
    assert (found["vdm_runs", "Completed"], found["vdm_runs", "Failed"]) == (2, 1)
    assert found["vdm_stage_seconds", "train"] >= 0
    assert found["vdm_newest_run_started_timestamp_seconds",] > 0
    champion = Project(forge.root).registry.champion
    assert champion
    assert found["vdm_champion_bits_per_dim",] == champion.metrics.bpd
    assert found["vdm_newest_version_minutes", "train"] == 2.5
    assert (found["vdm_newest_version_core_hours",], found["vdm_newest_version_card_hours",]) == (0.5, 0.25)
    created = datetime.fromisoformat(champion.created).timestamp()
    assert (
        found["vdm_champion_created_timestamp_seconds",]
        == stopped["vdm_champion_created_timestamp_seconds",]
        == created
    )
    assert found["vdm_disk_free_bytes",] > 0
    assert stopped["vdm_server_answers",] == 0
