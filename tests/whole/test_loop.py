"""The retraining loop under a real Prefect server and worker, with a git remote, a DVC remote and a folder of pictures.

The tests are one story, in the order of the file: all of them use one plant, and about ten runs.  tests/soak has the
stories of processes that are killed, and of pictures in S3.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import numpy as np
import psutil
import pytest
from events import AUTOMATION, by_event, emit, emit_by_command, told_by
from PIL import Image
from plant import Plant, at_work, served, trainers, wait_until
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from project import ROOT
from sklearn.datasets import load_digits
from stories import cancel, goes_on, train

from flows.core.errors import Exit
from flows.orchestration.runs import WORKER
from flows.orchestration.setting_up import make_pool, share_deployments
from flows.project.project import Project
from flows.repository.stages import stage_names

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)

FIRST = 900
GIT_CLONE = "prefect.deployments.steps.git_clone"


def draw(folder: Path, first: int, end: int) -> None:
    """Write digits as PNG files of 8 bits, of which they use 17 levels."""
    folder.mkdir(exist_ok=True)
    digits = load_digits().images[first:end].astype(np.uint8) * 15
    for number, image in enumerate(digits, first):
        Image.fromarray(image).save(folder / f"{number:04}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures outside the project."""
    folder = tmp_path_factory.mktemp("source") / "pictures"
    draw(folder, 0, FIRST)
    return folder


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, pictures: Path, empty_database: Path) -> Iterator[Plant]:
    """Return a running loop in a folder with a space and an umlaut in its path.

    Its committed parameters name the pictures, with limits of the contract for 17 levels.  An event starts a run at
    once.
    """
    plant = Plant(tmp_path_factory.mktemp("plant") / "Bücher und Bilder")
    changes = {
        "name: digits ": "name: image_folder ",
        "source: data/published ": f"source: {pictures} ",
        "max_damaged: 0 ": "max_damaged: 1 ",
        "max_gaps: 0.015": "max_gaps: 0.9",
        "max_skipped: 0.25": "max_skipped: 0.9",
        "min_improvement_bpd: 0.001": "min_improvement_bpd: 0.0",
        "start_from: null ": "start_from: champion ",
        "validation_fraction: 0.1 ": "validation_fraction: 0.4 ",  # so that new images have a p
    }
    plant.project.edit("params.yaml", **changes)
    plant.project.edit("automations.yaml", **{"schedule_after: 60": "schedule_after: 0"})
    plant.project.git("commit", "--quiet", "--all", "--message=Pictures")
    yield from served(plant, empty_database)


@pytest.fixture(scope="module")
def told(plant: Plant) -> Iterator[list[str]]:
    """Return the texts that arrive at a webhook."""
    with told_by(plant) as texts:
        yield texts


@pytest.fixture(scope="module")
def first(plant: Plant) -> FlowRun:
    """Return the first run, which begins with a file in the checkout that is not committed."""
    (plant.project.folder / "README.md").write_text("work in progress")
    return plant.retrain_by_command("train-vdm")


def test_beside_a_run_an_event_starts_none_but_only_if_somebody_switched_it_on(
    plant: Plant, first: FlowRun, told: list[str]
) -> None:
    """The limit of one run cancels it, which is no problem."""
    emit_by_command(plant)
    wait_until(lambda: plant.state(first).is_running() and f"{AUTOMATION}: off; " in plant.log.read_text(), 120)
    assert by_event(plant) == []
    assert plant.prefect("automation", "resume", AUTOMATION).returncode == 0
    for _ in range(2):
        emit(plant)
    wait_until(lambda: any(run.state_name == "Cancelled" for run in by_event(plant)), 60, plant.log)
    assert [run.state_name for run in by_event(plant)] == ["Cancelled"]
    seen = plant.status()
    assert seen["problems"] == []
    assert list(seen["server"]) == (
        ["url", "answers", "deployments", "workers", "schedules", "runs", "late", "last_run", "dropped"]
    )
    assert [list(each) for each in seen["server"]["runs"]] == [["name", "state", "started"]]


