"""Processes end when the process that waits for their result is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from plant import is_alive, wait_until
from project import ROOT, session

from flows.core.errors import Exit, UserError
from flows.process import groups
from flows.process.groups import running
from flows.process.kept import Kept
from flows.process.lifeline import HOLDER

# Importing flows starts the watch; the process then prints a line and would live for a minute.
WORK = "import flows, time; print('works', flush=True); time.sleep(60)"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Return a list of processes that are killed, with all their descendants, after the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        for member in session(process.pid):
            member.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def start(started: list[subprocess.Popen[str]], *command: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    started.append(process)
    return process


def starter(child: str, *, variable: str = "DVC_STAGE", shell: str | None = None) -> str:
    """Return a program that starts Python code as DVC starts a stage: with a variable, directly or by a shell."""
    command = [sys.executable, "-c", child]
    if shell:
        command = [shell, "-c", f"{sys.executable} -c '{child.replace(chr(39), chr(34))}'; exit $?"]
    return f"import os, subprocess; subprocess.run({command}, env=os.environ | {{{variable!r}: 'x'}})"


@pytest.mark.parametrize("shell", [None, "/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("variable", ["DVC_STAGE", "TORCHELASTIC_RUN_ID"])
def test_a_process_ends_with_the_one_that_set_the_variable(
    variable: str, shell: str | None, started: list[subprocess.Popen[str]]
) -> None:
    process = start(started, sys.executable, "-c", starter(WORK, variable=variable, shell=shell))
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    process.kill()
    process.wait()
    wait_until(lambda: not session(process.pid), 30)


def test_a_starter_that_died_before_anybody_looked_is_noticed(started: list[subprocess.Popen[str]]) -> None:
    wait = "while os.getppid() == parent: time.sleep(0.01)"
    late = f"import os, time; parent = os.getppid(); print('starts', flush=True)\n{wait}\n{WORK}"
    process = start(started, sys.executable, "-c", starter(late))
    assert process.stdout is not None
    assert process.stdout.readline() == "starts\n"
    process.kill()
    process.wait()
    wait_until(lambda: not session(process.pid), 30)
    assert process.stdout.read() == ""


@pytest.mark.parametrize("holder", [f"{os.getpid()}:1", "4194305:77"], ids=["another process", "nobody"])
def test_a_holder_that_is_gone_is_noticed(holder: str, started: list[subprocess.Popen[str]]) -> None:
    process = start(started, sys.executable, "-c", WORK, **{HOLDER: holder})
    assert process.wait(30) == -signal.SIGTERM


def test_a_system_without_pidfd_is_watched_too(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, sys.executable, "-c", starter(f"import os; del os.pidfd_open; {WORK}"))
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    process.kill()
    process.wait()
    wait_until(lambda: not session(process.pid), 30)


def test_what_a_person_started_outlives_the_shell(started: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    """The shell ends after the command has looked for the processes that started it."""
    out = tmp_path / "out"
    out.touch()
    wait = f"until grep -q works {out}; do sleep 0.05; done"
    shell = start(started, "/bin/sh", "-c", f'nohup {sys.executable} -c "{WORK}" > {out} 2>&1 & echo $!; {wait}')
    assert shell.stdout is not None
    worker = int(shell.stdout.readline())
    assert shell.wait(60) == 0
    time.sleep(0.5)
    assert is_alive(worker)


HEEDLESS = """
import signal, sys, time
from flows.process import lifeline

lifeline.KILL_SECONDS = 1.0
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
for pid in sys.argv[1:]:
    lifeline.end_with(int(pid))
print("works", flush=True)
while True:
    time.sleep(0.1)
"""


def test_the_signal_comes_once_and_who_does_not_heed_it_is_killed(started: list[subprocess.Popen[str]]) -> None:
    watched = [start(started, "sleep", "60") for _ in range(2)]
    process = start(started, sys.executable, "-c", HEEDLESS, *(str(each.pid) for each in watched))
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    for each in watched:
        each.kill()
        each.wait()
    assert process.stdout.read() == "heard\n"
    assert process.wait(30) == -signal.SIGKILL


def test_a_process_that_is_gone_already_ends_the_one_that_asks(started: list[subprocess.Popen[str]]) -> None:
    gone = start(started, "true")
    gone.wait()
    process = start(started, sys.executable, "-c", HEEDLESS, str(gone.pid))
    assert process.wait(30) == -signal.SIGKILL


def test_a_command_that_saves_is_not_killed_before_it_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "STOP_SECONDS", 0.2)
    saving = "sleep 1; touch saved; exit 0"
    with running(
        ["sh", "-c", f"trap '{saving}' INT TERM; echo works; while :; do sleep 0.1; done"], tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        monkeypatch.setattr(process, "wait", lambda: None)  # as an exception would leave the block
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(("name", "code"), [("python", 0), ("another", -signal.SIGTERM)])
def test_an_adopted_process_ends(name: str, code: int, started: list[subprocess.Popen[str]]) -> None:
    ask = f"from flows.process.lifeline import end_with_parent; end_with_parent({name!r})"
    assert start(started, sys.executable, "-c", ask).wait(60) == code


def test_a_command_runs_without_a_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    with running(["sh", "-c", "command -v python; command -v ls"], tmp_path) as process:
        found = process.communicate()[0].split()
    assert found[0] == str(Path(sys.executable).with_name("python"))
    assert len(found) == 2


def test_a_process_that_dies_again_at_once_is_not_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        one = Kept(stack, "the server", ["true"], when_orphaned=signal.SIGKILL)
        one.process.wait()
        one.revive()
        one.process.wait()
        with pytest.raises(UserError, match="`the server` ended; see its output above") as raised:
            one.revive()
    assert raised.value.code is Exit.BUG
    assert capsys.readouterr().err == "`the server` ended; starting it again\n"
