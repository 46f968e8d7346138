"""What may rot in deploy/: the commands, settings, paths and times that its files take from the project."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest
import torch
from prefect.settings import Settings
from prefect.settings.legacy import _get_settings_fields
from project import ROOT
from ruamel.yaml import YAML
from servers import answering

from flows.app import listening
from flows.cli import run
from flows.commands.app import PORT
from flows.core import layout
from flows.core.device import find_compile
from flows.core.errors import Exit, UserError
from flows.orchestration import serve
from flows.process import groups
from flows.process.lifeline import KILL_SECONDS

DEPLOY = ROOT / "deploy"
COMPOSE = YAML(typ="safe").load(DEPLOY / "compose.yaml")
# The runs, then two signals to the worker and two to the server.
LONGEST_STOP = KILL_SECONDS + 2 * groups.STOP_SECONDS + 4 * serve.STOP_SECONDS


def unit(name: str = "vdm") -> dict[str, str]:
    """Return the settings of a unit; their names are the same in no two sections."""
    pairs = re.findall(r"^(\w+)=(.*)$", (DEPLOY / f"{name}.service").read_text(), re.MULTILINE)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name]


def instruction(name: str) -> str:
    """Return the arguments of the only instruction of that name."""
    (found,) = [rest for each, rest in instructions() if each == name]
    return found


def variables(text: str) -> dict[str, str]:
    """Return NAME=VALUE pairs, separated by spaces."""
    return dict(pair.split("=", 1) for pair in shlex.split(text))


def test_the_commands_and_their_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    (program, *arguments), (same, *app) = (shlex.split(unit(name)["ExecStart"]) for name in ("vdm", "vdm-app"))
    assert Path(program).name == "vdmctl"
    assert same == program
    assert ast.literal_eval(instruction("ENTRYPOINT")) == ["vdmctl"]
    for command in (arguments, app, COMPOSE["services"]["app"]["command"], ast.literal_eval(instruction("CMD"))):
        assert run([*command, "--help"]) == 0, capsys.readouterr().err


def environment() -> dict[str, str]:
    """Return the environment of the service in compose.yaml."""
    return dict(COMPOSE["services"]["vdm"]["environment"])


def test_the_settings_of_prefect_exist() -> None:
    known = _get_settings_fields(Settings)
    given = {**environment(), **variables(instruction("ENV")), **variables(unit()["Environment"])}
    assert [name for name in given if name.startswith("PREFECT_") and name not in known] == []


def test_a_stop_may_take_as_long_as_serve_does() -> None:
    assert int(unit()["TimeoutStopSec"]) > LONGEST_STOP
    minutes = re.fullmatch(r"(\d+)m", COMPOSE["services"]["vdm"]["stop_grace_period"])
    assert minutes
    assert 60 * int(minutes[1]) > LONGEST_STOP
    assert int(unit("vdm-app")["TimeoutStopSec"]) > listening.STOP_SECONDS


def test_the_app_answers_at_the_port_that_the_container_of_the_loop_publishes() -> None:
    app, loop = COMPOSE["services"]["app"], COMPOSE["services"]["vdm"]
    assert app["network_mode"] == "service:vdm"
    assert loop["ports"][-1].endswith(f":{PORT}")
    assert f"127.0.0.1:{PORT}/health" in app["healthcheck"]["test"][-1]
    assert app["environment"] == {listening.PASSWORD: loop["environment"]["PREFECT_API_AUTH_STRING"]}


def test_locks_are_where_all_trainers_find_them() -> None:
    """The default is in /tmp, and the service's own /tmp is seen by nobody else."""
    for found in (unit(), unit("vdm-app")):
        assert found["PrivateTmp"] == "yes"
        assert found["StateDirectory"] == "vdm"
        assert variables(found["Environment"])["VDM_LOCK_DIR"] == "%S/vdm/locks"
    for path in variables(instruction("ENV")).values():
        inside = PurePosixPath(path).relative_to(instruction("WORKDIR"))
        assert inside.parts[0] == str(layout.PRIVATE)


def test_the_image_is_built_of_files_that_exist() -> None:
    *sources, target = instruction("COPY").split()
    assert target == "./"
    assert [name for name in sources if not (ROOT / name).is_file()] == []
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert [rule for rule in ignored if rule != "*"] == [f"!{name}" for name in sources]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # The packages that stand in for the repository's are all that an editable installation looks for.
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    made = next(rest for name, rest in instructions() if name == "RUN" and "--editable" in rest)
    assert packages == set(re.findall(r"(\w+)/__init__\.py", made))
    version = re.match(r"python:(\d+)\.(\d+)", instruction("FROM"))
    assert version
    least = re.match(r">=(\d+)\.(\d+),", project["project"]["requires-python"])
    assert least
    assert tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))


def test_passwords_are_in_no_file_of_git() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service["environment"].items():
            if name.endswith(("PASSWORD", "AUTH_STRING")):
                assert re.search(r"\$\{\w+:\?[^}]+\}", value), f"{name} has a value"
    assert subprocess.run(["git", "check-ignore", "--quiet", "deploy/.env"], cwd=ROOT).returncode == 0


def test_the_health_check_tells_a_server_that_answers_from_none() -> None:
    _, _, command = instruction("HEALTHCHECK").partition(" CMD ")
    program, *arguments = ast.literal_eval(command)
    assert program == "python"
    with answering(health=True) as url:
        here = [argument.replace(":4200/", f":{urlsplit(url).port}/") for argument in arguments]
        assert here != arguments
        proxy = os.environ | {"http_proxy": "http://127.0.0.1:9"}
        assert subprocess.run([sys.executable, *here], env=proxy).returncode == 0
    assert subprocess.run([sys.executable, *here], stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", ["vdm", "vdm-app"])
def test_systemd_understands_the_unit(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.service"
    path.write_text((DEPLOY / f"{name}.service").read_text().replace(unit(name)["ExecStart"], "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if fnmatch(line, f"*{name}.service*")] == []


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", ["vdm", "vdm-app"])
def test_a_unit_has_few_rights(name: str) -> None:
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(DEPLOY / f"{name}.service")]
    done = subprocess.run(command, capture_output=True, text=True)
    level = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert level, done.stderr
    assert float(level[1]) <= 4


def test_nothing_is_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image without gcc."""
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    card, cpu = torch.device("cuda"), torch.device("cpu")
    assert [find_compile("auto", card), find_compile("auto", cpu), find_compile(False, card)] == [False] * 3
    with pytest.raises(UserError, match=r"train\.compile: true needs a compiler: install gcc or set CC") as refused:
        find_compile(True, card)
    assert refused.value.code is Exit.USAGE