def test_a_run_makes_the_first_champion_on_its_own_branch_and_leaves_the_checkout_alone(
    plant: Plant, first: FlowRun
) -> None:
    project = plant.project
    before = project.git("status", "--porcelain"), project.git("rev-parse", "HEAD")
    name, message = plant.finish(first)
    log = plant.logged(first)
    assert name == "Promoted", f"{message}\n{log}"
    assert message.startswith("vdm@v1.0.0, commit ")
    assert "promoted as vdm#champion#1" in message
    assert re.search(r"; cost: [\d.]+ minutes \(.*train [\d.]+.*\), [\d.]+ core-hours", message), message
    ran = plant.tasks(first)
    order = stage_names(Project(ROOT).repository)
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
    found = {each["key"] for each in shown if each["flow_run_id"] == str(first.id)}
    assert found == {"training", "metrics", "report", "samples", "data-docs", "model-card", "evidence"}
    project.git("checkout", "--quiet", "--", "README.md")
    seen = plant.status()["images"]
    assert (seen["state"], seen["added"], seen["removed"], seen["since"]) == ("same", 0, 0, "vdm@v1.0.0")


def test_nothing_to_do_ends_in_seconds_and_leaves_no_branch(plant: Plant) -> None:
    branches = plant.branches()
    run = plant.retrain_by_command("train-vdm/train-vdm", publish=False, overrides={})
    name, message = plant.finish(run)
    assert (name, "vdm@v1.0.0 has the results" in message) == ("NothingToDo", True), message
    assert plant.tasks(run) == {}
    taken = plant.read(run.id).total_run_time
    assert taken < timedelta(seconds=20), taken
    assert plant.branches() == branches


def test_pictures_that_arrive_and_go_make_a_version_and_somebody_is_told(
    plant: Plant, pictures: Path, told: list[str]
) -> None:
    """The champion is held meanwhile, so the version waits for a person."""
    assert plant.project.vdmctl("promote", "--hold", "foreign pictures").returncode == 0
    assert not any("NewImages" in text for text in told)
    draw(pictures, FIRST, 1797)
    clothes = np.load(ROOT / "pretrained/fashion_mnist_cpu/examples.npy")[:9, 0]
    for number, image in enumerate(clothes):
        levels = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)) // 15
        Image.fromarray(levels.clip(0, 16) * 15).save(pictures / f"foreign-{number}.png")
    for number in range(50):
        (pictures / f"{number:04}.png").unlink()
    seen = plant.status()["images"]
    assert (seen["state"], seen["added"], seen["removed"], seen["since"]) == ("changed", 906, 50, "vdm@v1.0.0")
    (pictures / "empty.png").touch()
    while len(by_event(plant)) == 1:  # the minute of the events before may not be over
        emit(plant)
        time.sleep(2)
    run, _ = by_event(plant)
    name, message = plant.finish(run)
    assert name == "Waiting", message
    assert message.startswith("vdm@v1.1.0, ")
    counted = "906 added and 50 removed since vdm@v1.0.0"
    assert f"images: {counted}" in message
    assert '; 1 damaged left out: "empty.png"' in message
    assert plant.tasks(run)["images"] == "NewImages"
    assert re.search(r"; \d+ of 906 new images are odd to vdm@v1.0.0, by chance about \d+", message), message
    (page,) = (plant.project.folder / ".vdm/reports").glob("*/odd.html")
    oddest = re.findall(r"^([\w-]+\.png), score", page.read_text(), re.MULTILINE)[:15]
    assert sum(name.startswith("foreign") for name in oddest) >= 7, oddest
    assert plant.project.vdmctl("verify", "v1.1.0").returncode == 0
    text = f"vdm: NewImages: {counted} ({run.name}: "
    wait_until(lambda: any(each.startswith(text) for each in told), 60, plant.log)


