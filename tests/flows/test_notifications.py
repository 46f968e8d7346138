"""What `vdmctl serve` sets up: queues, the automations of automations.yaml, the automation that ends silent runs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.context import refresh_global_settings_context
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.server.events.ordering import get_triggers_causal_ordering
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.types._datetime import now
from project import ROOT

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.orchestration import serve
from flows.orchestration.checking import NEW_IMAGES, ODD_IMAGES
from flows.orchestration.files import Automation, read_automations, read_deployments
from flows.orchestration.outcome import DRIFTED
from flows.orchestration.runs import INTERRUPTED
from flows.orchestration.setting_up import ENDS, automate, deploy, make_pool, refuse_unknown_parameters, silent_runs
from flows.orchestration.status import wrong_files
from flows.project.project import Project
from flows.train_vdm import train_vdm

MINUTE = timedelta(minutes=1)
ENTRIES = read_automations(Project(ROOT)).automations
TRIGGER = "trigger: {type: event, posture: Reactive, threshold: 1}"
RETRAIN = f"""automations:
- name: retrain
  {TRIGGER}
  actions: [{{type: run-deployment, deployment: train-vdm}}]
"""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_prefect_accepts_every_notification(entry: Automation) -> None:
    ids = {"send-notification": "block_document_id", "run-deployment": "deployment_id"}
    actions = [{**action, ids[action["type"]]: str(UUID(int=0))} for action in entry.actions]
    for action in actions:
        action.pop("deployment", None)
    given = entry.model_dump(exclude={"block"})
    assert AutomationCore.model_validate(given | {"actions": actions}, extra="forbid").name == entry.name


def test_every_state_of_which_somebody_is_told_exists() -> None:
    triggers = [each for entry in ENTRIES if entry.block for each in entry.trigger.get("triggers", [entry.trigger])]
    told = {event.rpartition(".")[2] for trigger in triggers for event in trigger["expect"]}
    assert told <= {*ENDS, NEW_IMAGES, ODD_IMAGES, "Pending", "Running"}
    assert {"Promoted", "Refused", "Failed", DRIFTED, NEW_IMAGES, ODD_IMAGES, "Crashed", INTERRUPTED} <= told
    assert all(name in str(train_vdm.description) for name in ("Promoted", "Refused", "NothingToDo", DRIFTED))


def test_a_run_that_ended_in_any_way_is_not_silent() -> None:
    expected = silent_runs().trigger.expect  # type: ignore[union-attr]
    assert {f"prefect.flow-run.{name}" for name in ENDS} < expected


def test_the_server_looks_at_an_event_though_it_never_saw_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that a schedule planned, none is sent; and a server that was killed forgot what it saw."""
    monkeypatch.chdir(ROOT)
    refresh_global_settings_context()
    about: dict[str, Any] = {
        "event": "prefect.flow-run.Failed",
        "resource": {"prefect.resource.id": "prefect.flow-run.1"},
    }
    event = ReceivedEvent(occurred=now(), received=now(), id=uuid4(), follows=uuid4(), **about)
    seen = []

    async def look() -> None:
        async with get_triggers_causal_ordering().preceding_event_confirmed(AsyncMock(), event):
            seen.append(event)

    asyncio.run(look())
    assert seen == [event]


def test_a_queue_that_a_worker_wants_is_made_if_it_is_missing() -> None:
    client = Mock(read_work_queues=Mock(return_value=[SimpleNamespace(name="default")]))
    make_pool(client, ["default", "night"])
    client.create_work_queue.assert_called_once_with("night", work_pool_name="vdm")
    assert client.create_work_pool.call_count == 0


def test_the_server_refuses_parameters_that_the_flow_lacks() -> None:
    """`prefect deploy` forgets it, and the next `serve` says it again."""
    known = {"type": "object", "properties": {"preset": {}}}
    schemas = known, known | {"additionalProperties": False}, None
    deployments = [SimpleNamespace(id=number, parameter_openapi_schema=each) for number, each in enumerate(schemas)]
    client = Mock(read_deployments=Mock(return_value=deployments))
    refuse_unknown_parameters(client)
    (call,) = client.request.call_args_list
    assert call.kwargs["path_params"] == {"id": 0}
    assert call.kwargs["json"] == {"parameter_openapi_schema": known | {"additionalProperties": False}}


def test_a_notification_is_made_once_its_block_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's changes of an existing one stay."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / layout.AUTOMATIONS).read_text().partition('- name: "vdm: failure by webhook"')[0]
    layout.AUTOMATIONS.write_text(text)
    for block, known, made in ((Mock(id=UUID(int=7)), [], 1), (ObjectNotFound(Exception()), [], 0), (Mock(), [1], 0)):
        client = Mock()
        client.read_automations_by_name.return_value = known
        client.read_block_document_by_name.side_effect = [block]
        assert automate(client) == []
        assert client.create_automation.call_count == made
        if made:
            (action,) = client.create_automation.call_args.args[0].actions
            assert action.block_document_id == UUID(int=7)


