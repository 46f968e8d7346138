"""Schedules, and the deployments of prefect.yaml: what is refused, and what an operator changed and keeps."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from ruamel.yaml import YAML

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.orchestration import deployments
from flows.orchestration.deployments import keep, next_time, require_valid
from flows.orchestration.server import Refused
from flows.orchestration.status import schedule


def test_a_date_that_never_comes_is_no_error() -> None:
    assert next_time({"cron": "0 0 30 2 *"}) == "never"
    assert next_time({"cron": "5 4 1 1 *"}).endswith("-01-01 04:05 UTC")


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ({"rrule": "FREQ=DAILY;INTERVAL=0"}, "the search for its next run takes more than 0.1 s"),
        ({"interval": 864e9}, "(date value|value or calculation) out of range"),  # before Python 3.13, and since
        ({"cron": "0 3 * * 0"}, ""),
        ({"cron": "0 3 * * 0", "timezone": "Mars/Phobos"}, ""),  # which the server may know
    ],
)
def test_a_schedule_that_can_have_no_next_run(
    schedule: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "MOST_SECONDS", 0.1)
    deployments.why_impossible.cache_clear()
    assert re.fullmatch(reason, deployments.why_impossible(json.dumps(schedule)))


def test_an_interval_is_named_with_its_unit() -> None:
    deployment = {"id": "d", "name": "weekly", "paused": False}
    given = {"interval": 20.0, "timezone": "Europe/Berlin"}
    shown = schedule(deployment, {"id": "s", "active": True, "schedule": given}, [])
    assert (shown["when"], shown["timezone"], shown["next_run"]) == ("every 0:00:20", "Europe/Berlin", None)


def test_every_schedule_of_a_deployment_has_its_own_next_run() -> None:
    deployment = {"id": "d", "name": "weekly", "paused": False}
    planned = [
        {"idempotency_key": f"scheduled d {each} {time}", "expected_start_time": time}
        for each, time in (("hourly", "2026-01-01T01"), ("weekly", "2026-01-04T03"), ("hourly", "2026-01-01T00"))
    ]
    planned += [{"idempotency_key": None, "expected_start_time": "2025-12-31"}]  # planned by a person
    found = [
        schedule(deployment, {"id": name, "active": True, "schedule": {"cron": "x"}}, planned)["next_run"]
        for name in ("hourly", "weekly", "yearly")
    ]
    assert found == ["2026-01-01T00", "2026-01-04T03", None]


TRAIN = {"name": "weekly", "entrypoint": "flows/train_vdm.py:train_vdm", "work_pool": {"name": "vdm"}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schedules": [{"cron": "0 3 * * 9x"}]}, 'weekly: cron: .*Invalid cron string: "0 3 \\* \\* 9x"'),
        ({"schedules": [{"cron": "0 3 * * 0", "timezone": "Mars/Phobos"}]}, "weekly: timezone: .*Mars/Phobos"),
        ({"schedules": [{"interval": 3600, "timezone": "Mars/Phobos"}]}, "weekly: .*Mars/Phobos"),
        ({"schedules": [{"rrule": "FREQ=SOMETIMES"}]}, "weekly: rrule: .*SOMETIMES"),
        ({"schedules": [{"active": True}]}, "weekly: Either interval, cron, or rrule must be provided"),
        ({"parameters": {"wait_hour": 2}}, r"weekly: parameters: .*\('wait_hour' was unexpected\)"),
        ({"parameters": {"wait_hours": "many"}}, "weekly: parameters: .*'many' is not of type 'number'"),
        ({"schedules": [{"interval": 60, "parameters": {"forse": True}}]}, "weekly: parameters: .*'forse'"),
        ({"schedules": [{"interval": 1e15}]}, "weekly: .*too large"),
        ({"entrypoint": "flows/train_vdm.py:nope"}, "weekly: .*'nope'"),
        ({"schedule": {"cron": "99 99 * * *"}}, "weekly: cron: "),
        ({"work_pool": {}}, "weekly: work_pool must have a name"),
        ({"work_pool": "vdm"}, "weekly: work_pool must have a name"),
        ({"work_pool": {"name": 5}}, "weekly: work_pool must have a name"),
    ],
)
def test_deployments_that_prefect_would_refuse_are_named(changes: dict[str, Any], reason: str) -> None:
    require_valid(TRAIN)
    with pytest.raises(ValueError, match=reason):
        require_valid(TRAIN | changes)


def test_what_prefect_fills_in_is_not_checked() -> None:
    hours, cron = "{{ prefect.variables.hours }}", "{{ prefect.variables.cron }}"
    require_valid(TRAIN | {"parameters": {"wait_hours": hours}, "schedules": [{"cron": cron}]})
    with pytest.raises(ValueError, match="'forse'"):
        require_valid(TRAIN | {"parameters": {"wait_hours": hours, "forse": True}})


EXISTING: dict[str, Any] = {
    "flow_id": "f",
    "global_concurrency_limit": None,
    "concurrency_options": None,
    "parameters": {},
    "work_queue_name": "default",
    "job_variables": {},
    "paused": False,
    "tags": [],
}


def test_a_deployment_loses_the_parameters_that_its_flow_takes_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    existing = EXISTING | {"parameters": {"force": True, "wait_hour": 2, "wait_hours": "2"}}
    assert keep(TRAIN, existing)["parameters"] == {"force": True}
    left_out = "wait_hour, wait_hours"
    assert capsys.readouterr().err == f"weekly: left out the parameters that its flow does not take: {left_out}\n"


def test_wrong_parameters_of_an_operators_deployment_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    def ask(path: str, *_: Any, **__: Any) -> Any:
        if path.endswith("/filter"):
            return [{"id": "1", "name": "nightly", "parameter_openapi_schema": None}]
        raise Refused("409 Conflict", 409, json.dumps({"detail": "('forse' was unexpected)"}))

    deployments.refuse_unknown_parameters(Mock(ask=ask))
    line = "train-vdm/nightly: correct its parameters in Prefect's UI: ('forse' was unexpected)\n"
    assert capsys.readouterr().err == line

    def fail(path: str, *_: Any, **__: Any) -> Any:
        if path.endswith("/filter"):
            return [{"id": "1", "name": "nightly", "parameter_openapi_schema": None}]
        raise Refused("500 Internal Server Error", 500)

    with pytest.raises(Refused, match="500"):
        deployments.refuse_unknown_parameters(Mock(ask=fail))


def test_a_single_schedule_does_not_replace_those_of_the_operator() -> None:
    assert "schedule" not in keep(TRAIN | {"schedule": {"cron": "0 3 * * 0"}}, EXISTING)


@pytest.mark.parametrize("given", [None, 1, {"limit": 1}])
def test_a_deployment_keeps_its_limit(given: Any) -> None:
    """Prefect refuses an object without a strategy."""
    existing = EXISTING | {"global_concurrency_limit": {"limit": 3}}
    entry = {"name": "weekly", "work_pool": {"name": "vdm"}, "concurrency_limit": given}
    assert keep(entry, existing)["concurrency_limit"] == 3


def test_a_deployment_keeps_what_happens_to_a_run_beyond_its_limit() -> None:
    options = {"collision_strategy": "ENQUEUE"}
    existing = EXISTING | {"global_concurrency_limit": {"limit": 3}, "concurrency_options": options}
    given = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    entry = {"name": "weekly", "work_pool": {"name": "vdm"}, "concurrency_limit": given}
    assert keep(entry, existing)["concurrency_limit"] == {"limit": 3, "collision_strategy": "ENQUEUE"}


@pytest.fixture
def with_deployments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a project whose only deployment is `weekly`."""
    monkeypatch.chdir(tmp_path)
    layout.PRIVATE.mkdir()
    layout.DEPLOYMENTS.write_text(json.dumps({"deployments": [TRAIN]}))
    monkeypatch.setattr(deployments, "require_valid", Mock())
    monkeypatch.setattr(deployments, "require_pools", Mock())
    monkeypatch.setattr(deployments, "full_name", lambda entry: f"train-vdm/{entry['name']}")
    monkeypatch.setattr(deployments, "parameters_of", lambda entry: {"properties": {"overrides": {}, "preset": {}}})
    monkeypatch.setattr(deployments, "refuse_unknown_parameters", Mock())


