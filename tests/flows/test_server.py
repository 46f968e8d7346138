"""Where the server is, who may reach it, and what `vdmctl serve` and `vdmctl worker` refuse."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from prefect.context import refresh_global_settings_context
from prefect.plugins import HookContext
from servers import answering

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.orchestration.plugin import setup_environment
from flows.orchestration.runs import worker_name
from flows.orchestration.serve import serve, work
from flows.orchestration.server import (
    Address,
    ServerError,
    configure,
    connect,
    find_address,
    find_served_url,
    lock_database,
    lock_folder,
)
from flows.orchestration.status import devices, server
from flows.process.addresses import is_loopback
from flows.project.project import Project

NAME = "NAME"
"""Stands for the name of the folder's worker."""


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a project's folder and no settings of Prefect but those of the test."""
    own = {"PREFECT_HOME": str(tmp_path / "prefect"), "VDM_LOCK_DIR": str(tmp_path / "locks")}
    with patch.dict(os.environ, own):
        monkeypatch.chdir(tmp_path)
        layout.DEPLOYMENTS.write_text("deployments: []")
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


def settings(**values: str) -> None:
    """Set Prefect's settings as variables of the environment."""
    os.environ.update({f"PREFECT_{name}": value for name, value in values.items()})
    refresh_global_settings_context()


def test_a_server_is_on_loopback_by_default_and_else_where_prefects_settings_or_an_option_say() -> None:
    assert find_address(None, None) == Address("http://127.0.0.1:4200/api", "127.0.0.1", 4200)
    assert find_address("::1", 4300) == Address("http://[::1]:4300/api", "::1", 4300)
    settings(API_URL="http://127.0.0.1:4999/api/")
    assert find_address(None, None) == Address("http://127.0.0.1:4999/api", "127.0.0.1", 4999)
    assert find_address(None, 4300).port == 4300


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_an_address_that_lets_other_machines_in_needs_a_password(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UserError, match=r"lets other machines in; set PREFECT_SERVER_API_AUTH_STRING") as refused:
        serve(host, None)
    assert refused.value.code is Exit.USAGE
    settings(SERVER_API_AUTH_STRING="user:password")
    assert find_address(host, None).host == host
    with patch.dict(os.environ):
        configure("http://127.0.0.1:4200/api")
        assert os.environ["PREFECT_API_AUTH_STRING"] == "user:password"


def test_a_server_that_cannot_be_used_is_one_line() -> None:
    for answer, code, said in (
        (401, Exit.USAGE, "refuses the password; set PREFECT_API_AUTH_STRING=USER:PASSWORD"),
        (404, Exit.MISSING, "start one with `vdmctl serve`, or set PREFECT_API_URL"),
        ("1.0.0", Exit.MISSING, "no Prefect server"),
    ):
        with answering(version=answer) as url:
            settings(API_URL=url)
            with pytest.raises(ServerError, match=said) as refused, connect(url):
                pass
            assert refused.value.code is code
            assert str(refused.value) == f"{url}: {refused.value.reason}"
            found = server(Project())
            assert (found.url, found.answers, found.reason) == (url, False, refused.value.reason)


def test_a_worker_needs_a_server_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.orchestration.serve.share_versions", lambda: None)
    settings(API_URL="http://127.0.0.1:9/api")
    with patch.dict(os.environ), pytest.raises(UserError, match=r"http://127.0.0.1:9/api: no Prefect server") as error:
        work(None)
    assert error.value.code is Exit.MISSING


def test_no_server_is_started_at_an_address_of_another_machine() -> None:
    settings(API_URL="http://server.invalid:4200/api")
    with patch.dict(os.environ), pytest.raises(UserError, match="no Prefect server answers at http://server") as error:
        serve(None, None)
    assert error.value.code is Exit.MISSING


