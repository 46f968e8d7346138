"""Measure the retraining loop on this machine: python -m benchmarks.loop

Starts `vdmctl serve` in a clone of the commit that is checked out, with the parameters of the digits, and prints

  serve_s          from the command to "serving at"
  idle_mib         memory of server, worker and `vdmctl serve` together, each shared page counted once (PSS)
  status_s         `vdmctl status` with the server; status_without_s: without it
  repro_step_s     from `dvc repro features train` to the first line of the training log, in an equal clone
  run_step_s       the same from `prefect deployment run train-vdm`; added_s, the difference, is what the loop adds
  nothing_s        from `prefect deployment run train-vdm` to the end of a run that has nothing to do

Nothing else should run on the machine.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.aged import ROOT, commit_all, free_port
from benchmarks.machine import show
from benchmarks.options import new_parser, own_environment
from flows.process.environment import settle

STEPS = re.compile("^  steps: 2600.*$", re.MULTILINE)
FIRST_STEP = re.compile(r"step \d+: ")
RUN_END = re.compile("Flow run '.*' - Finished in state Completed")
SECONDS = 300.0


def main() -> None:
    arguments = new_parser(__doc__).parse_args()
    settle(os.environ)  # hooks of git lead to their repository
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        figures = {"repro_step_s": by_dvc(clone(home / "dvc"), home), **by_prefect(home)}
    figures["added_s"] = figures["run_step_s"] - figures["repro_step_s"]
    show({name: round(value, 2) for name, value in figures.items()}, as_json=arguments.json)


def clone(folder: Path) -> Path:
    """Clone the repository without results, with a training of 100 steps; return the folder."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = folder / "params.yaml"
    text, count = STEPS.subn("  steps: 100", params.read_text())
    assert count == 1
    params.write_text(text)
    (folder / "dvc.lock").unlink()
    commit_all(folder)
    return folder


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a user whose settings and locks are in `home`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return own_environment(PATH=path, PREFECT_HOME=str(home / "prefect"), VDM_LOCK_DIR=str(home / "locks"))


def by_dvc(folder: Path, home: Path) -> float:
    """Return the seconds from `dvc repro features train` to its first step; stop it there."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "features", "train"],
        cwd=folder,
        env=environment(home),
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        for line in process.stdout or ():
            if FIRST_STEP.search(line):
                seconds = time.perf_counter() - begin
                break
        else:
            raise RuntimeError("`dvc repro features train` ended before its first step")
        os.killpg(process.pid, signal.SIGINT)
        process.communicate()
    return seconds


def by_prefect(home: Path) -> dict[str, Any]:
    """Return the figures of the loop."""
    folder, found = clone(home / "loop"), {}
    found["status_without_s"] = timed(lambda: vdmctl(folder, home, "status"))
    begin = time.perf_counter()
    with serving(folder, home, free_port()) as (process, log):
        wait_until(lambda: "serving at" in log.read_text())
        found["serve_s"] = time.perf_counter() - begin
        time.sleep(10)
        found["idle_mib"] = memory(process.pid)
        found["status_s"] = min(timed(lambda: vdmctl(folder, home, "status")) for _ in range(3))
        found["run_step_s"] = timed(lambda: run(folder, home, lambda: bool(FIRST_STEP.search(log.read_text()))))
        wait_until(lambda: bool(RUN_END.search(log.read_text())))
        time.sleep(2)  # a run that starts while the other's process still ends is cancelled
        found["nothing_s"] = timed(lambda: run(folder, home, lambda: "nothing to do" in log.read_text()))
    return found


@contextmanager
def serving(folder: Path, home: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run `vdmctl serve`; yield its process and its log."""
    log = home / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]
        process = subprocess.Popen(command, cwd=folder, env=environment(home), stdout=output, stderr=output)
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def run(folder: Path, home: Path, is_reached: Callable[[], bool]) -> None:
    """Start a run as a user does, and wait until the log says that it has reached something."""
    prefect = str(Path(sys.executable).with_name("prefect"))
    command = [prefect, "deployment", "run", "train-vdm"]
    subprocess.run(command, cwd=folder, env=environment(home), check=True, stdout=subprocess.DEVNULL)
    wait_until(is_reached)


def vdmctl(folder: Path, home: Path, *arguments: str) -> None:
    """Run a command of vdmctl, whatever its exit code."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    subprocess.run(command, cwd=folder, env=environment(home), capture_output=True)


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds.  Raises TimeoutError."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the loop has not answered in time")
        time.sleep(0.05)


def memory(pid: int) -> float:
    """Return the memory in MiB of a process and those below it, each shared page counted once."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(each.memory_full_info().pss for each in family) / 2**20  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
