"""Create the deployments of prefect.yaml at the server, and later keep what the operator changed."""

import asyncio
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from http import HTTPStatus
from io import StringIO
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.core import layout
from flows.core.documents import explain
from flows.core.errors import Exit, UserError, brief
from flows.core.files import scratch_folder, write_whole
from flows.orchestration.server import Api, Refused
from flows.process.streams import say_on_stderr

PROJECT = layout.DEPLOYMENTS
FLOW = "train-vdm"
POOL = "vdm"
# Filters for requests to the server.
OF_FLOW = {"name": {"any_": [FLOW]}}
OF_POOL = {"name": {"any_": [POOL]}}
MOST_SECONDS = 3.0


def deploy(api: Api) -> None:
    """Create the deployments of prefect.yaml, or update the code and description of existing ones.

    A plain `prefect deploy` would switch their schedules off and delete those that the operator made.  Here an existing
    deployment keeps its schedules, tags, queue, limit, job variables, the parameters that its flow still takes, and
    whether it is paused.

    Raises UserError: exit 2, before anything is changed, for a file that Prefect does not accept and for a work pool
    that the server does not have; exit 1 if `prefect deploy` fails.  Raises OSError if the server fails.
    """
    try:
        document = YAML(typ="safe").load(PROJECT)
        entries = document["deployments"]
        for entry in entries:
            require_valid(entry)
        names = [full_name(entry) for entry in entries]
    except (YAMLError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{PROJECT}: no valid deployments: {brief(error)}", Exit.USAGE) from error
    require_pools(api, entries)
    found = by_full_name(api, *(entry["name"] for entry in entries))
    existing = [found.get(name) for name in names]
    entries = [keep(entry, one) if one else entry for entry, one in zip(entries, existing, strict=True)]
    text, yaml = StringIO(), YAML(typ="safe", pure=True)
    yaml.version = (1, 1)  # as Prefect reads it: in YAML 1.1 a bare 5e-05 is text, and a bare `on` is true
    yaml.dump(document | {"deployments": entries}, text)
    with scratch_folder(layout.PRIVATE) as scratch:
        write_whole(scratch / PROJECT, text.getvalue())
        run_prefect("deploy", "--all", "--prefect-file", str(scratch / PROJECT))
    for entry, one in zip(entries, existing, strict=True):
        if one:
            # `prefect deploy` filled in their templates, such as {{ prefect.blocks.secret.NAME }}.
            given = {"parameters": entry["parameters"], "job_variables": one["job_variables"]}
            api.ask(f"deployments/{one['id']}", "PATCH", **given)
    refuse_unknown_parameters(api)


def require_pools(api: Api, entries: list[dict[str, Any]]) -> None:
    """Raise UserError (exit 2) if the server does not have the work pool of a deployment."""
    names = {entry["work_pool"]["name"] for entry in entries}
    chosen = {"name": {"any_": sorted(names)}}
    existing = {pool["name"] for pool in api.ask("work_pools/filter", work_pools=chosen)}
    for name in sorted(names - existing):
        if "{{" not in name:  # else Prefect fills in a template first
            advice = f"`prefect work-pool create {shlex.quote(name)} --type process` creates it"
            raise UserError(f"{PROJECT}: the server has no work pool {name}; {advice}", Exit.USAGE)


def require_valid(entry: dict[str, Any]) -> None:
    """Raise ValueError that names the deployment if Prefect would refuse its flow, schedules or parameters."""
    from prefect.client.schemas.schedules import construct_schedule
    from prefect.utilities.schema_tools import ValidationError as WrongParameter
    from prefect.utilities.schema_tools import validate

    require_names(entry)
    times = ("interval", "anchor_date", "cron", "rrule", "timezone")
    schedules = entry.get("schedules") or [one for one in [entry.get("schedule")] if one]
    try:
        full_name(entry)
        for schedule in schedules:
            if "{{" in str(schedule):  # Prefect fills in templates first, those of parameters, too
                continue
            built = construct_schedule(**{key: schedule[key] for key in times if key in schedule})
            if reason := why_impossible(built.model_dump_json()):
                raise ValueError(f"{describe(built.model_dump(mode='json'))}: no run can be planned: {reason}")
        for each in (entry, *schedules):
            parameters = each.get("parameters") or {}
            if given := {name: value for name, value in parameters.items() if "{{" not in str(value)}:
                validate(given, parameters_of(entry), raise_on_error=True, ignore_required=True)
    except WrongParameter as error:
        raise ValueError(f"{entry['name']}: parameters: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{entry['name']}: {explain(error)}") from error
    except KeyError as error:
        raise ValueError(f"{entry['name']}: it has no {error.args[0]}") from error
    except Exception as error:  # Prefect raises many kinds, and so does the code of a flow
        raise ValueError(f"{entry['name']}: {brief(error)}") from error


def require_names(entry: object) -> None:
    """Raise ValueError unless the entry and its work pool have names."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise ValueError("a deployment has no name")
    pool = entry.get("work_pool")
    if not isinstance(pool, dict) or not isinstance(pool.get("name"), str) or not pool["name"].strip():
        raise ValueError(f"{entry['name']}: work_pool must have a name")


def full_name(entry: dict[str, Any]) -> str:
    """Return FLOW/DEPLOYMENT of an entry of prefect.yaml."""
    return f"{flow_of(entry).name}/{entry['name']}"


def flow_of(entry: dict[str, Any]) -> Any:
    """Return the flow of an entry of prefect.yaml, whose module is run.  Raises what Prefect and the module raise."""
    from prefect.flows import load_flow_from_entrypoint

    before = sys.path[:]
    try:
        return load_flow_from_entrypoint(entry["entrypoint"])
    except SystemExit as error:
        raise ValueError(f"{entry['entrypoint']} exits when it is loaded") from error
    finally:
        sys.path[:] = before  # Prefect puts the folder of the flow first, whose modules would hide others


def parameters_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of the parameters of a deployment's flow, which allows no others."""
    return {**flow_of(entry).parameters.model_dump_for_openapi(), "additionalProperties": False}


def refuse_unknown_parameters(api: Api) -> None:
    """Let the server refuse runs with unknown parameters, which would otherwise end in a traceback.

    Print a line for a deployment that the operator made with such parameters.  Raises OSError if the server fails.
    """
    for deployment in api.ask("deployments/filter", flows=OF_FLOW):
        schema = (deployment["parameter_openapi_schema"] or {}) | {"additionalProperties": False}
        try:
            api.ask(f"deployments/{deployment['id']}", "PATCH", parameter_openapi_schema=schema)
        except Refused as error:
            if error.code != HTTPStatus.CONFLICT:
                raise
            name, said = f"{FLOW}/{deployment['name']}", error.said
            with suppress(ValueError, LookupError, TypeError):
                said = json.loads(said)["detail"]
            say_on_stderr(f"{name}: correct its parameters in Prefect's UI: {brief(said)}")


def keep(entry: dict[str, Any], existing: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of prefect.yaml with the settings of the existing deployment, as the server gives it."""
    from prefect.utilities.schema_tools import validate

    kept = {key: value for key, value in entry.items() if key not in ("schedule", "schedules", "concurrency_limit")}
    if existing["global_concurrency_limit"]:
        given, limit = entry.get("concurrency_limit"), existing["global_concurrency_limit"]["limit"]
        options = (given if isinstance(given, dict) else {}) | (existing["concurrency_options"] or {})
        # Prefect refuses an object without a strategy, and takes a number, too.
        kept["concurrency_limit"] = options | {"limit": limit} if options.get("collision_strategy") else limit
    values = existing["parameters"]
    schema = parameters_of(entry) if values else {}
    known = {name: one for name, one in values.items() if not validate({name: one}, schema, ignore_required=True)}
    if gone := ", ".join(sorted(values.keys() - known.keys())):
        say_on_stderr(f"{entry['name']}: left out the parameters that its flow does not take: {gone}")
    pool = {key: existing[key] for key in ("work_queue_name", "job_variables")}
    return kept | {
        "paused": existing["paused"],
        "parameters": known,
        "tags": existing["tags"],
        "work_pool": entry["work_pool"] | pool,
    }


def by_full_name(api: Api, *names: str) -> dict[str, dict[str, Any]]:
    """Return the server's deployments with these names, by FLOW/DEPLOYMENT.  Raises OSError."""
    found = api.ask("deployments/filter", deployments={"name": {"any_": list(names)}})
    return {f"{api.get('flows/' + one['flow_id'])['name']}/{one['name']}": one for one in found}


def schedules(api: Api) -> Iterator[str]:
    """Yield a line for every schedule: its deployment, when it fires, and the next run or how to switch it on."""
    for deployment in api.ask("deployments/filter", flows=OF_FLOW):
        name = f"{FLOW}/{deployment['name']}"
        for one in deployment["schedules"]:
            when = describe(one["schedule"])
            if deployment["paused"]:
                state = "paused with its deployment; resume that in Prefect's UI"
            elif not one["active"]:
                state = f"off; `prefect deployment schedule resume {name} {one['id']}` switches it on"
            else:
                state = f"on, next run {next_time(one['schedule'])}"
            yield f"{name}: {when}: {state}"


def describe(schedule: dict[str, Any]) -> str:
    """Return when a schedule fires and its time zone, as text."""
    return f"{when_of(schedule)} {schedule.get('timezone') or 'UTC'}"


def next_time(schedule: dict[str, Any]) -> str:
    """Return the time of a schedule's next run, in UTC."""
    found = None
    with suppress(ValueError):
        found = next_run(json.dumps(schedule))
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if found else "never"


def next_run(schedule: str) -> datetime | None:
    """Return the time of the next run of a schedule, given as JSON; None after its last run.

    Raises ValueError for a date that never comes, such as February 30, or that takes more than MOST_SECONDS of this
    process's time to find.  Prefect's server would take as long.
    """
    from prefect.server.schemas.schedules import SCHEDULE_TYPES

    # Only the server's class of schedules can compute times.
    planned: Any = TypeAdapter(SCHEDULE_TYPES).validate_json(schedule)
    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)  # CPU time, so that other programs do not count
    try:
        dates = asyncio.run(planned.get_dates(n=1, start=datetime.now(UTC)))
    except OverflowError as error:
        raise ValueError(brief(error)) from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return dates[0] if dates else None


def give_up(number: int, frame: object) -> NoReturn:
    """Raise ValueError for a search that takes too long."""
    raise ValueError(f"the search for its next run takes more than {MOST_SECONDS:g} s")


@cache
def why_impossible(schedule: str) -> str:
    """Return why a schedule, given as JSON, can have no next run; "" if it can, or if this machine cannot read it."""
    try:
        next_run(schedule)
    except ValidationError:  # such as a time zone that only the server knows
        return ""
    except ValueError as error:
        return brief(error)
    return ""


def switch_off_impossible(api: Api) -> None:
    """Switch off the schedules that can have no next run; print a line for each.

    If a deployment has one, Prefect plans no run of its other schedules either.  Raises OSError if the server fails.
    """
    for deployment in api.ask("deployments/filter", flows=OF_FLOW):
        for one in deployment["schedules"]:
            given = one["schedule"]
            if one["active"] and (reason := why_impossible(json.dumps(given))):
                api.ask(f"deployments/{deployment['id']}/schedules/{one['id']}", "PATCH", active=False)
                name = f"{FLOW}/{deployment['name']}: {when_of(given)}"
                say_on_stderr(f"{name}: switched off, since no run can be planned: {reason}")


def when_of(schedule: dict[str, Any]) -> str:
    """Return when a schedule has runs, by its cron, rrule or interval in an answer of the server."""
    return schedule.get("cron") or schedule.get("rrule") or f"every {timedelta(seconds=schedule['interval'])}"


def run_prefect(*arguments: str) -> None:
    """Run a `prefect` command.  Raises UserError (exit 1) with its last line if it fails."""
    done = subprocess.run(prefect(*arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = ((done.stderr + done.stdout).strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"prefect {' '.join(arguments[:2])}: {reason}", Exit.BUG)


def prefect(*arguments: str) -> list[str]:
    """Return the command line of a `prefect` command, run by this interpreter."""
    return [sys.executable, "-m", "prefect", *arguments]