def test_a_folder_that_is_no_project() -> None:
    layout.DEPLOYMENTS.unlink()
    with pytest.raises(UserError, match=r"has no prefect.yaml; change to the project's folder") as error:
        serve(None, None)
    assert error.value.code is Exit.USAGE


def test_one_serves_a_folder_and_one_a_database(tmp_path: Path) -> None:
    assert find_served_url(tmp_path) is None
    with lock_folder("http://127.0.0.1:4200/api"), lock_database():
        assert find_served_url(tmp_path) == "http://127.0.0.1:4200/api"
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()} serves {tmp_path} already") as refused,
            lock_folder("x"),
        ):
            pass
        assert refused.value.code is Exit.BUSY
        with pytest.raises(UserError, match=r"serves with Prefect's database in .*PREFECT_HOME=") as refused:
            lock_database().__enter__()
        assert refused.value.code is Exit.BUSY


def test_a_folder_is_served_once_also_when_its_private_files_are_deleted(tmp_path: Path) -> None:
    layout.PRIVATE.mkdir()
    with lock_folder("http://127.0.0.1:4200/api"):
        shutil.rmtree(layout.PRIVATE)
        assert find_served_url(tmp_path) == "http://127.0.0.1:4200/api"
        with pytest.raises(UserError, match=rf"process {os.getpid()} serves {tmp_path} already"), lock_folder("x"):
            pass
        assert devices() == []


def test_the_prefect_command_takes_a_bare_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, third in (
        ("run train-vdm --watch", "train-vdm/train-vdm"),
        ("run other/train-vdm", "other/train-vdm"),
        ("inspect train-vdm", "train-vdm"),
    ):
        monkeypatch.setattr(sys, "argv", ["/bin/prefect", "deployment", *words.split()])
        with lock_folder("http://127.0.0.1:4999/api"):
            found = setup_environment(ctx=HookContext("3", None, lambda _: None))  # type: ignore[arg-type, return-value]
        assert found is not None
        assert found.env == {"PREFECT_API_URL": "http://127.0.0.1:4999/api"}
        assert sys.argv[3] == third


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ("--pool vdm", ["--name", NAME, "--limit", "1"]),
        ("-p=vdm --limit=3 --work-queue gpu", ["--name", NAME]),
        ("--work-queue=vdm -l 2 -n mine --pool vdm", []),
        ("--pool other", None),
        ("--work-queue vdm --pool other", None),
    ],
)
def test_a_worker_of_prefect_runs_the_code_of_this_folder(
    options: str, added: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the name and the limit of `vdmctl worker`, unless others are given.  Another pool is left alone."""
    words = ["/bin/prefect", "worker", "start", *options.split()]
    monkeypatch.setattr(sys, "argv", [*words])
    context = HookContext("3", "http://team/api", lambda _: None)  # type: ignore[arg-type, return-value]
    found = setup_environment(ctx=context)
    assert found is not None
    named = [worker_name() if word == NAME else word for word in added or []]
    assert sys.argv == words + named
    assert found.env.get("VDM_PROJECT") == (None if added is None else str(tmp_path))
    python = shutil.which("python3", path=found.env.get("PATH", ""))
    assert python == (None if added is None else str(Path(sys.executable).with_name("python3")))
    layout.DEPLOYMENTS.unlink()
    elsewhere = setup_environment(ctx=context)
    assert elsewhere is not None
    assert elsewhere.env == {"PREFECT_API_URL": "http://team/api"}


def test_the_plugin_leaves_other_programs_and_other_servers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    context = HookContext("3", "http://team/api", lambda _: None)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(sys, "argv", ["/bin/prefect", "deployment", "ls"])
    found = setup_environment(ctx=context)
    assert found is not None
    assert found.env == {"PREFECT_API_URL": "http://team/api"}
    monkeypatch.setattr(sys, "orig_argv", ["python", "/bin/pytest"])
    monkeypatch.setattr(sys, "argv", ["/bin/pytest", "deployment", "run", "train-vdm"])
    assert setup_environment(ctx=context) is None
