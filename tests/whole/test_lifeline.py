"""Processes end when the process that waits for their result is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plant import is_alive, wait_until
from project import ROOT, session

from flows.process.lifeline import HOLDER

# What starts the watch, as a command does; the process then prints a line and would live for a minute.
WATCH = "from flows.process import lifeline; lifeline.LOOK_SECONDS = 0.1; lifeline.end_with_starters()"
WORK = f"{WATCH}; import time; print('works', flush=True); time.sleep(60)"
Started = list[subprocess.Popen[str]]


@pytest.fixture
def started() -> Iterator[Started]:
    """Return a list of processes that are killed, with all their descendants, after the test."""
    processes: Started = []
    yield processes
    for process in processes:
        for member in session(process.pid):
            member.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def start(started: Started, *command: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    started.append(process)
    return process


def says(process: subprocess.Popen[str], text: str) -> bool:
    assert process.stdout
    return process.stdout.readline() == f"{text}\n"


def starter(child: str, *, variable: str = "DVC_STAGE", shell: str | None = None) -> str:
    """Return a program that starts Python code as DVC starts a stage: with a variable, directly or by a shell."""
    command = [sys.executable, "-c", child]
    if shell:
        command = [shell, "-c", f"{sys.executable} -c '{child.replace(chr(39), chr(34))}'; exit $?"]
    return f"import os, subprocess; subprocess.run({command}, env=os.environ | {{{variable!r}: 'x'}})"


@pytest.mark.parametrize(
    ("variable", "shell"),
    [("DVC_STAGE", "/bin/sh"), ("DVC_STAGE", "/bin/bash"), ("TORCHELASTIC_RUN_ID", None)],
)
def test_a_process_ends_with_the_one_that_set_the_variable(variable: str, shell: str | None, started: Started) -> None:
    process = start(started, sys.executable, "-c", starter(WORK, variable=variable, shell=shell))
    assert says(process, "works")
    process.kill()
    process.wait()
    wait_until(lambda: not session(process.pid), 30)


def test_a_starter_that_died_before_anybody_looked_is_noticed(started: Started) -> None:
    wait = "while os.getppid() == parent: time.sleep(0.01)"
    late = f"import os, time; parent = os.getppid(); print('starts', flush=True)\n{wait}\n{WORK}"
    process = start(started, sys.executable, "-c", starter(late))
    assert says(process, "starts")
    process.kill()
    process.wait()
    wait_until(lambda: not session(process.pid), 30)


def test_a_holder_that_is_a_zombie_or_gone_has_ended(started: Started) -> None:
    """psutil's `is_running` is true for a zombie."""
    holder = start(started, "sleep", "60")
    process = start(started, sys.executable, "-c", WORK, **{HOLDER: str(holder.pid)})
    assert says(process, "works")
    holder.kill()  # and nobody waits for it
    assert process.wait(30) == -signal.SIGTERM
    holder.wait()
    assert start(started, sys.executable, "-c", WORK, **{HOLDER: str(holder.pid)}).wait(30) == -signal.SIGTERM


def test_what_a_person_started_outlives_the_shell(started: Started, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.touch()
    wait = f"until grep -q works {out}; do sleep 0.05; done"
    shell = start(started, "/bin/sh", "-c", f'nohup {sys.executable} -c "{WORK}" > {out} 2>&1 & echo $!; {wait}')
    assert shell.stdout
    worker = int(shell.stdout.readline())
    assert shell.wait(60) == 0
    time.sleep(0.5)
    assert is_alive(worker)


HEEDLESS = f"""
import signal, time
from flows.process import lifeline
lifeline.KILL_SECONDS = 1.0
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
{WATCH}
print("works", flush=True)
while True:
    time.sleep(0.1)
"""


def test_the_signal_comes_once_and_who_does_not_heed_it_is_killed(started: Started) -> None:
    holder = start(started, "sleep", "60")
    process = start(started, sys.executable, "-c", HEEDLESS, **{HOLDER: str(holder.pid)})
    assert says(process, "works")
    holder.kill()
    holder.wait()
    assert process.stdout
    assert process.stdout.read() == "heard\n"
    assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize(("name", "code"), [("python", 0), ("another", -signal.SIGTERM)])
def test_an_adopted_process_ends(name: str, code: int, started: Started) -> None:
    ask = f"import time; from flows.process.lifeline import end_with_parent; end_with_parent({name!r}); time.sleep(0.5)"
    assert start(started, sys.executable, "-c", ask).wait(60) == code
