"""How real commands end: signals at many moments, closed pipes, full devices, bad arguments."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import typer
from project import ROOT, imports_torch, run_vdmctl
from small import Small

from flows import cli
from flows.commands.vdmctl import app
from flows.core.errors import Exit, UserError
from flows.images import fetching
from flows.images.fetching import fetch_file
from flows.process.environment import settle
from flows.process.streams import Stream

STOPPED = "vdmctl: stopped; run again\n"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# The arguments that a command needs to start working.
ARGUMENTS = {
    "compare": ["models/vdm", "models/vdm"],
    "lineage": ["champion"],
    "verify": ["champion"],
    "preset": ["digits"],
    "compress": ["data/images", "--out", "images.vdmz"],
    "decompress": ["images.vdmz", "--out", "out"],
    "import-checkpoint": ["nowhere", "--format", "addtt", "--out", "out"],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))


def catches_sigterm(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM, which it has not while Python itself starts."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def stopped(process: subprocess.Popen[str], number: signal.Signals, marker: Callable[[], bool]) -> tuple[int, str]:
    """Send the signal as soon as the marker appears; return the exit code and stderr.

    A process that ends before that gets no signal.
    """
    while process.poll() is None and not marker():
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def test_every_command_is_stopped_from_its_first_moment(small: Small) -> None:
    """All signals have one handler, which is set before the command is known; so the commands take turns."""
    for place, name in enumerate(COMMANDS):
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[place % 3]
        for attempt in range(5):
            process = small.start(name, *ARGUMENTS.get(name, []))
            # One moment each, over the imports of the quickest command, which ends by itself after 0.2 seconds; sooner
            # in each attempt.
            begun = time.monotonic() + 0.1 * place / len(COMMANDS) / 2**attempt

            def marker(process: subprocess.Popen[str] = process, begun: float = begun) -> bool:
                return catches_sigterm(process.pid) and time.monotonic() > begun

            result = stopped(process, number, marker)
            if result[0] == Exit.RESUMABLE:  # on a busy machine a command may end before the signal arrives
                break
        assert result == (Exit.RESUMABLE, STOPPED), name


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        ("sample", "torch"),
        ("evaluate", "images"),
        ("compress data/images --out images.vdmz", "unfinished file"),
        ("register", "models/.vdm.partial"),
        ("report --out reports/report.html", "reports/.pictures.partial"),
    ],
)
def test_a_command_that_is_stopped_leaves_the_old_outputs_and_nothing_else(
    command: str, moment: str, small: Small
) -> None:
    small.edit(times_per_image=100_000)
    try:
        for _ in range(20):
            before = small.outputs()
            result = stopped_at(moment, command, small)
            if result[0] != Exit.DONE:  # on a busy machine a command may end before the signal arrives
                break
        assert result == (75, STOPPED)
        assert small.outputs() == before
    finally:
        small.edit(times_per_image=2)


def stopped_at(moment: str, command: str, small: Small) -> tuple[int, str]:
    process = small.start(*command.split())
    markers = {
        "unfinished file": lambda: any(small.folder.glob(f".images.vdmz.vdm-*-{process.pid}")),
        "torch": lambda: imports_torch(process.pid),
        "images": lambda: "images/test.npy" in Path(f"/proc/{process.pid}/maps").read_text(),
    }
    number = signal.SIGINT if moment == "torch" else signal.SIGTERM
    return stopped(process, number, markers.get(moment, lambda: (small.folder / moment).exists()))


# The signal comes before each file or folder is moved to its place.
AT_RENAME = """
import os, signal
from pathlib import Path
from flows import cli
def interrupted(original):
    def call(self, target):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, target)
    return call
