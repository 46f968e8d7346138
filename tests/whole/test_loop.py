"""The retraining loop under a real Prefect server and worker, with a git remote and a DVC remote.

The tests are one story, in the order of the file: all of them use one plant, and about ten runs.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from interrupted import has_state, states
from plant import ENDLESS, Plant, at_work, served, trainers, wait_until
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from project import ROOT

from flows.core.errors import Exit
from flows.train_vdm import stages

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Plant]:
    """Return a running retraining loop for these tests, in a folder with a space and an umlaut in its path."""
    yield from served(Plant(tmp_path_factory.mktemp("plant") / "Bücher und Bilder"), empty_database)


def last_step(plant: Plant) -> int:
    """Return the step of the newest saved state; 0 without one."""
    return max((int(path.stem.removeprefix("step-")) for path in states(plant.project)), default=0)


def train(plant: Plant) -> FlowRun:
    """Start an endless run, which continues the one before it, and wait until its trainer has saved a new state."""
    saved = last_step(plant)
    run = plant.retrain(overrides=ENDLESS)
    wait_until(lambda: has_state(plant.project, saved + 100) or plant.state(run).is_final(), 300, plant.log)
    assert not plant.state(run).is_final(), plant.state(run)
    return run


def cancel(plant: Plant, run: FlowRun) -> str:
    """Cancel a run as Prefect's UI does, wait for its end, and return its log."""
    plant.client.set_flow_run_state(run.id, State(type=StateType.CANCELLING, name="Cancelling"))
    assert plant.finish(run)[0] == "Cancelled"
    return plant.logged(run)


def goes_on(plant: Plant, run: FlowRun) -> FlowRun:
    """Wait until another run has taken up the interrupted one and trains on; return it."""
    wait_until(lambda: plant.state(run).name == "Continued", 300, plant.log)
    (again,) = [each for each in plant.client.read_flow_runs(limit=200) if each.name in str(plant.state(run).message)]
    assert again.parameters == run.parameters
    saved = last_step(plant)
    wait_until(lambda: has_state(plant.project, saved + 100), 180, plant.log)
    assert plant.state(again).is_running()
    return again


def test_a_run_makes_the_first_champion_on_its_own_branch_and_leaves_the_checkout_alone(plant: Plant) -> None:
    project = plant.project
    (project.folder / "README.md").write_text("work in progress")
    before = project.git("status", "--porcelain"), project.git("rev-parse", "HEAD")
    run = plant.retrain_by_command("train-vdm")
    name, message = plant.finish(run)
    log = plant.logged(run)
    assert name == "Promoted", f"{message}\n{log}"
    assert message.startswith("vdm@v1.0.0, commit ")
    assert "promoted as vdm#champion#1" in message
    ran = plant.tasks(run)
    order = stages(ROOT)
    assert [task for task in ran if task in order] == order
    assert ran.keys() - set(order) == {"restore", "champion", "drift", "promote"}
    assert set(ran.values()) == {"Completed"}
    assert "has uncommitted changes, which are not part of this run" in log
    assert "step 20:" in log
    assert "challenger_model_sha256" not in log  # the evidence is an artifact
    assert before == (project.git("status", "--porcelain"), project.git("rev-parse", "HEAD"))
    (branch,) = plant.branches()
    changed = project.git("diff", "--name-only", f"main...{branch}").split()
    assert {"dvc.lock", "reports/evaluation/metrics.json", "reports/card.md"} <= set(changed)
    assert "README.md" not in changed
    assert project.vdmctl("verify", "champion").returncode == 0  # its files are in the project's cache
    assert list((project.folder / ".vdm" / "worktrees").glob("*/")) == []
    shown = plant.client.request("POST", "/artifacts/filter", json={"limit": 50}).json()  # type: ignore[arg-type]
    found = {each["key"] for each in shown if each["flow_run_id"] == str(run.id)}
    assert found == {"training", "metrics", "report", "samples", "data-docs", "model-card", "evidence"}
    project.git("checkout", "--quiet", "--", "README.md")


def test_nothing_to_do_ends_in_seconds_and_leaves_no_branch(plant: Plant) -> None:
    branches = plant.branches()
    run = plant.retrain_by_command("train-vdm/train-vdm", publish=False, overrides={})
    assert plant.finish(run)[0] == "NothingToDo"
    assert plant.branches() == branches
    assert plant.tasks(run) == {}
    taken = plant.read(run.id).total_run_time
    assert taken < timedelta(seconds=20), taken


def test_a_worse_model_is_refused_and_published_although_the_server_is_killed_meanwhile(plant: Plant) -> None:
    run = plant.retrain(overrides={"train.steps": 10}, publish=True)
    wait_until(lambda: plant.state(run).is_running(), 120, plant.log)
    (server,) = [each for each in psutil.Process(plant.process.pid).children() if "server" in each.cmdline()]
    server.kill()
    time.sleep(1)
    wait_until(lambda: plant.client.api_healthcheck() is None, 120, plant.log)
    name, message = plant.finish(run)
    assert (name, "not promoted: " in message) == ("Refused", True), message
    project = plant.project
    assert sorted(project.published()) == sorted(f"refs/tags/{tag}" for tag in project.git("tag").split())
    assert plant.status()["problems"] == []


def test_a_failure_is_told_in_one_line(plant: Plant) -> None:
    run = plant.retrain(preset="none")
    name, message = plant.finish(run)
    assert name == "Failed"
    assert message.startswith("no preset 'none' in commit ")
    assert "Traceback" not in plant.logged(run)
    (problem,) = plant.status()["problems"]
    assert problem.startswith(f"the last run, {run.name}, failed at ")


