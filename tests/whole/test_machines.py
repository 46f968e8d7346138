"""Test workers on other machines, each in its own network namespace and clone; a bridge leads to the server.

They share the server, a git remote and a DVC remote, and nothing else.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from plant import ENDLESS, Plant, is_alive, killed, wait_until
from project import Project

from flows.registry.versions import champion, resolve

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)

BRIDGE = f"v{os.getpid()}b"
ADDRESS = f"10.213.{os.getpid() % 256}.{{}}"
PASSWORD = "operator:secret"
# Let two pushes of the same tag meet: the first waits for the second, at most five minutes.
MEET = """#!/bin/sh
case "$1" in refs/tags/vdm@*)
    mkdir -p meeting; touch meeting/$$
    for _ in $(seq 3000); do [ $(ls meeting | wc -l) -ge 2 ] && exit 0; sleep 0.1; done;;
esac
"""
# Connect to an address.
REACH = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)"
# What docs/operations.md says.
BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block
Block(name="vdm", url=sys.argv[1], json_data={"text": "{{subject}}: {{body}}"}).save("vdm")
"""


class Machine:
    """A clone in a network namespace, in which `vdmctl worker` can run."""

    def __init__(self, plant: Plant, number: int) -> None:
        self.name = f"vdm{os.getpid()}-{number}"
        self.folder = plant.remote.parent / self.name
        self.plant = plant
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.folder.with_suffix(".log")
        plant.project.git("clone", "--quiet", "--branch=main", str(plant.remote), str(self.folder))
        host, guest = f"v{os.getpid()}h{number}", f"v{os.getpid()}g{number}"
        ip("netns", "add", self.name)
        ip("link", "add", host, "type", "veth", "peer", "name", guest, "netns", self.name)
        ip("link", "set", host, "master", BRIDGE, "up")
        for command in (
            ["addr", "add", f"{ADDRESS.format(number + 1)}/24", "dev", guest],
            ["link", "set", guest, "up"],
            ["link", "set", "lo", "up"],
        ):
            ip("-n", self.name, *command)

    def reaches_the_server(self) -> bool:
        """Return whether the machine can connect to an address of the server's machine, which a firewall may forbid."""
        with socket.create_server((ADDRESS.format(1), 0)) as listening:
            command = [sys.executable, "-c", REACH, *map(str, listening.getsockname())]
            return subprocess.run(["ip", "netns", "exec", self.name, *command], capture_output=True).returncode == 0

    def work(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start `vdmctl worker`."""
        own = {
            "PREFECT_API_URL": self.plant.url,
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "PREFECT_HOME": str(self.folder.with_suffix(".prefect")),
            "VDM_LOCK_DIR": str(self.folder / ".vdm/locks"),
            "NO_PROXY": "*",
        }
        with self.log.open("wb") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, "-m", "flows.cli", "worker", *options],
                cwd=self.folder,
                env=self.plant.environment | own | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def is_running(self) -> bool:
        """Whether the worker was started and has not ended."""
        return bool(self.process) and is_alive(self.process.pid)

    def start(self) -> None:
        """Start `vdmctl worker` unless it is running, and wait until it looks for runs."""
        if self.is_running:
            return
        process = self.process = self.work()
        wait_until(lambda: "started!" in self.log.read_text() or process.poll() is not None, 600, self.log)
        assert process.poll() is None, self.log.read_text()

    def refuses(self, *options: str, **environment: str) -> str:
        """Return the only line that `vdmctl worker` prints before it ends with an error."""
        code = self.work(*options, **environment).wait(300)
        (line,) = self.log.read_text().splitlines()
        return f"{code} {line}"

    def switch_off(self) -> None:
        """Kill every process of the machine."""
        killed(*map(int, ip("netns", "pids", self.name).split()))
        if self.process:
            self.process.wait()

    def states(self) -> list[Path]:
        """Return the saved training states."""
        return list((self.folder / ".vdm/runs").glob("*/*.state"))


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def database() -> Iterator[dict[str, str]]:
    """Start PostgreSQL from Debian's package on a loopback port; return the setting of Prefect, or {} without it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found or os.getuid() != 0:  # root runs it as its own user
        yield {}
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="vdm-postgresql-"))
    shutil.chown(folder, "postgres", "postgres")

    def control(*arguments: str) -> None:
        command = ["runuser", "-u", "postgres", "--", str(found[-1]), "--pgdata", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    control("init", "--options=--auth=trust --encoding=UTF8 --no-locale --no-sync")
    control("start", "--wait", f"--log={folder}/log", f"--options=-p {port} -c listen_addresses=127.0.0.1 -k {folder}")
    try:
        url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
    finally:
        control("stop", "--mode=immediate")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def plant(registry: Project, tmp_path_factory: pytest.TempPathFactory, database: dict[str, str]) -> Iterator[Plant]:
    """Return a server without a worker, whose project has three versions that are published."""
    if not shutil.which("ip") or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        pytest.skip("this user cannot make network namespaces")
    folder = tmp_path_factory.mktemp("machines")
    plant = Plant(
        folder,
        registry.copy(folder / "project"),
        PREFECT_SERVER_API_AUTH_STRING=PASSWORD,
        PREFECT_API_AUTH_STRING=PASSWORD,
        PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS="5",
        PREFECT_SERVER_REGISTER_BLOCKS_ON_START="true",
        **database,
    )
    plant.project.edit("automations.yaml", **{"within: 600": "within: 10"})
    plant.project.git("push", "--quiet", "--set-upstream", "origin", "main", "--tags")
    plant.project.dvc("push", "--all-tags")
    plant.authorization["Authorization"] = f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{ADDRESS.format(1)}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        plant.url = f"http://{ADDRESS.format(1)}:{plant.port}/api"
        plant.serve("--no-worker", "--host", ADDRESS.format(1))
        yield plant
    finally:
        plant.stop()
        ip("link", "delete", BRIDGE)


@pytest.fixture(scope="module")
def machines(plant: Plant) -> Iterator[list[Machine]]:
    """Return two machines, on which nothing runs yet."""
    made: list[Machine] = []
    try:
        made += [Machine(plant, 1), Machine(plant, 2)]
        if not made[0].reaches_the_server():
            pytest.skip("a firewall keeps network namespaces from this machine")
        yield made
    finally:
        for machine in made:
            machine.switch_off()
            ip("netns", "delete", machine.name)


def test_what_a_worker_cannot_work_with_is_one_line(machines: list[Machine]) -> None:
    machine = machines[0]
    wrong = f"http://{ADDRESS.format(9)}:4200/api"
    assert f"5 vdmctl: {wrong}: no Prefect server answers (" in machine.refuses(PREFECT_API_URL=wrong)
    refused = machine.refuses(PREFECT_API_AUTH_STRING="operator:guess")
    assert refused.endswith("the server refuses the password; set PREFECT_API_AUTH_STRING=USER:PASSWORD")
    assert refused.startswith("2 ")
    refused = machine.refuses("--queue", "cpu", "--queue", "big")
    assert refused.startswith("2 vdmctl: the work pool has no queue big, only default, ")
    assert refused.endswith("; `prefect work-queue create big --pool vdm` creates it")


@pytest.fixture(scope="module")
def messages(plant: Plant) -> Iterator[list[str]]:
    """Return the messages that a webhook receives, whose block is made while the server runs."""
    received: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        environment = plant.environment | {"PREFECT_API_URL": plant.url}
        made = subprocess.run([sys.executable, "-c", BLOCK, url], env=environment)
        assert made.returncode == 0
        yield received
        server.shutdown()


def test_a_webhook_receives_that_a_planned_run_did_not_start(plant: Plant, messages: list[str]) -> None:
    wait_until(lambda: "late run by webhook: on" in plant.log.read_text(), 300, plant.log)
    run = plant.retrain()
    wait_until(lambda: len(messages) > 0, 600, plant.log)
    assert messages[0].startswith(
        f"vdm: a planned run has not started: {plant.read(run)['name']} of train-vdm is late; "
    )
    late = rf"run {plant.read(run)['name']}, planned for \S+, has not started; is a worker of the queue default online"
    assert any(re.match(late, problem) for problem in plant.status()["problems"])
    plant.api(f"flow_runs/{run}/set_state", state={"type": "CANCELLED"}, force=True)


def test_the_server_uses_postgresql(plant: Plant, database: dict[str, str]) -> None:
    """In all tests of this file, if it is installed; else it uses SQLite, as in the other files."""
    if not database:
        pytest.skip("needs Debian's postgresql, and root to run it as its own user")
    assert not (Path(plant.environment["PREFECT_HOME"]) / "prefect.db").exists()


def test_the_deployments_name_no_folder(plant: Plant) -> None:
    for name in ("train-vdm", "weekly"):
        assert str(plant.project.folder) not in json.dumps(plant.api(f"deployments/name/train-vdm/{name}"))


def test_another_machine_takes_over_from_one_that_is_switched_off(plant: Plant, machines: list[Machine]) -> None:
    """It continues where the saved states are on a shared file system; the runs of the next test find no state."""
    first, second = machines
    overrides = ENDLESS | {"train.log_every": 20}
    first.start()
    plant.retrain(overrides=overrides)
    wait_until(lambda: len(first.states()) > 0, 600, first.log)
    first.switch_off()
    (second.folder / ".vdm").mkdir(exist_ok=True)
    (second.folder / ".vdm/runs").symlink_to(first.folder / ".vdm/runs")
    second.start()
    run = plant.retrain_by("weekly", overrides=overrides)
    wait_until(lambda: any("continuing from step" in line for line in plant.lines(run)), 600, second.log, every=1.0)
    plant.cancel(run)
    (second.folder / ".vdm/runs").unlink()


def test_two_that_finish_together_make_two_versions_and_one_champion(
    plant: Plant, machines: list[Machine], messages: list[str]
) -> None:
    hook = plant.remote / "hooks/update"
    hook.write_text(MEET)
    hook.chmod(0o755)
    for machine in machines:
        machine.start()
    dead = plant.api("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["RUNNING", "PENDING"]}}})
    for run in dead:  # the machine that was switched off could not report its end
        plant.api(f"flow_runs/{run['id']}/set_state", state={"type": "CRASHED"}, force=True)
    first, second = ({"train.steps": 20, "train.seed": seed} for seed in (1, 2))
    runs = [plant.retrain(overrides=first), plant.retrain_by("weekly", overrides=second)]
    ends = [plant.finish(run, 900) for run in runs]
    assert [state for state, _ in ends] == ["COMPLETED", "COMPLETED"], ends
    assert sorted(message.split(",")[0] for _, message in ends) == ["vdm@v1.3.0", "vdm@v1.4.0"]
    wait_until(lambda: len([text for text in messages if "vdm@v1." in text]) == 2, 300, plant.log)
    logs = "\n".join(map(plant.logged, runs))
    assert logs.count("no saved state of these parameters") == 2
    assert "another machine published the same version numbers first" in logs
    folders = [plant.project.folder, *(machine.folder for machine in machines)]
    for folder in folders:
        subprocess.run(["git", "fetch", "--quiet", "--tags"], cwd=folder, check=True)
    reigning, *others = [champion(folder) for folder in folders]
    assert reigning
    assert others == [reigning, reigning]
    third, fourth = [resolve(folders[0], f"vdm@v1.{minor}.0") for minor in (3, 4)]
    assert third.commit != fourth.commit
    assert "vdm@v1.4.0 is not shown to improve" in logs or "vdm@v1.4.0 improves" in logs
    assert "bits/dim against vdm@v1.3.0 on" in logs
    for version in ("vdm@v1.3.0", "vdm@v1.4.0"):
        assert plant.project.vdmctl("verify", version).returncode == 0


def test_a_run_whose_publication_failed_takes_another_number_in_the_next_run(
    plant: Plant, machines: list[Machine], messages: list[str]
) -> None:
    """Meanwhile another machine has published a version by its number."""
    project = plant.project
    mine = resolve(project.folder, "vdm@v1.4.0").commit
    for machine in machines:
        subprocess.run(["git", "fetch", "--quiet", "--tags"], cwd=machine.folder, check=True)
    promoted = [tag for tag in project.git("tag", "--points-at", mine).split() if "#" in tag]
    project.git("push", "--quiet", "origin", "--delete", "vdm@v1.4.0", *promoted)
    project.git("push", "--quiet", "origin", "vdm@v1.0.0:refs/tags/vdm@v1.4.0")
    run = plant.retrain(overrides={"train.steps": 20, "train.seed": 1})
    state, message = plant.finish(run, 900)
    assert state == "COMPLETED", message
    assert f"renumbering commits {mine[:12]}" in plant.logged(run)
    wait_until(lambda: any("vdm@v1.5.0" in text for text in messages), 300, plant.log)
    subprocess.run(["git", "fetch", "--quiet", "--tags", "--force"], cwd=project.folder, check=True)
    assert resolve(project.folder, "vdm@v1.5.0").commit == mine