Path.replace, Path.rename = interrupted(Path.replace), interrupted(Path.rename)
cli.main()
"""


@pytest.mark.parametrize(
    ("command", "outputs"),
    [
        ("evaluate", {f"reports/evaluation/{name}" for name in ("metrics.json", "per_image.csv", "noise_levels.csv")}),
        ("preset digits --force", {"params.yaml"}),
        ("report --out page.html --force", {"page.html"}),
    ],
)
def test_a_signal_while_the_outputs_take_their_places_comes_too_late(
    command: str, outputs: set[str], small: Small
) -> None:
    small.edit(seed=1)
    before = small.outputs()
    result = small.run([sys.executable, "-c", AT_RENAME, *command.split()])
    assert (result.returncode, "stopped" in result.stderr) == (0, False)
    after = small.outputs()
    assert outputs <= {name for name in after if before.get(name) != after[name]}
    small.reset()


def test_an_interrupt_that_a_library_raises_is_a_stop_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(error: BaseException) -> None:
        def call(arguments: list[str]) -> None:
            raise error

        monkeypatch.setattr(cli, "call", call)

    raises(KeyboardInterrupt())
    assert cli.run([]) == Exit.RESUMABLE
    assert capsys.readouterr().err == STOPPED
    raises(EOFError("a bug"))
    with pytest.raises(EOFError):
        cli.run([])


@pytest.mark.parametrize(
    ("shell", "code", "errors"),
    [
        ("{report} | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{vdmctl} --help | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{report} >&-", 0, ""),
        ("{report} <&- >&- 2>&-", 0, ""),
        ("{report} >/dev/full", 5, "vdmctl: standard output: No space left on device; nothing else failed\n"),
        ("{vdmctl} --help >/dev/full", 5, "vdmctl: standard output: No space left on device; nothing else failed\n"),
        (
            "{vdmctl} preset digits --force >/dev/full",
            *(5, "vdmctl: standard output: No space left on device; nothing else failed\n"),
        ),
        ("{vdmctl} preset nonsense >/dev/full", 2, "vdmctl: no preset 'nonsense': "),
        ("{vdmctl} preset nonsense 2>&-", 2, ""),
        ("{vdmctl} preset nonsense 2>/dev/full", 2, ""),
        ("{vdmctl} preset nonsense 2> >(true)", 2, ""),
        ("{vdmctl} preset digits --force >&- 2>&-", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(shell: str, code: int, errors: str, small: Small) -> None:
    vdmctl = f"{sys.executable} -m flows.cli"
    result = small.run(["bash", "-c", shell.format(vdmctl=vdmctl, report=f"{vdmctl} report")])
    found = re.sub("the outputs are not compared with those of a commit: dvc.lock is missing; .*\n", "", result.stderr)
    assert (found != result.stderr) == ("{report}" in shell and "2>&-" not in shell)
    assert (result.returncode, found[: len(errors) or None]) == (code, errors)
    assert len(found.splitlines()) <= 1
    small.reset()


def test_no_file_gets_the_number_of_a_closed_stream(small: Small) -> None:
    """If file descriptors 1 and 2 stayed closed, the next files that are opened would get what libraries print."""
    opened = "import os; os.write(2, b'x'); f = open('new', 'w')"
    program = f"from flows.process.streams import open_streams; open_streams(); {opened}"
    result = small.run(["bash", "-c", f'{sys.executable} -c "{program}; print(f.fileno() > 2, file=f)" <&- >&- 2>&-'])
    assert result.returncode == 0
    assert (small.folder / "new").read_text() == "True\n"
    (small.folder / "new").unlink()


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (["promote", ""], 2),
        (["evaluate", " \t", "--seed", "1"], 2),
        (["evaluate", "--out="], 2),
        (["sample", "x", "--film", ""], 4),
        (["import-checkpoint", "x", "--image-size", "8", ""], 5),
        (["compare", "x", "--", "\n"], 4),
        ([""], 1),
    ],
)
def test_no_command_takes_an_empty_argument(
    arguments: list[str], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"vdmctl: argument {number} of `vdmctl ")
    assert captured.err.endswith(" is empty, perhaps from a variable that is not set\n")
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command; see `vdmctl --help`"),
        (["evaluat"], "No such command 'evaluat'. Did you mean 'evaluate'"),
        (["evaluate", "--nope"], "No such option: --nope; see `vdmctl evaluate --help`"),
        (["models", "extra"], "Got unexpected extra argument(s) (extra); see `vdmctl models --help`"),
        (["lineage"], "Missing argument 'model'; see `vdmctl lineage --help`"),
        (["sample", "x", "--film"], "Option '--film' requires an argument; see `vdmctl sample --help`"),
        (["evaluate", "--seed", "ten"], "Invalid value for '--seed': "),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"vdmctl: {message}")
    assert len(captured.err.splitlines()) == 1


FULL_CARD = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of")
LIMITED = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL_CARD, "CUDA out of memory"),
        # As under `ulimit -v`.
        (
            RuntimeError(f"{LIMITED} allocate 8192 bytes. Error code 12 (Cannot allocate memory)"),
            "can't allocate memory: you tried to allocate 8192 bytes",
        ),
        (MemoryError("Unable to allocate 8.00 GiB for an array"), "Unable to allocate 8.00 GiB for an array"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_too_little_memory_is_one_line(
    error: MemoryError | RuntimeError, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "call", Mock(side_effect=error))
    assert cli.run(["evaluate", "models/vdm"]) == Exit.USAGE
    line = f"vdmctl: {reason}; lower the batch size of this stage, or free memory, and run again\n"
    assert capsys.readouterr().err == line


def test_the_exit_codes_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == Exit.DONE
    for text in (capsys.readouterr().out, (ROOT / "README.md").read_text()):
        codes = " ".join(text.partition("Exit codes:")[2].split())[:900]
        assert [code for code in Exit if f" {code.value} " not in f" {codes}"] == []
        assert "75 stopped (Ctrl-C, SIGTERM, a closed terminal)" in codes


def test_a_reason_that_cannot_be_written_changes_no_exit_code(small: Small) -> None:
    environment = {"VDM_REASON": "/dev/full/reason"}
    result = small.run([sys.executable, "-m", "flows.cli", "preset", "nonsense"], **environment)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("network", [True, False])
def test_the_reason_says_whether_the_network_failed(
    network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow tries only those tasks again."""

    def call(arguments: list[str]) -> None:
        if network:
            fetch_file(["http://127.0.0.1:9/a.gz"], tmp_path / "a.gz")
        raise UserError("no such file", Exit.MISSING)

    monkeypatch.setattr(fetching, "PAUSES", ())
    monkeypatch.setattr(cli, "call", call)
    monkeypatch.setenv("VDM_REASON", str(tmp_path / "reason"))
    assert cli.run(["download"]) == Exit.MISSING
    assert json.loads((tmp_path / "reason").read_text())["network"] == network