def test_a_person_approves_it_and_the_page_says_that_it_waits(plant: Plant, told: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert plant.project.vdmctl("report", "v1.1.0", "--out", str(page)).returncode == 0
    assert "vdm@v1.1.0 waits for a person" in page.read_text()
    assert "Promotions are held: foreign pictures" in page.read_text()
    wait_until(lambda: any(each.startswith("vdm: Waiting: vdm@v1.1.0, ") for each in told), 60, plant.log)
    assert plant.project.vdmctl("promote", "--approve", "v1.1.0").returncode == 0


def test_that_version_continued_from_the_champion_and_was_judged_by_images_that_neither_saw(
    plant: Plant, pictures: Path
) -> None:
    first, second = (
        json.loads(plant.project.vdmctl("lineage", each, "--json").stdout) for each in ("v1.0.0", "v1.1.0")
    )
    assert second["source"]["path"] == str(pictures)
    assert (first["parameters"]["train"]["start_from"], first["ancestors"]) == (None, [])
    assert second["parameters"]["train"]["start_from"] == "vdm@v1.0.0"
    (ancestor,) = second["ancestors"]
    assert (ancestor["version"], ancestor["model_sha256"]) == ("vdm@v1.0.0", first["metrics"]["model_sha256"])
    evidence = second["promotions"][0]["evidence"]
    assert (evidence["champion_saw"], evidence["challenger_saw"]) == (0, 0)
    assert set(evidence["costs"]["minutes"]) == set(stage_names(Project(ROOT).repository))
    assert evidence["costs"]["core_hours"] > 0
    assert evidence["damaged"] == ["empty.png"]
    assert (
        evidence["num_decided"] == evidence["comparison"]["num_images"] == second["metrics"]["validation"]["num_images"]
    )
    assert evidence["num_judged"] == 2  # some of them judged v1.0.0


def test_a_schedule_fires_while_automations_are_wrong_and_its_run_has_nothing_to_do(
    plant: Plant, pictures: Path
) -> None:
    """A file that is no picture makes no version, either."""
    (pictures / "Thumbs.db").write_bytes(b"no picture")
    automations = plant.project.folder / "automations.yaml"
    automations.write_text("automations:\n\t- name: x")
    weekly = plant.client.read_deployment_by_name("train-vdm/weekly")
    assert [each.active for each in weekly.schedules] == [False]
    often = DeploymentScheduleCreate(active=True, schedule=IntervalSchedule(interval=timedelta(hours=1)))
    anchor = datetime.now(UTC) - timedelta(minutes=59, seconds=50)
    often.schedule.anchor_date = anchor  # type: ignore[union-attr, assignment]
    plant.client.create_deployment_schedules(weekly.id, [(often.schedule, True)])
    wait_until(lambda: bool(ended(plant)), 300, plant.log)
    assert ended(plant) == ["NothingToDo"]
    wrong = "automations.yaml: not YAML: line 2: "
    wait_until(lambda: wrong in plant.log.read_text(), 60, plant.log)
    assert any(wrong in line for line in plant.status()["problems"])
    plant.project.git("checkout", "--quiet", "--", "automations.yaml")


def ended(plant: Plant) -> list[str]:
    """Return the states of the runs of the schedule that have ended."""
    weekly = plant.client.read_deployment_by_name("train-vdm/weekly")
    of_weekly = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[weekly.id]))
    found = plant.client.read_flow_runs(flow_run_filter=of_weekly)
    return [str(run.state_name) for run in found if run.state and run.state.is_final()]


def test_a_worse_model_is_refused_and_published_although_the_server_is_killed_meanwhile(plant: Plant) -> None:
    run = plant.retrain(overrides={"train.steps": 10, "train.start_from": None}, publish=True)
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
    with pytest.raises(PrefectHTTPStatusError) as refused:
        plant.retrain(presset="mnist")
    assert "Additional properties are not allowed ('presset' was unexpected)" in refused.value.response.text


def test_a_folder_without_pictures_fails_and_the_champion_stays(plant: Plant, pictures: Path) -> None:
    pictures.rename(pictures.with_name("elsewhere"))
    assert plant.status()["images"]["state"] == "missing"
    name, message = plant.finish(plant.retrain())
    assert (name, message) == (
        "Failed",
        f"data.source: {pictures} is not on this machine; bring it here, or name another place",
    )
    pictures.mkdir()
    name, message = plant.finish(plant.retrain())
    assert (name, "holds no .bmp, .gif, .jpeg, .jpg, .npy, .png" in message) == ("Failed", True), message
    assert plant.status()["registry"]["versions"] == 3
    shutil.rmtree(pictures)
    pictures.with_name("elsewhere").rename(pictures)


