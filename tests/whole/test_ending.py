"""How real commands end: by a signal, a closed pipe, a full device, too little memory, wrong arguments."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from project import ROOT, imports_torch
from small import Small

from flows import cli
from flows.core.errors import Exit, NetworkError, UserError
from flows.process.groups import settle

STOPPED = "vdmctl: stopped; run again\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))


def reads_images(pid: int) -> bool:
    return "images/test.npy" in Path(f"/proc/{pid}/maps").read_text()


def stopped(process: subprocess.Popen[str], number: signal.Signals, marker: Callable[[], bool]) -> tuple[int, str]:
    """Send the signal as soon as the marker appears; return the exit code and stderr."""
    while process.poll() is None and not marker():
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def test_a_command_that_is_stopped_while_it_imports_says_so(small: Small) -> None:
    before = small.outputs()
    process = small.start("sample")
    assert stopped(process, signal.SIGINT, lambda: imports_torch(process.pid)) == (Exit.RESUMABLE, STOPPED)
    assert small.outputs() == before


@pytest.mark.parametrize(("command", "number"), [("evaluate", signal.SIGTERM), ("validate", signal.SIGHUP)])
def test_a_stage_that_is_stopped_leaves_the_old_outputs(command: str, number: signal.Signals, small: Small) -> None:
    small.edit(times_per_image=100_000)
    before = small.outputs()
    process = small.start(command)
    assert stopped(process, number, lambda: reads_images(process.pid)) == (Exit.RESUMABLE, STOPPED)
    assert small.outputs() == before
    small.edit(times_per_image=2)


# The signal comes before the first file is moved to its place.
AT_RENAME = """
import os, signal
from pathlib import Path
from flows import cli
def replace(self, target):
    os.kill(os.getpid(), signal.SIGTERM)
Path.replace = replace
cli.main()
"""


def test_a_signal_as_the_outputs_take_their_places_leaves_whole_files(small: Small) -> None:
    before = small.outputs()
    result = small.run([sys.executable, "-c", AT_RENAME, "evaluate"])
    assert (result.returncode, result.stderr) == (Exit.RESUMABLE, STOPPED)
    assert small.outputs() == before


@pytest.mark.parametrize(
    ("shell", "code", "errors"),
    [
        ("{vdmctl} --help | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{vdmctl} --help >/dev/full", 5, "vdmctl: No space left on device\n"),
        ("{vdmctl} preset nonsense 2>/dev/full", 2, ""),
    ],
)
def test_a_closed_pipe_is_no_error_and_a_full_device_is_one(shell: str, code: int, errors: str, small: Small) -> None:
    result = small.run(["bash", "-c", shell.format(vdmctl=f"{sys.executable} -m flows.cli")])
    assert (result.returncode, result.stderr[: len(errors) or None]) == (code, errors)
    assert len(result.stderr.splitlines()) <= 1


def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "Missing command; see `vdmctl --help`"),
        (["evaluat"], "No such command 'evaluat'. Did you mean 'evaluate'"),
        (["evaluate", "--nope"], "No such option: --nope; see `vdmctl evaluate --help`"),
        (["evaluate", "--seed", "ten"], "Invalid value for '--seed': "),
    ):
        assert cli.run(arguments) == Exit.USAGE
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"vdmctl: {message}")
        assert len(captured.err.splitlines()) == 1


FULL_CARD = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of")
LIMITED = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
LOWER = "; lower the batch size of this stage, or free memory, and run again"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FULL_CARD, Exit.USAGE, f"CUDA out of memory{LOWER}"),
        (RuntimeError(f"{LIMITED} use 8 bytes. Error 12"), Exit.USAGE, "can't allocate memory: you tried to use 8 b"),
        (MemoryError(), Exit.USAGE, f"not enough memory{LOWER}"),
        (OSError(28, "No space left on device", "a\nb"), Exit.MISSING, r"a\u000ab: No space left on device"),
        (KeyboardInterrupt(), Exit.RESUMABLE, "stopped; run again"),
        (UserError("two\nlines", Exit.BUSY), Exit.BUSY, "two lines"),
    ],
)
def test_an_error_that_is_no_bug_is_one_line(
    error: BaseException, code: Exit, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "call", Mock(side_effect=error))
    assert cli.run(["evaluate", "models/vdm"]) == code
    line = capsys.readouterr().err
    assert line.startswith(f"vdmctl: {message}")
    assert line.count("\n") == 1


def test_a_bug_keeps_its_traceback(small: Small) -> None:
    bug = "from flows import cli; cli.call = lambda arguments: {}['bug']; cli.main()"
    result = small.run([sys.executable, "-c", bug])
    assert result.returncode == Exit.BUG
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("KeyError: 'bug'\n")


def test_the_exit_codes_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == Exit.DONE
    for text in (capsys.readouterr().out, (ROOT / "docs/reliability.md").read_text()):
        codes = " ".join(text.partition("Exit codes:")[2].split())[:900]
        assert [code for code in Exit if f" {code.value} " not in f" {codes}"] == []
        assert "75 stopped (Ctrl-C, SIGTERM, a closed terminal)" in codes


def test_the_reason_says_whether_the_network_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow tries only those tasks again."""
    monkeypatch.setenv("VDM_REASON", str(tmp_path / "reason"))
    for error, network in ((NetworkError("no answer"), True), (UserError("no such file", Exit.MISSING), False)):
        monkeypatch.setattr(cli, "call", Mock(side_effect=error))
        assert cli.run(["download"]) == Exit.MISSING
        reason = json.loads((tmp_path / "reason").read_text())
        assert reason == {"message": str(error), "code": Exit.MISSING, "network": network}


def test_idle_threads_leave_the_cores_unless_the_user_chose() -> None:
    code = "import flows, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    rest = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for chosen, spins in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")):
        assert subprocess.check_output([sys.executable, "-c", code], env=rest | chosen, text=True).strip() == spins


def test_a_hook_s_repository_and_one_core_for_all_are_forgotten() -> None:
    environment = {"GIT_DIR": "/elsewhere/.git", "OMP_PROC_BIND": "true"}
    settle(environment)
    assert not environment.keys() & {"GIT_DIR", "OMP_PROC_BIND"}


def test_a_user_without_a_name_has_a_number_and_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of its host; DVC would fail with a KeyError or a RuntimeError."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))
    environment: dict[str, str] = {}
    settle(environment)
    assert environment["LOGNAME"] == str(os.getuid())
    assert environment["HOME"] == "/"
