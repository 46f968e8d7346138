"""What `vdmctl serve` sets up: queues, the notifications of automations.yaml, the automation that ends silent runs."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from uuid import UUID

import pytest
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from project import ROOT

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.orchestration.runs import INTERRUPTED
from flows.orchestration.setting_up import ENDS, make_pool, notify, parsed, silent_runs
from flows.train_vdm import DRIFTED, train_vdm

ENTRIES = parsed(ROOT / layout.AUTOMATIONS)["automations"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_prefect_accepts_every_notification(entry: dict[str, object]) -> None:
    actions = [{**action, "block_document_id": str(UUID(int=0))} for action in entry["actions"]]  # type: ignore[attr-defined]
    given = {key: value for key, value in entry.items() if key != "block"}
    assert AutomationCore.model_validate(given | {"actions": actions}, extra="forbid").name == entry["name"]


def test_every_state_of_which_somebody_is_told_exists() -> None:
    told = {event.rpartition(".")[2] for entry in ENTRIES for event in entry["trigger"]["expect"]}
    assert told <= {*ENDS, "Pending", "Running"}
    assert {"Promoted", "Refused", "Failed", DRIFTED, "Crashed", INTERRUPTED} <= told
    assert all(name in str(train_vdm.description) for name in ("Promoted", "Refused", "NothingToDo", DRIFTED))


def test_a_run_that_ended_in_any_way_is_not_silent() -> None:
    expected = silent_runs().trigger.expect  # type: ignore[union-attr]
    assert {f"prefect.flow-run.{name}" for name in ENDS} < expected


def test_a_queue_that_a_worker_wants_is_made_if_it_is_missing() -> None:
    client = Mock(read_work_queues=Mock(return_value=[SimpleNamespace(name="default")]))
    make_pool(client, ["default", "night"])
    client.create_work_queue.assert_called_once_with("night", work_pool_name="vdm")
    assert client.create_work_pool.call_count == 0


def test_a_notification_is_made_once_its_block_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's changes of an existing one stay."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / layout.AUTOMATIONS).read_text().partition('- name: "vdm: late run by webhook"')[0]
    layout.AUTOMATIONS.write_text(text)
    for block, known, made in ((Mock(id=UUID(int=7)), [], 1), (ObjectNotFound(Exception()), [], 0), (Mock(), [1], 0)):
        client = Mock()
        client.read_automations_by_name.return_value = known
        client.read_block_document_by_name.side_effect = [block]
        notify(client)
        assert client.create_automation.call_count == made
        if made:
            (action,) = client.create_automation.call_args.args[0].actions
            assert action.block_document_id == UUID(int=7)


def test_a_file_that_prefect_would_refuse_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("automations: [", "automations:\n- {name: x, block: a/b, trigger: 7, actions: []}"):
        layout.AUTOMATIONS.write_text(text)
        with pytest.raises(UserError, match=r"^automations.yaml: ") as error:
            notify(Mock(read_automations_by_name=Mock(return_value=[])))
        assert error.value.code is Exit.USAGE