def test_an_automation_that_needs_no_block_has_the_ids_of_its_deployments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layout.AUTOMATIONS.write_text(RETRAIN)
    client = Mock(read_automations_by_name=Mock(return_value=[]))
    client.read_deployment_by_name.return_value.id = UUID(int=5)
    assert automate(client) == []
    (action,) = client.create_automation.call_args.args[0].actions
    assert (action.type, action.deployment_id) == ("run-deployment", UUID(int=5))
    client.read_deployment_by_name.assert_called_once_with("train-vdm/train-vdm")
    client.read_deployment_by_name.side_effect = ObjectNotFound(Exception())
    assert automate(client) == ["automations.yaml: retrain: the server does not have every deployment of train-vdm"]
    client.read_deployment_by_name.side_effect = None
    answer = httpx.Response(422, text="no such trigger", request=httpx.Request("POST", "http://here"))
    client.create_automation.side_effect = httpx.HTTPStatusError("", request=answer.request, response=answer)
    assert automate(client) == ["automations.yaml: retrain: the server refuses it: no such trigger"]


def test_the_run_by_an_event_is_off_and_waits_for_the_end_of_the_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    client = Mock(read_automations_by_name=Mock(return_value=[]))
    client.read_block_document_by_name.side_effect = ObjectNotFound(Exception())
    client.read_deployment_by_name.return_value.id = UUID(int=5)
    assert automate(client) == []
    (made,) = client.create_automation.call_args.args
    (action,) = made.actions
    assert (made.enabled, made.trigger.within, action.schedule_after) == (False, MINUTE, MINUTE)
    assert action.deployment_id == UUID(int=5)
    off = "vdm: run when images arrived: off; `prefect automation resume 'vdm: run when images arrived'` switches it on"
    assert capsys.readouterr().err == f"{off}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("automations: [", "not YAML: line 2: "),
        ("automations:\n\t- name: x", "not YAML: line 2: found character that cannot start any token"),
        ("automations: 2026-13-45", "not YAML: month must be in 1..12"),
        ("- a", "Input should be a valid dictionary"),
        ("automations: 3", "automations: Input should be a valid list"),
        (f"automations:\n- {{name: x, block: 3, {TRIGGER}, actions: []}}", "automations.0.block: Input should be a"),
        (
            f"automations:\n- {{name: x, block: vdm, {TRIGGER}, actions: []}}",
            "automations.0.block: String should match",
        ),
        (
            f"automations:\n- {{name: x, enabled: off, {TRIGGER}, actions: []}}",
            "automations.0.enabled: Input should be a valid boolean",
        ),
        ("automations:\n- {name: x, block: a/b, trigger: 7, actions: []}", "automations.0.trigger: Input should be"),
        (
            f"automations:\n- {{name: x, {TRIGGER}, actions: [{{type: send-notification, body: x}}]}}",
            "automations.0: x: its send-notification needs a block: TYPE/NAME",
        ),
        (
            f"automations:\n- {{name: x, block: a/b, {TRIGGER}, actions: [{{type: send-notification}}]}}",
            "automations.0: x: actions.0.known.SendNotification.body: Field required",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_of_serve_and_of_status(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layout.DEPLOYMENTS.write_text("deployments: []")
    layout.AUTOMATIONS.write_text(text)
    (line,) = automate(Mock())
    assert line.startswith(f"automations.yaml: {reason}")
    assert list(wrong_files(Project())) == [line]


@pytest.mark.parametrize("text", ["", "automations:", "automations: []", "# automations:"])
def test_a_file_without_automations_is_not_wrong(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout.AUTOMATIONS.write_text(text)
    assert automate(Mock()) == []


def test_a_wrong_prefect_yaml_stops_serve_only_if_no_run_could_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("", "deployments: null", "deployments:\n- weekly", "deployments:\n\t- name: x"):
        layout.DEPLOYMENTS.write_text(text)
        with pytest.raises(UserError, match=r"^prefect.yaml: ") as error:
            deploy(Mock(read_deployments=Mock(return_value=[])))
        assert error.value.code is Exit.USAGE
        assert list(wrong_files(Project())) == [str(error.value)]
        deploy(Mock(read_deployments=Mock(return_value=[SimpleNamespace(name="train-vdm")])))
        assert capsys.readouterr().err == f"{error.value}; the server keeps the deployments that it has\n"
    assert [each.name for each in read_deployments(Project(ROOT)).deployments] == ["train-vdm", "weekly"]


def test_the_loop_goes_on_whatever_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted runs go on, and a line is printed when what is wrong changes."""
    monkeypatch.chdir(tmp_path)
    texts = ["automations: 1", "automations: 1", "automations:\n\t- a", "", "automations: 1"]
    continued = Mock()

    @contextmanager
    def connected(_: str) -> Iterator[Mock]:
        if not texts:
            raise KeyboardInterrupt
        layout.AUTOMATIONS.write_text(texts.pop(0))
        yield Mock()

    monkeypatch.setattr(serve, "connect", connected)
    monkeypatch.setattr(serve, "continue_interrupted", continued)
    monkeypatch.setattr(serve, "LOOK_SECONDS", -1.0)
    monkeypatch.setattr("flows.orchestration.serve.time.sleep", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        serve.keep_alive([], "http://here/api")
    assert continued.call_count == 5
    wrong, tab = "automations.yaml: automations: Input should be a valid list", "automations.yaml: not YAML: line 2: "
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(start) for line, start in zip(lines, (wrong, tab, wrong), strict=True)] == [True] * 3
