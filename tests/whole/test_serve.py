"""What stops `vdmctl serve` from starting, what it survives, and its history; test_flow.py tests the loop itself."""

import http
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from plant import ENDLESS, PATIENT, Plant, children, is_alive, killed, served, trainers, wait_until
from project import ROOT, Project, run_vdmctl
from servers import saying

from flows.core.errors import Exit, UserError
from flows.orchestration import serve as serving
from flows.orchestration.pruning import Pruning, prune_history
from flows.orchestration.server import Address, Api, is_loopback
from flows.process.locks import claim

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Plant]:
    """Return a running loop, in a folder with a space and an umlaut in its path, whose runs only train."""
    folder = tmp_path_factory.mktemp("plant") / "Bücher und Bilder"
    yield from served(Plant(folder, only_training(folder / "project")), empty_database)


def only_training(folder: Path) -> Project:
    """Return a project whose images are in git, and whose only stage is the training."""
    project = Project(folder)
    project.edit("flows/training/fitting.py", **PATIENT)
    for stage in ("download", "validate"):
        assert project.vdmctl(stage).returncode == 0
    (train,) = re.findall(r"(?ms)^  train:\n.*?\n\n", (folder / "dvc.yaml").read_text())
    (folder / "dvc.yaml").write_text(f"stages:\n{train}")
    project.git("add", "--force", "data/images", "reports/validation/validation.json")
    return project