@pytest.mark.usefixtures("with_deployments")
def test_prefect_reads_what_a_deployment_keeps_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect reads YAML 1.1, in which a bare 5e-05 is text, and a bare `on` is true."""
    parameters, variables = {"overrides": {"train.learning_rate": 5e-05}}, {"env": {"DEBUG": "off"}}
    existing = EXISTING | {"id": "1", "name": "weekly", "tags": ["no"]}
    existing |= {"parameters": parameters, "job_variables": variables}
    read: list[Any] = []
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)
    monkeypatch.setattr(deployments, "run_prefect", lambda *given: read.append(reader.load(Path(given[-1]))))
    api: Any = Mock(ask=lambda *_, **__: [existing], get=lambda path: {"name": "train-vdm"})
    deployments.deploy(api)
    (entry,) = read[0]["deployments"]
    assert (entry["parameters"], entry["tags"]) == (parameters, ["no"])
    assert entry["work_pool"]["job_variables"] == variables


@pytest.mark.usefixtures("with_deployments")
def test_templates_and_references_to_secrets_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """`prefect deploy` replaces a reference by the secret, which everybody could read then."""
    given = {
        "parameters": {"preset": "{{ $PRESET }}"},
        "job_variables": {"env": {"TOKEN": "{{ prefect.blocks.secret.token }}"}},
    }
    api: Any = Mock(ask=Mock(return_value=[EXISTING | {"id": "1", "name": "weekly"} | given]))
    api.get = lambda path: {"name": "train-vdm"}
    monkeypatch.setattr(deployments, "run_prefect", lambda *_: api.ask("deployed"))
    deployments.deploy(api)
    last = api.ask.call_args_list[-1]
    assert (last.args, last.kwargs) == (("deployments/1", "PATCH"), given)


@pytest.mark.usefixtures("with_deployments")
def test_a_deployment_of_another_flow_does_not_take_its_namesakes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    api: Any = Mock(ask=Mock(return_value=[EXISTING | {"id": "1", "name": "weekly", "tags": ["mine"]}]))
    api.get = lambda path: {"name": "clean"}
    read: list[Any] = []
    monkeypatch.setattr(deployments, "run_prefect", lambda *given: read.append(YAML().load(Path(given[-1]))))
    deployments.deploy(api)
    assert "tags" not in read[0]["deployments"][0]
    assert api.ask.call_count == 1  # and nothing is changed


def test_a_work_pool_that_the_server_does_not_have_is_named() -> None:
    entries = [TRAIN | {"work_pool": {"name": name}} for name in ("vdm", "{{ $POOL }}", "big jobs")]
    api: Any = Mock(ask=Mock(return_value=[{"name": "vdm"}]))
    deployments.require_pools(api, entries[:2])
    command = "`prefect work-pool create 'big jobs' --type process` creates it"
    with pytest.raises(UserError, match=f"prefect.yaml: the server has no work pool big jobs; {command}") as raised:
        deployments.require_pools(api, entries)
    assert raised.value.code is Exit.USAGE


def test_a_deployment_stays_paused_in_its_queue() -> None:
    kept = keep(TRAIN, EXISTING | {"paused": True, "work_queue_name": "gpu"})
    assert (kept["paused"], kept["work_pool"]["work_queue_name"]) == (True, "gpu")


@pytest.mark.parametrize(
    "entry", ["weekly", None, TRAIN | {"name": ""}, {key: one for key, one in TRAIN.items() if key != "name"}]
)
def test_a_deployment_without_a_name_is_refused(entry: Any) -> None:
    with pytest.raises(ValueError, match="a deployment has no name"):
        require_valid(entry)


def test_the_check_of_a_deployment_leaves_the_search_path(tmp_path: Path) -> None:
    before = sys.path[:]
    require_valid(TRAIN)
    assert sys.path == before
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match="exits when it is loaded"):
        require_valid(TRAIN | {"entrypoint": f"{tmp_path}/ends.py:nope"})
