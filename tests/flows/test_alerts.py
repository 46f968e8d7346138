"""Messages about failing runs are gathered, by a real server of Prefect and at a webhook."""

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from events import receiver
from plant import wait_until
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed
from prefect.testing.utilities import prefect_test_harness
from project import ROOT

from flows.orchestration.server import configure
from flows.orchestration.setting_up import automate

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@flow(name="train-vdm")
def run() -> None:
    """Be a run, to which the test gives its end."""


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """Return a client of a server with the settings of the project."""
    monkeypatch.chdir(ROOT)
    with patch.dict(os.environ), prefect_test_harness(server_startup_timeout=120):
        configure(str(get_current_settings().api.url))
        with get_client(sync_client=True) as client:
            yield client
    refresh_global_settings_context()


def test_ten_failures_of_one_cause_are_two_messages_and_their_end_is_one(client: SyncPrefectClient) -> None:
    """Another cause is told at once, and a good run after a good one is not told."""
    damaged = "the file a.png is damaged"
    with receiver() as (url, told):
        CustomWebhookNotificationBlock(name="vdm", url=url, json_data={"text": "{{subject}}: {{body}}"}).save("vdm")
        automate(client)  # but for the one that starts a deployment, which this server lacks
        for cause in ["", *[damaged] * 10, "", "", "no space"]:
            state = Failed(message=cause) if cause else Completed(name="NothingToDo")
            client.set_flow_run_state(client.create_flow_run(run).id, state, force=True)
        wait_until(lambda: len(told) >= 4, 60)
        wait_until(lambda: any("no space" in text for text in told), 60)
    over = [text for text in told if text.startswith("vdm: over: ")]
    assert [text.partition(" ended as ")[2] for text in over] == [f"NothingToDo; the last failure was: {damaged}"]
    assert sorted(text.partition(" (")[0] for text in told if text not in over) == [
        f"vdm: Failed, 10 times within a day: {damaged}",
        "vdm: Failed: no space",
        f"vdm: Failed: {damaged}",
    ]
