"""Notifications: which entries are refused, and what a server gets."""

import json
import re
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from servers import answering

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.orchestration import automations
from flows.orchestration.automations import Notifications
from flows.orchestration.server import Api, Refused

pytestmark = pytest.mark.usefixtures("without_profiles")


@pytest.mark.parametrize("failure", [ConnectionError("down"), Refused("503 Service Unavailable", 503)])
def test_a_notification_is_tried_again_when_the_server_failed(
    failure: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([failure, Refused("422 Unprocessable", 422, "no such trigger"), None])

    def put(*_: object) -> None:
        if answer := next(answers):
            raise answer

    notification = {"name": "mail", "block": "sendgrid-email/vdm", "trigger": {}, "actions": []}
    monkeypatch.setattr(automations, "notifications", lambda: [notification])
    monkeypatch.setattr(automations, "block", lambda api, name: "1")
    monkeypatch.setattr(automations, "put", put)
    found, api = Notifications(), cast(Api, None)  # what would use it is replaced
    with pytest.raises(type(failure)):
        found.look(api)
    for _ in range(3):
        found.look(api)
    assert capsys.readouterr().err == "mail: off, since the server refuses it: no such trigger\n"


def test_an_automation_that_is_updated_goes_on_waiting() -> None:
    """Prefect keeps what a trigger has seen by the trigger's id."""
    api: Any = Mock(ask=Mock(return_value=[{"id": "1", "enabled": True, "trigger": {"id": "7", "within": 1}}]))
    automations.put(api, {"name": "late", "trigger": {"type": "event"}, "actions": []})
    assert api.ask.call_args.args == ("automations/1", "PUT")
    assert api.ask.call_args.kwargs["trigger"] == {"type": "event", "id": "7"}


@pytest.mark.parametrize(("existing", "said"), [([], True), ([True], True), ([False], False)])
def test_a_notification_that_stays_off_is_not_said_to_be_on(
    existing: list[bool], said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [{"id": "1", "enabled": enabled, "trigger": {"id": "t"}} for enabled in existing]
    notification = {"name": "mail", "block": "sendgrid-email/vdm", "trigger": {}, "actions": []}
    monkeypatch.setattr(automations, "notifications", lambda: [notification])
    monkeypatch.setattr(automations, "block", lambda api, name: "1")
    api: Any = Mock(ask=lambda path, *_, **__: listed if path == "automations/filter" else {"enabled": True})
    Notifications().look(api)
    assert ("mail: on" in capsys.readouterr().err) is said


def test_the_block_of_a_notification_may_have_any_name() -> None:
    with answering(**{"mein%20B%C3%A4r": {"id": "7"}}) as url:
        assert automations.block(Api(url), "custom-webhook/mein Bär") == "7"
        assert automations.block(Api(url), "custom-webhook/a/b?c#d") is None


EVENT = {"type": "event", "posture": "Reactive", "expect": ["vdm.failed"], "threshold": 1}
MAIL = {"type": "send-notification", "subject": "s", "body": "b"}
NOTIFICATION: dict[str, Any] = {"name": "mail", "block": "sendgrid-email/vdm", "trigger": EVENT, "actions": [MAIL]}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([NOTIFICATION, NOTIFICATION | {"block": "slack-webhook/vdm"}], "mail: the name of two automations"),
        ([NOTIFICATION | {"name": automations.silent_runs().name}], "stuck runs: the name of two automations"),
        ([NOTIFICATION | {"trigger": EVENT | {"expct": []}}], "mail: Prefect does not know expct"),
        ([NOTIFICATION | {"actions": [MAIL | {"subjct": ""}]}], "mail: Prefect does not know subjct"),
        ([NOTIFICATION | {"enable": False}], "mail: Prefect does not know enable"),
        ([NOTIFICATION | {"actions": [MAIL | {"type": "mail"}]}], "mail: Prefect does not know the action mail"),
    ],
)
def test_notifications_that_prefect_would_misunderstand_are_refused(
    entries: list[dict[str, Any]], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layout.AUTOMATIONS.write_text(json.dumps({"automations": entries}))
    with pytest.raises(UserError, match=rf"{re.escape(reason)}$") as error:
        Notifications()
    assert error.value.code == Exit.USAGE


def test_a_notification_has_all_that_its_entry_says() -> None:
    made: list[dict[str, Any]] = []
    more = {"enabled": "no", "description": "mine", "actions_on_resolve": [MAIL]}

    def ask(path: str, **given: Any) -> Any:
        if path.endswith("/filter"):
            return []
        made.append(given)
        return given | {"enabled": given["enabled"] != "no"}  # as Prefect reads it

    assert not automations.put(cast(Api, Mock(ask=ask)), automations.automation(NOTIFICATION | more, "7"))
    sent = [MAIL | {"block_document_id": "7"}]
    assert made == [{"name": "mail", "trigger": EVENT, "actions": sent, **more, "actions_on_resolve": sent}]