def serve(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve", *arguments],
        cwd=folder,
        env=os.environ | {"PREFECT_HOME": str(folder), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_a_server_elsewhere_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://localhost.localdomain:{free.getsockname()[1]}/api"
    (tmp_path / "profiles.toml").write_text(f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{url}"\n')
    result = serve(tmp_path)
    assert result.returncode == Exit.MISSING, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"vdmctl: {url}: no Prefect server answers (")


def test_where_no_server_can_listen(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serve(tmp_path, "--host", "192.0.2.7", "--port", str(port), PREFECT_SERVER_API_AUTH_STRING="a:b")
        assert result.returncode == Exit.USAGE, result.stderr
        last, advice = result.stderr.splitlines()[-1], "--port picks another port, --host another address"
        reason = "Cannot assign requested address"
        assert last == f"vdmctl: no server can listen at 192.0.2.7, port {port}: {reason}; {advice}"
        with pytest.raises(UserError, match=f"^no server can listen at 127.0.0.1, port {port}: Address already in use"):
            serving.require_free(Address(f"http://127.0.0.1:{port}/api", "127.0.0.1", port))


def test_a_port_at_which_something_else_answers(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").touch()
    with saying(b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        result = serve(tmp_path, "--port", str(urlsplit(url).port))
    assert result.returncode == Exit.MISSING, result.stderr
    (line,) = result.stderr.splitlines()
    reason = "not a Prefect server, or one of another version (SSH-2.0-OpenSSH_9.2)"
    assert line.startswith(f"vdmctl: {url}: {reason}")


def test_a_folder_that_is_no_project(tmp_path: Path) -> None:
    result = run_vdmctl(tmp_path, dict(os.environ), "serve")
    assert result.returncode == Exit.USAGE
    message = f"vdmctl: {tmp_path} has no prefect.yaml; change to the project's folder\n"
    assert result.stderr == message
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_lets_others_in_needs_a_password(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").touch()
    result = run_vdmctl(tmp_path, os.environ | {"PREFECT_HOME": str(tmp_path)}, "serve", "--host", "0.0.0.0")
    assert result.returncode == Exit.USAGE, result.stderr
    assert result.stderr.startswith("vdmctl: --host 0.0.0.0 lets other machines in; set PREFECT_SERVER_API_AUTH_STRING")
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.7", "example.org", "")] == [False] * 5


def test_a_page_of_another_origin_changes_and_reads_nothing(plant: Plant) -> None:
    """By Prefect's defaults, every web page open on the machine could start runs."""
    token = f"{plant.url}/csrf-token?client=00000000-0000-4000-8000-000000000000"
    asked = urllib.request.Request(token, headers={"Origin": "http://example.org"})
    with urllib.request.urlopen(asked) as response:
        assert response.headers["Access-Control-Allow-Origin"] is None
    forged = urllib.request.Request(f"{plant.url}/flows/filter", data=b"{}", headers={"Origin": "http://example.org"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(forged)
    refused.value.close()
    assert refused.value.code == http.HTTPStatus.FORBIDDEN
    own = urllib.request.Request(token, headers={"Origin": plant.url.removesuffix("/api")})
    with urllib.request.urlopen(own) as response:
        assert response.headers["Access-Control-Allow-Origin"] == plant.url.removesuffix("/api")


def test_a_run_waits_for_a_busy_device_and_says_for_whom(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDM_LOCK_DIR", plant.environment["VDM_LOCK_DIR"])
    with claim(torch.device("cpu")):
        state, message = plant.finish(plant.retrain(overrides=ENDLESS, wait_hours=0.0))
        assert state == "FAILED"
        assert f"cpu is busy: process {os.getpid()} in " in message
        last = plant.status()["server"]["last_run"]
        assert (last["state"], last["reason"]) == ("Failed", message)
        run = plant.retrain(overrides=ENDLESS)
        waits = re.compile(rf"cpu is busy: process {os.getpid()} in .*; this run waits for it, at most until 20")
        wait_until(lambda: any(waits.search(line) for line in plant.lines(run)), 600, plant.log, every=1.0)
    assert training(plant) == run


def test_the_status_names_the_run_its_device_and_its_worktree(plant: Plant) -> None:
    """A loop with a server and a worker has no problem but that the last run failed."""
    run = training(plant)
    wait_until(lambda: len(plant.status()["problems"]) == 1, 300, plant.log, every=1.0)
    found = plant.status()
    (failed,) = found["problems"]
    assert re.fullmatch(r"the last run, [a-z]+-[a-z]+, failed at 20\S+: stage train failed: cpu is busy: .*", failed)
    assert found["server"]["url"] == plant.url
    assert [one["name"] for one in found["server"]["runs"]] == [plant.read(run)["name"]]
    assert [worker["status"] for worker in found["server"]["workers"]] == ["ONLINE"]
    (device,) = found["devices"]
    assert device["device"] == "cpu"
    (worktree,) = found["worktrees"]
    assert worktree["in_use"]
    assert worktree["name"] in device["holder"]
    assert found["disk_bytes"]["training_states"] > 0
    assert plant.finish(plant.retrain())[0] == "CANCELLED"  # the deployment has a run already
    assert plant.status()["problems"] == [failed]
    plant.api("work_pools/vdm", "PATCH", is_paused=True)
    paused = "no run of vdm starts, since it is paused; `prefect work-pool resume vdm`"
    assert plant.status()["problems"] == [paused, failed]
    plant.api("work_pools/vdm", "PATCH", is_paused=False)


def test_a_run_that_is_paused_is_cancelled(plant: Plant) -> None:
    """Prefect would pause it before its next task, which may be days later, and then resume it in a second process."""
    run = training(plant)
    (trainer,) = trainers(plant.project.folder)
    paused = plant.api(f"flow_runs/{run}/set_state", state={"type": "PAUSED", "name": "Suspended"})
    assert paused["status"] == "ACCEPT"
    assert [one["name"] for one in plant.status()["server"]["runs"]] == [plant.read(run)["name"]]
    assert plant.finish(run)[0] == "CANCELLED"
    assert not is_alive(trainer)
    assert "A run of train-vdm cannot be paused, so it was cancelled; " in plant.log.read_text()
    continues(plant)


def test_a_run_that_is_deleted_is_stopped(plant: Plant) -> None:
    run = training(plant)
    (trainer,) = trainers(plant.project.folder)
    plant.api(f"flow_runs/{run}", "DELETE")
    wait_until(lambda: not is_alive(trainer), 100, plant.log)
    assert f"run {run}: it was deleted while it was in progress" in plant.log.read_text()
    continues(plant)


def test_a_schedule_that_never_fires_is_switched_off(plant: Plant) -> None:
    """Because of one, Prefect plans no run of the deployment's other schedules."""
    plant.add_schedule("train-vdm/weekly", "0 0 30 2 *")
    line = "train-vdm/weekly: 0 0 30 2 *: switched off, since no run can be planned: failed to find next date"
    wait_until(lambda: line in plant.log.read_text(), 300, plant.log)
    schedules = plant.api("deployments/name/train-vdm/weekly")["schedules"]
    (made,) = [one for one in schedules if one["schedule"].get("cron") == "0 0 30 2 *"]
    assert made["active"] is False
    weekly = plant.api("deployments/name/train-vdm/weekly")["id"]
    plant.api(f"deployments/{weekly}/schedules/{made['id']}", "DELETE")


def test_the_lease_of_a_run_is_in_a_file(plant: Plant) -> None:
    """Prefect ends a run that cannot renew its lease, some minutes after a server that kept it in memory has ended."""
    details = plant.read(training(plant))["state"]["state_details"]
    leases = Path(plant.environment["PREFECT_HOME"]) / "concurrency_leases"
    assert (leases / f"{details['deployment_concurrency_lease_id']}.json").is_file()


def test_a_second_one_in_the_folder_and_one_in_another_leave_the_first_alone(plant: Plant, tmp_path: Path) -> None:
    second = serve(plant.project.folder, "--port", str(plant.port))
    assert second.returncode == Exit.BUSY
    message = f"process {plant.process.pid} serves {plant.project.folder} already; stop it first"
    assert second.stderr == f"vdmctl: {message}\n"
    other = Project(tmp_path)
    result = serve(other.folder, "--port", str(plant.port))
    assert result.returncode == Exit.BUSY, result.stderr
    place = f"{plant.project.folder} on {socket.gethostname()}"
    assert f"serves {place} already, or did until a minute ago; `PREFECT_HOME=" in result.stderr
    result = serve(other.folder, PREFECT_HOME=plant.environment["PREFECT_HOME"])
    assert result.returncode == Exit.BUSY, result.stderr
    home = other.folder / ".vdm" / "prefect"
    assert f"{plant.project.folder} serves with Prefect's database in " in result.stderr
    assert f"`PREFECT_HOME={home} vdmctl serve --port N` serves this folder, too" in result.stderr
    assert result.stderr.count("\n") == 1  # no server was started
    shares = subprocess.run(
        [sys.executable, "-m", "flows.cli", "worker"],
        cwd=other.folder,
        env=other.environment | {"PREFECT_API_URL": plant.url},
        capture_output=True,
        text=True,
    )
    assert shares.returncode == Exit.BUSY, shares.stderr
    assert "its worker shares versions only if `vdmctl serve --share` starts it" in shares.stderr
    deployment = plant.api("deployments/name/train-vdm/train-vdm")
    assert "$VDM_PROJECT" in str(deployment["pull_steps"])  # the folder of the worker
    assert deployment["job_variables"] == {"command": "python3 -m prefect.engine"}  # and its interpreter


def test_a_worker_and_a_server_that_are_killed_are_replaced_and_the_run_is_continued(plant: Plant) -> None:
    run = training(plant)
    below = children(plant.process.pid)
    killed(below["prefect server"], below["prefect worker"])  # so the worker starts while there is no server
    for name in ("server", "worker"):
        line = f"`prefect {name} start` ended; starting it again"
        wait_until(lambda line=line: line in plant.log.read_text(), 600)
    wait_until(plant.answers, 600)
    assert plant.finish(run)[0] == "CRASHED"  # its output has no reader any more
    continues(plant)


def test_a_loop_that_is_killed_takes_everything_along_and_goes_on_when_it_is_served_again(plant: Plant) -> None:
    """It keeps what the operator set."""
    run = training(plant)
    (trainer,) = trainers(plant.project.folder)
    below = children(plant.process.pid)
    weekly = plant.api("deployments/name/train-vdm/weekly")
    (schedule,) = weekly["schedules"]
    plant.api(f"deployments/{weekly['id']}/schedules/{schedule['id']}", "PATCH", active=True)
    plant.add_schedule("train-vdm/train-vdm", "5 4 1 1 *")
    deployment = plant.api("deployments/name/train-vdm/train-vdm")["id"]
    plant.api(f"deployments/{deployment}", "PATCH", parameters={"preset": "mnist"}, tags=["mine"])
    (engine,) = children(below["prefect worker"]).values()
    killed(plant.process.pid, below["prefect worker"], engine)  # so that nobody can report the end of the run
    plant.process.wait()
    wait_until(lambda: not any(map(is_alive, (trainer, *below.values()))), 60)

    plant.serve()
    log = plant.log.read_text()
    assert "its process was gone, so the run was marked as ended" in log
    assert plant.read(run)["state"]["type"] == "CRASHED"
    assert re.search(r"train-vdm/weekly: 0 3 \* \* 0 UTC: on, next run 20\d\d-\d\d-\d\d 03:00 UTC\n", log)
    assert re.search(r"train-vdm/train-vdm: 5 4 1 1 \* UTC: on, next run 20\d\d-01-01 04:05 UTC\n", log)
    schedules = {one["deployment"]: one for one in plant.status()["server"]["schedules"]}
    weekly_schedule = schedules["train-vdm/weekly"]
    assert (weekly_schedule["when"], weekly_schedule["active"]) == ("0 3 * * 0", True)
    after = plant.api("deployments/name/train-vdm/train-vdm")
    assert (after["parameters"], after["tags"], after["paused"]) == ({"preset": "mnist"}, ["mine"], False)
    plant.api(f"deployments/{deployment}", "PATCH", parameters={}, tags=[])
    for name in ("train-vdm/weekly", "train-vdm/train-vdm"):
        plant.remove_schedules(name)
    continues(plant)


def test_a_loop_that_is_killed_and_started_again_at_once_goes_on(plant: Plant) -> None:
    """As a service manager does.  Its server, its worker and its run may still be about to end."""
    run = training(plant)
    (trainer,) = trainers(plant.project.folder)
    worker = children(plant.process.pid)["prefect worker"]
    (engine,) = children(worker).values()
    plant.process.kill()
    plant.process.wait()
    plant.serve()
    wait_until(plant.answers, 300, plant.log)
    assert plant.finish(run)[0] == "CRASHED"
    wait_until(lambda: not any(map(is_alive, (trainer, engine, worker))), 60)
    continues(plant)


def test_a_run_whose_process_died_while_the_server_failed_is_ended(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a full disk: the worker could not report the end, and the run would keep all others away."""
    plant.cancel(training(plant))
    deployment = plant.api("deployments/name/train-vdm/train-vdm")["id"]
    run = plant.api(f"deployments/{deployment}/create_flow_run", state={"type": "PENDING"})["id"]
    absent: dict[str, float] = {}
    serving.look(lambda api: None, [], absent, Api(plant.url))
    assert plant.read(run)["state"]["type"] == "PENDING"
    monkeypatch.setattr(serving, "DEAD_SECONDS", 0.0)
    serving.look(lambda api: None, [], absent, Api(plant.url))
    assert plant.read(run)["state"]["type"] == "CRASHED"
    assert capsys.readouterr().err.endswith("its process was gone, so the run was marked as ended\n")


def test_pruning_removes_the_ended_runs_beyond_the_newest_from_the_history(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelled, Completed, Failed, Running

    monkeypatch.setenv("PREFECT_API_URL", plant.url)
    before = Pruning(keep=0, dry_run=False)
    prune_history(tmp_path, before, 0)  # those of the tests before
    assert before.problems + before.skipped == []
    ours, other = (flow(name=name)(lambda: None) for name in ("train-vdm", "other"))
    with temporary_settings({PREFECT_API_URL: plant.url}), get_client(sync_client=True) as client:
        states = {"first": Completed, "second": Completed, "third": Failed, "fourth": Completed}
        states |= {"fifth": Cancelled, "sixth": Cancelled, "seventh": Cancelled, "works": Running}
        for name, state in states.items():
            run = client.create_flow_run(ours, name=name, state=Running())
            client.create_artifact(ArtifactCreate(key=name, flow_run_id=run.id))
            client.set_flow_run_state(run.id, state(), force=True)
        client.create_flow_run(other, name="other", state=Completed())
        for dry_run in (True, False):
            work = Pruning(keep=2, dry_run=dry_run)
            prune_history(tmp_path, work, 2)
            assert work.problems + work.skipped == []
            gone = ["second", "first", "fifth"]
            assert work.removed["prefect_runs"]["names"] == gone
            left = states.keys() - (set() if dry_run else gone)
            assert {run.name for run in client.read_flow_runs()} == left | {"other"}
            assert {artifact.key for artifact in client.read_artifacts()} & states.keys() == left


def training(plant: Plant) -> str:
    """Return the run that trains, possibly since an earlier test, or start one.  It has saved a state."""
    state = {"type": {"any_": ["PENDING", "RUNNING"]}}
    runs = [run["id"] for run in plant.api("flow_runs/filter", flow_runs={"state": state})]
    (run,) = runs or [plant.retrain(overrides=ENDLESS)]
    saved = (plant.project.folder / ".vdm" / "runs").glob
    wait_until(lambda: any(saved("*/*.state")) and bool(trainers(plant.project.folder)), 600, plant.log, every=0.5)
    return str(run)


def continues(plant: Plant) -> None:
    """Start a run, and wait until it continues from a saved state."""
    run = plant.retrain(overrides=ENDLESS)
    wait_until(lambda: any("continuing from step" in line for line in plant.lines(run)), 600, plant.log, every=1.0)