@pytest.mark.parametrize(
    ("chosen", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_idle_threads_leave_the_cores_to_others_unless_the_user_chose(
    chosen: dict[str, str], spins: str | None
) -> None:
    environment = dict(chosen)
    settle(environment)
    assert environment.get("GOMP_SPINCOUNT") == spins


@pytest.mark.processes
@pytest.mark.parametrize("binding", [{"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "cores"}, {"GOMP_CPU_AFFINITY": "0-99"}])
def test_a_program_keeps_all_cores_where_variables_bind_threads_to_cores(binding: dict[str, str]) -> None:
    """Otherwise torch would take one core of a machine, and the processes of a training would share that one."""
    program = """
import os
from flows.process.environment import settle
settle(os.environ)
before = os.sched_getaffinity(0)
import torch
print(os.sched_getaffinity(0) == before)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | binding
    assert subprocess.check_output([sys.executable, "-c", program], env=environment, text=True) == "True\n"


def test_a_user_without_a_name_has_a_number_and_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of its host; DVC would fail with a KeyError or a RuntimeError."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))
    environment: dict[str, str] = {}
    settle(environment)
    assert environment["LOGNAME"] == str(os.getuid())
    assert environment["HOME"] == "/"


# The signal comes when the old folder is removed, or the file has its place.
AT_THE_END = """
import json, os, signal, sys
import flows.sampling.request
from flows import cli
from flows.core import folders
from pathlib import Path
remove, replace = folders.remove, Path.replace
def removed(folder):
    if (folder / "0.png").exists():
        os.kill(os.getpid(), signal.SIGTERM)
    remove(folder)
def replaced(self, target):
    found = replace(self, target)
    if Path(target).name in ("a.npy", "a.png"):
        os.kill(os.getpid(), signal.SIGTERM)
    return found
folders.remove, Path.replace = removed, replaced
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    if not (child := os.fork()):
        cli.main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_images_and_their_film_are_replaced_together(small: Small) -> None:
    films = {"pictures": "film-1.png", "a.npy": "film-2.png", "a.png": "film-3.png"}

    def commands(seed: int) -> list[list[str]]:
        settings = ["-n", "1", "--steps", "2", "--seed", str(seed), "--force"]
        return [["sample", "models/vdm", *settings, "--out", out, "--film", film] for out, film in films.items()]

    for command in commands(1):
        assert run_vdmctl(small.folder, small.environment, *command).returncode == 0
    before = [(small.folder / film).read_bytes() for film in films.values()]
    result = small.run([sys.executable, "-c", AT_THE_END, json.dumps(commands(2))])
    codes = [line for line in result.stdout.splitlines() if line.lstrip("-").isdecimal()]
    assert (codes, "stopped" in result.stderr) == (["0"] * 3, False), result.stderr
    assert all((small.folder / film).read_bytes() != old for film, old in zip(films.values(), before, strict=True))


def test_no_file_of_a_child_gets_the_number_of_a_closed_stream(small: Small) -> None:
    child = "f = open('new', 'w'); print(f.fileno() > 2, file=f)"
    call = f'subprocess.run([sys.executable, \\"-c\\", \\"{child}\\"], check=True)'
    program = f"import subprocess, sys; from flows.process.streams import open_streams; open_streams(); {call}"
    result = small.run(["bash", "-c", f'{sys.executable} -c "{program}" <&- >&- 2>&-'])
    assert result.returncode == 0
    assert (small.folder / "new").read_text() == "True\n"
    (small.folder / "new").unlink()


def test_a_full_stream_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    found: list[bytes] = []

    def read() -> None:
        while select.select([], [writing], [], 0)[1]:  # until the pipe is full
            time.sleep(0.01)
        with os.fdopen(reading, "rb") as file:
            found.append(file.read())

    reader = threading.Thread(target=read, daemon=True)  # else a failure would hang the tests
    reader.start()
    try:
        with io.BufferedWriter(Stream(writing, "standard error", required=False)) as stream:
            stream.write(b"x" * 1_000_000)
    finally:
        os.close(writing)
    reader.join(60)
    assert found == [b"x" * 1_000_000]


@pytest.mark.parametrize("arguments", [["sample", "m", "--out", "-"], ["sample", "m", "--out=-"], ["validate", "-"]])
def test_no_command_takes_a_dash_for_a_stream(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == Exit.USAGE
    assert capsys.readouterr().err.endswith("no command reads or writes streams; name a file, or ./-\n")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == Exit.DONE
    assert capsys.readouterr().out.startswith("vdmctl ")