def test_a_second_run_is_cancelled_and_an_interrupted_one_goes_on_by_itself_until_a_cancel_saves(plant: Plant) -> None:
    """The loop is stopped and started again.  The schedule stays."""
    run = train(plant)
    # A worker passes the settings on, since a run starts in another folder than that of prefect.toml.
    assert plant.engine().environ()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert list(Path(plant.environment["PREFECT_HOME"]).rglob("*lease*"))
    seen = plant.status()
    assert [each["name"] for each in seen["server"]["runs"]] == [run.name]
    assert [each["in_use"] for each in seen["worktrees"]] == [True]
    second = plant.retrain()
    assert plant.finish(second)[0] == "Cancelled"
    assert any(line.startswith(f"run {second.name} was cancelled at ") for line in plant.status()["problems"])
    assert plant.state(run).is_running()
    plant.stop(signal.SIGTERM)
    assert plant.process.returncode == 0
    assert at_work(plant.project.folder) == []
    assert f"run {run.name} was interrupted; it goes on" in plant.log.read_text()
    plant.serve()
    again = goes_on(plant, run)
    kept = plant.client.read_deployment_by_name("train-vdm/weekly").schedules
    assert sorted(each.active for each in kept) == [False, True]
    assert "NothingToDo" in ended(plant)
    assert [each["name"] for each in plant.status()["server"]["runs"]] == [again.name]
    log = cancel(plant, again)
    assert re.search(r"stopped at step \d+ of 1000000; run again to continue", log)
    assert "Traceback" not in log
    assert trainers(plant.project.folder) == []


def test_a_worker_of_prefect_shares_in_a_second_clone_and_in_one_that_git_clone_makes(
    plant: Plant, tmp_path: Path
) -> None:
    """Its queue keeps the runs from the worker of `vdmctl serve`.  That they share comes with their deployments."""
    second = plant.project.folder.with_name("second")
    second.with_name("storage").mkdir(exist_ok=True)
    (tmp_path / "storage").symlink_to(second.with_name("storage"))  # DVC writes only ASCII into its config
    plant.project.dvc("remote", "modify", "storage", "url", str(tmp_path / "storage"))
    plant.project.git("commit", "--quiet", "--all", "--message=A place that every clone finds")
    plant.project.git("push", "--quiet", "--set-upstream", "origin", "main")
    plant.project.git("clone", "--quiet", "--branch=main", str(plant.remote), str(second))
    make_pool(plant.client, ["second"])
    share_deployments(plant.client)
    known = plant.client.read_deployment_by_name("train-vdm/train-vdm")
    cloned = plant.client.create_deployment(
        known.flow_id,
        "cloned",
        entrypoint=known.entrypoint,
        work_pool_name="vdm",
        job_variables=known.job_variables,
        pull_steps=[{GIT_CLONE: {"repository": f"file://{quote(str(plant.remote))}", "branch": "main"}}],
    )
    published = set(plant.project.published())
    command = [Path(sys.executable).with_name("prefect"), "worker", "start", "--pool", "vdm", "--work-queue", "second"]
    environment = plant.environment | {"PREFECT_API_URL": plant.url}
    with (second.with_name("log of the second")).open("w") as log:
        worker = subprocess.Popen(command, cwd=second, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for deployment, ends in ((known.id, {"Promoted", "Refused"}), (cloned, {"NothingToDo"})):
            given = {"overrides": {"train.steps": 12, "train.start_from": None}}
            run = plant.client.create_flow_run_from_deployment(deployment, parameters=given, work_queue_name="second")
            name, message = plant.finish(run)
            log = plant.logged(run)
            assert name in ends, f"{message}\n{log}"
            assert plant.read(run.id).labels[WORKER] == f"{socket.gethostname()}:{second}".replace("/", "\\")
    finally:
        worker.terminate()
        worker.wait(120)
    assert len(set(plant.project.published()) - published) >= 2  # the version, and what was decided about it
    assert "'git_clone' completed successfully" in log
    assert "has the results of this code" in message
    assert at_work(second) == []


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
