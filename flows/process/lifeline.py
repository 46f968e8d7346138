"""End a process of the project when a process that waits for its result has ended.

A process that is killed does not stop its children, which would continue to use their device.  So commands, the flow
and the processes of a training watch who started them and waits for them: DVC, which sets DVC_STAGE, torchrun, which
sets TORCHELASTIC_RUN_ID, or a process of the project that called `hold_what_starts`.  A command that a person starts,
also with nohup, watches no process.
"""

import os
import signal
import time
from contextlib import suppress
from threading import Thread

import psutil

HOLDER = "VDM_LIFELINE"
STARTERS = ("DVC_STAGE", "TORCHELASTIC_RUN_ID")
# A process that still runs this long after SIGTERM hangs, for example in a device driver.
KILL_SECONDS = 120.0
LOOK_SECONDS = 1.0

watched: list[psutil.Process | None] = []
"""The processes with which this one ends.  None is one that had ended before it could be found."""


def hold_what_starts() -> None:
    """Make every process of the project that this one starts from now on end when this one ends."""
    os.environ[HOLDER] = str(os.getpid())


def end_with_starters() -> None:
    """End this process when a process that waits for its result ends, or now if one has already ended."""
    found: list[psutil.Process | None] = []
    if HOLDER in os.environ:
        found.append(process_of(int(os.environ[HOLDER])))
    for variable in STARTERS:
        if variable in os.environ:
            found += starters(variable)
    watch(found)


def end_with_parent(name: str) -> None:
    """End this process when its parent ends, or now if the parent has ended and another process has adopted this one.

    `name` is a part of the command line of the parent.
    """
    parent = process_of(os.getppid())
    words: list[str] = []
    if parent:
        with suppress(psutil.Error):
            words = parent.cmdline()
    watch([parent if any(name in word for word in words) else None])


def process_of(pid: int) -> psutil.Process | None:
    """Return the process, or None if it has ended."""
    with suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def starters(variable: str) -> list[psutil.Process | None]:
    """Return the ancestors, nearest first, up to the one that set the variable.  Some may be shells.

    Ends with None if that one has ended, so that the last is the process that adopts orphans.
    """
    found: list[psutil.Process] = []
    for process in psutil.Process().parents():
        found.append(process)
        with suppress(psutil.Error):
            if variable in process.environ():
                continue
        break
    # A child is in its parent's process group, or in a new one whose leader is the child or a shell between them.
    group, pids = os.getpgrp(), [process.pid for process in found]
    with suppress(ProcessLookupError, IndexError):
        if group in (os.getpid(), *pids) or os.getpgid(pids[-1]) == group:
            return [*found]
    return [*found, None]


def watch(processes: list[psutil.Process | None]) -> None:
    """Watch the processes too, in one thread: when one ends, this process gets SIGTERM, and SIGKILL later."""
    starts = bool(processes) and not watched
    watched.extend(processes)
    if starts:
        Thread(target=wait, daemon=True, name="lifeline").start()


def wait() -> None:
    """Wait until a watched process has ended, then end this one."""
    while all(map(runs, watched)):
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # once: a second one might stop this process before it has saved
    time.sleep(KILL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def runs(process: psutil.Process | None) -> bool:
    """Whether the process still runs: it is neither gone nor a zombie, and its number is not that of another one."""
    with suppress(psutil.Error):
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
