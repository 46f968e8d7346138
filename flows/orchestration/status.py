"""The state of the retraining loop on this machine, for an operator and for monitoring: `vdmctl status`.

It must be quick, so it asks the server by HTTP, runs git and reads files, and imports neither Prefect nor DVC.
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.core import layout
from flows.core.errors import UserError
from flows.orchestration.deployments import FLOW, OF_FLOW, OF_POOL, POOL, when_of
from flows.orchestration.server import Api, Refused, setting
from flows.orchestration.workers import served_at, why_unusable
from flows.process.locks import folder_of_devices, held_locks
from flows.registry.git import git_text
from flows.registry.versions import MODEL, champion, versions

UNFINISHED = ["PENDING", "RUNNING", "PAUSED", "CANCELLING"]
CONCLUDED = ["COMPLETED", "FAILED", "CRASHED"]
PAGE = 200
"""The largest number of runs in an answer of the server."""
Entry = dict[str, Any]


def status(root: Path) -> Entry:
    """Return everything as a JSON object.  Its `problems` say what an operator should look at."""
    found: Entry = {
        "folder": str(root.absolute()),
        "server": server(root),
        "devices": devices(),
        "worktrees": worktrees(root),
        "registry": registry(root),
        "disk_bytes": disk(root),
        "disk_free_bytes": shutil.disk_usage(root).free,
    }
    return found | {"problems": list(problems(found))}


def server(root: Path) -> Entry:
    """Return what the Prefect server says about workers, schedules and runs, or why it does not answer."""
    url = address(root)
    try:
        if not url:
            raise ConnectionError("this folder is not served")
        return {"url": url, "answers": True, **loop(Api(url))}
    except (OSError, LookupError, TypeError) as error:
        answers = isinstance(error, Refused) or not isinstance(error, OSError)  # else the connection failed
        return {"url": url, "answers": answers, "reason": why_unusable(error)}


def address(root: Path) -> str:
    """Return the URL of the server's API: as Prefect is set, else that of the `vdmctl serve` in the folder, else "".

    A server at Prefect's usual port may be that of another folder.
    """
    return setting("PREFECT_API_URL") or served_at(root) or ""


def runs(api: Api, *states: str, sort: str, limit: int, offset: int = 0) -> list[Entry]:
    """Return at most `limit` runs of the flow in these states, after the first `offset`."""
    chosen = {"state": {"type": {"any_": list(states)}}}
    page: Entry = {"sort": sort, "limit": limit, "offset": offset}
    found: list[Entry] = api.ask("flow_runs/filter", flows=OF_FLOW, flow_runs=chosen, **page)
    return found


def all_runs(api: Api, *states: str, sort: str) -> list[Entry]:
    """Return all runs of the flow in these states."""
    found: list[Entry] = []
    while page := runs(api, *states, sort=sort, limit=PAGE, offset=len(found)):
        found += page
    return found


def loop(api: Api) -> Entry:
    """Return workers, schedules and runs."""
    workers = api.ask(f"work_pools/{POOL}/workers/filter", limit=100)
    deployments = api.ask("deployments/filter", flows=OF_FLOW)
    planned = all_runs(api, "SCHEDULED", sort="EXPECTED_START_TIME_ASC")  # Prefect plans up to 100 of a deployment
    return {
        "paused": paused(api),
        "deployments": [one["name"] for one in deployments],
        "without_queue": [one["name"] for one in deployments if one["pull_steps"] and not one["work_pool_name"]],
        "workers": [{"name": one["name"], "status": one["status"]} for one in workers],
        "schedules": [schedule(one, each, planned) for one in deployments for each in one["schedules"]],
        "runs": [
            {"name": one["name"], "state": one["state_name"], "started": whole_seconds(one["start_time"])}
            for one in runs(api, *UNFINISHED, sort="START_TIME_ASC", limit=100)
        ],
        "late": [
            # In runs of a deleted queue Prefect keeps its name, but not the id by which workers find them.
            {
                "name": one["name"],
                "planned": whole_seconds(one["expected_start_time"]),
                "pool": one["work_pool_name"],
                "queue": one["work_queue_name"] if one["work_queue_id"] else None,
            }
            for one in planned
            if one["state_name"] == "Late"
        ],
        "last_run": last_run(api),
    }


def whole_seconds(time: str | None) -> str | None:
    """Return a time of the server without the fraction of its second; None for None."""
    return time and re.sub(r"\.\d+", "", time)


def last_run(api: Api) -> Entry | None:
    """Return the run that ended last, with the reason if it failed; None before the first one.

    Cancelled runs do not count: Prefect cancels one also because another one is in progress.
    """
    ended = runs(api, *CONCLUDED, sort="END_TIME_DESC", limit=1)
    if not ended:
        return None
    one = ended[0]
    time = whole_seconds(one["end_time"])
    return {"name": one["name"], "state": one["state_name"], "ended": time, "reason": reason(one)}


def reason(run: Entry) -> str | None:
    """Return why a run failed or crashed; None if it did not.

    Of a crash it says that the next run continues, which Prefect's own messages do not.
    """
    message = run["state"]["message"] or "Prefect knows no reason"
    match run["state"]["type"]:
        case "FAILED":
            return str(message)
        case "CRASHED":
            continues = "continues from the last saved state"
            return message if continues in message else f"{message.rstrip('.')}; the next run {continues}"
    return None


def paused(api: Api) -> list[Entry]:
    """Return which of the pool and its queues are paused, with the commands that resume them."""
    pool = api.ask("work_pools/filter", work_pools=OF_POOL, limit=1)
    queues = api.ask(f"work_pools/{POOL}/queues/filter", limit=200)
    found = [(one, f"prefect work-pool resume {POOL}") for one in pool]
    found += [(one, f"prefect work-queue resume {shlex.quote(one['name'])} --pool {POOL}") for one in queues]
    return [{"name": one["name"], "resume": command} for one, command in found if one["is_paused"]]


def schedule(deployment: Entry, each: Entry, planned: list[Entry]) -> Entry:
    """Return a schedule of a deployment, with its next run if it is active."""
    key = f"scheduled {deployment['id']} {each['id']} "  # as Prefect's scheduler begins the keys of its runs
    times = [run["expected_start_time"] for run in planned if str(run["idempotency_key"]).startswith(key)]
    active = bool(each["active"]) and not deployment["paused"]
    given = each["schedule"]
    return {
        "deployment": f"{FLOW}/{deployment['name']}",
        "when": when_of(given),
        "timezone": given.get("timezone") or "UTC",
        "active": active,
        "paused": bool(each["active"]) and not active,
        "next_run": whole_seconds(min(times)) if active and times else None,
    }


def devices() -> list[Entry]:
    """Return the devices of this machine that a trainer holds, by whom and since when."""
    folder = folder_of_devices()
    return [
        {"device": Path(name).stem, "holder": holder, "since": since(folder / name)}
        for name, holder in sorted(held_locks(folder).items())
        if name.startswith(("cpu", "cuda"))
    ]


def since(path: Path) -> str | None:
    """Return when a lock was taken: its holder then wrote into its file."""
    with suppress(OSError):
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds")
    return None


def worktrees(root: Path) -> list[Entry]:
    """Return the worktrees of runs, and whether their run holds their lock; if not, the next run removes them."""
    folder = root / layout.WORKTREES
    held = held_locks(folder)
    return [{"name": each.name, "in_use": f"{each.name}.lock" in held} for each in sorted(folder.glob("*/"))]


def registry(root: Path) -> Entry:
    """Return the number of versions, the champion, and the versions whose commit no remote branch is known to have."""
    try:
        known, reigning = versions(root), champion(root)
        here = git_text(root, "for-each-ref", "--format=%(refname:short)", "refs/remotes").split()
        missing = git_text(root, "rev-list", "--no-walk", f"--tags={MODEL}@*", "--not", "--remotes").split()
    except UserError as error:
        return {"problem": str(error)}
    return {
        "versions": len(known),
        "champion": reigning.name if reigning else None,
        "champion_bpd": reigning.metrics.bpd if reigning else None,
        "unpublished": [version.name for version in known if version.commit in missing] if here else None,
    }


def disk(root: Path) -> dict[str, int]:
    """Return the bytes on disk by kind."""
    kinds = {
        "dvc_cache": Path(".dvc/cache"),
        "training_states": layout.STATES,
        "worktrees": layout.WORKTREES,
        "fetched_models": layout.FETCHED,
        "reports_of_runs": layout.RUN_REPORTS,
        "downloads": layout.DOWNLOADS,
        "git": Path(".git"),
    }
    return {kind: size_of(root / path) for kind, path in kinds.items()}


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


def problems(found: Entry) -> Iterator[str]:
    """Yield a line for everything that an operator should look at, and what to do."""
    server = found["server"]
    if "reason" in server:
        yield f"{server['url'] or found['folder']}: {server['reason']}"
    else:
        yield from problems_of_loop(server)
    if "problem" in found["registry"]:
        yield found["registry"]["problem"]
        return
    if found["registry"]["versions"] and not found["registry"]["champion"]:
        yield "no version is the champion; `vdmctl promote VERSION` makes one"
    if names := found["registry"]["unpublished"]:
        others = "`dvc push --all-tags` and `git push --follow-tags` push the rest"
        advice = f"a run with publish=true pushes what runs made; {others}"
        yield f"{', '.join(names)}: not pushed to any remote; {advice}"


def problems_of_loop(server: Entry) -> Iterator[str]:
    """Yield a line for everything that keeps runs from starting, and for the last run if it failed."""
    if FLOW not in server["deployments"]:
        yield f"the server has no deployment {FLOW}; `vdmctl serve` creates it when it starts"
    if not any(worker["status"] == "ONLINE" for worker in server["workers"]):
        yield f"no worker of the pool {POOL} is online, so no run starts; `vdmctl serve` or `vdmctl worker` starts one"
    for one in server["paused"]:
        yield f"no run of {one['name']} starts, since it is paused; `{one['resume']}`"
    for name in sorted({one["deployment"] for one in server["schedules"] if one["paused"]}):
        yield f"no planned run of {name} starts, since the deployment is paused; resume it in Prefect's UI"
    for name in server["without_queue"]:
        advice = "`vdmctl serve` repairs the deployments of prefect.yaml when it starts"
        yield f"no run of {FLOW}/{name} starts, since its work queue was deleted; {advice}"
    for run in server["late"]:
        yield f"run {run['name']}, planned for {run['planned']}, has not started{why_late(run)}"
    if (last := server["last_run"]) and last["reason"]:
        yield f"the last run, {last['name']}, {last['state'].lower()} at {last['ended']}: {last['reason']}"


def why_late(run: Entry) -> str:
    """Return the end of the line about a run that is late: why that may be, and what to do."""
    queue, pool = run["queue"], run["pool"]
    if queue is None:
        return ", since it is in no work queue, or in one that was deleted; cancel it in Prefect's UI"
    if pool != POOL:
        return f"; is a worker of the pool {pool} online? Those of `vdmctl` take only the runs of the pool {POOL}"
    option = f"--queue {shlex.quote(queue)}"
    advice = f"the option `{option}` makes the worker of `vdmctl serve` or `vdmctl worker` take its runs"
    return f"; is a worker of the queue {queue} online, and free? {advice}; `vdmctl worker` takes one at a time"