def test_a_schedule_fires_and_stays_over_a_restart_and_the_ends_of_its_runs_stay(plant: Plant) -> None:
    weekly = plant.client.read_deployment_by_name("train-vdm/weekly")
    assert [each.active for each in weekly.schedules] == [False]
    often = DeploymentScheduleCreate(active=True, schedule=IntervalSchedule(interval=timedelta(hours=1)))
    anchor = datetime.now(UTC) - timedelta(minutes=59, seconds=30)
    often.schedule.anchor_date = anchor  # type: ignore[union-attr, assignment]
    created = plant.client.create_deployment_schedules(weekly.id, [(often.schedule, True)])
    of_weekly = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[weekly.id]))

    def ended() -> list[str]:
        found = plant.client.read_flow_runs(flow_run_filter=of_weekly)
        return [str(run.state_name) for run in found if run.state and run.state.is_final()]

    wait_until(lambda: bool(ended()), 300, plant.log)
    plant.stop(signal.SIGTERM)
    assert plant.process.returncode == 0
    plant.serve()
    kept = plant.client.read_deployment_by_name("train-vdm/weekly").schedules
    assert {created[0].id} < {each.id for each in kept}
    assert ended() == ["NothingToDo"]
    plant.client.delete_deployment_schedule(weekly.id, created[0].id)


def test_a_second_run_is_cancelled_and_a_cancel_saves(plant: Plant) -> None:
    run = train(plant)
    # A worker passes the settings on, since a run starts in another folder than that of prefect.toml.
    assert plant.engine().environ()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert list(Path(plant.environment["PREFECT_HOME"]).rglob("*lease*"))
    found = plant.status()
    assert [each["name"] for each in found["server"]["runs"]] == [run.name]
    assert [each["in_use"] for each in found["worktrees"]] == [True]
    second = plant.retrain()
    assert plant.finish(second)[0] == "Cancelled"
    assert any(line.startswith(f"run {second.name} was cancelled at ") for line in plant.status()["problems"])
    log = cancel(plant, run)
    assert re.search(r"stopped at step \d+ of 1000000; run again to continue", log)
    assert "Traceback" not in log
    assert trainers(plant.project.folder) == []


def test_an_interrupted_run_goes_on_by_itself(plant: Plant) -> None:
    """After an orderly stop of the loop, after a worker was killed, and after the loop was, as when a machine fails.

    It does so while somebody edits automations.yaml, and the loop with it.
    """
    run = train(plant)
    automations = plant.project.folder / "automations.yaml"
    automations.write_text("automations:\n\t- name: x")
    wait_until(lambda: "automations.yaml: not YAML: line 2: " in plant.log.read_text(), 60, plant.log)
    assert any("automations.yaml: not YAML: line 2: " in line for line in plant.status()["problems"])
    assert plant.state(run).is_running()
    plant.stop(signal.SIGTERM)
    assert plant.process.returncode == 0
    assert at_work(plant.project.folder) == []
    assert f"run {run.name} was interrupted; it goes on" in plant.log.read_text()
    plant.serve()
    second = goes_on(plant, run)
    assert [each["name"] for each in plant.status()["server"]["runs"]] == [second.name]
    worker = plant.engine().parent()
    assert worker is not None
    worker.kill()
    third = goes_on(plant, second)
    plant.process.kill()
    plant.process.wait()
    wait_until(lambda: at_work(plant.project.folder) == [], 180, plant.log)
    plant.serve()
    cancel(plant, goes_on(plant, third))  # and a run that a person cancelled stays cancelled
    plant.project.git("checkout", "--quiet", "--", "automations.yaml")


@pytest.mark.parametrize("victim", ["prefect.engine", "dvc"])
def test_a_process_that_is_killed_leaves_no_orphan_and_the_run_says_that_it_ended(plant: Plant, victim: str) -> None:
    run = train(plant)
    engine = plant.engine()
    (killed,) = [each for each in (engine, *engine.children()) if victim in each.cmdline()]
    killed.kill()
    name, message = plant.finish(run)
    assert name == ("Crashed" if victim == "prefect.engine" else "Failed"), message
    wait_until(lambda: trainers(plant.project.folder) == [], 60, plant.log)
    assert any(f"the last run, {run.name}, " in line for line in plant.status()["problems"])


def test_a_page_of_another_origin_can_change_and_read_nothing(plant: Plant) -> None:
    import httpx

    deployment = plant.client.read_deployment_by_name("train-vdm/train-vdm").id
    origin = {"Origin": "http://evil.example"}
    posted = httpx.post(f"{plant.url}/deployments/{deployment}/create_flow_run", json={}, headers=origin)
    assert posted.status_code == httpx.codes.FORBIDDEN
    read = httpx.get(f"{plant.url}/csrf-token?client={UUID(int=1)}", headers=origin)
    assert "access-control-allow-origin" not in read.headers


def test_a_run_by_hand_without_its_server_says_what_to_correct(plant: Plant) -> None:
    away = plant.environment | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    program = [sys.executable, "-m", "flows.train_vdm"]
    done = subprocess.run(program, cwd=plant.project.folder, env=away, capture_output=True, text=True)
    assert done.returncode == Exit.MISSING
    assert "correct PREFECT_API_URL" in done.stderr


def test_the_last_stop_leaves_nothing(plant: Plant) -> None:
    plant.stop()
    assert plant.process.returncode == 0
    log = plant.log.read_text()
    assert log.endswith("stopped\n")
    assert f'File "{plant.project.folder}' not in log  # no traceback of the project's own code
    assert at_work(plant.project.folder) == []
    commands = {each.pid: " ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])}
    assert [pid for pid, line in commands.items() if str(plant.port) in line and pid != os.getpid()] == []
