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
# How long the process of a run, whose commands have ended, may take to report its end to a server that may be gone.
REPORT_SECONDS = 10.0

Watched = list[psutil.Process | None]
"""Processes to watch.  None is one that had ended before it could be found."""


def hold_what_starts() -> None:
    """Make every process of the project that this one starts from now on end when this one ends."""
    os.environ[HOLDER] = str(os.getpid())


def end_with_starters() -> None:
    """End this process when a process that waits for its result ends, or now if one has already ended."""
    watched: Watched = []
    if HOLDER in os.environ:
        pid = int(os.environ[HOLDER])
        watched.append(psutil.Process(pid) if psutil.pid_exists(pid) else None)
    for variable in STARTERS:
        if variable in os.environ:
            watched += starters(variable)
    if watched:
        watch(watched)


def end_with_parent(name: str) -> None:
    """End this process when its parent ends, or now if the parent has ended and another process has adopted this one.

    `name` is a part of the command line of the parent.  This process only waits for commands that it started, so it is
    killed soon after they have ended.
    """
    parent = psutil.Process().parent()
    watch([parent if parent and name in " ".join(parent.cmdline()) else None], waits=True)


def starters(variable: str) -> Watched:
    """Return the ancestors, nearest first, up to the one that set the variable.  Some may be shells.

    Ends with None if that one has ended, so that the last is the process that adopts orphans.
    """
    found: Watched = []
    pids = [os.getpid()]
    for process in psutil.Process().parents():
        found.append(process)
        with suppress(psutil.Error):  # of another user, as the process that adopts orphans may be
            if variable in process.environ():
                pids.append(process.pid)
                continue
        # A child is in its parent's process group, or in a new one whose leader is the child or a shell between them.
        if os.getpgrp() not in (*pids, os.getpgid(process.pid)):
            found.append(None)
        break
    return found


def watch(processes: Watched, *, waits: bool = False) -> None:
    """Watch the processes in a thread: when one ends, this process gets SIGTERM, and SIGKILL later."""
    Thread(target=end_with, args=(processes, waits), daemon=True, name="lifeline").start()


def end_with(processes: Watched, waits: bool) -> None:
    """Wait until one of the processes has ended, then end this one; if it only `waits`, soon after its children."""
    while all(map(runs, processes)):
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # once: a second one might stop this process before it has saved
    killed = time.monotonic() + KILL_SECONDS
    while time.monotonic() < killed and not (waits and not any(map(runs, psutil.Process().children()))):
        time.sleep(LOOK_SECONDS)
    if waits:
        time.sleep(REPORT_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def runs(process: psutil.Process | None) -> bool:
    """Whether the process still runs: it is neither gone nor a zombie, and its number is not that of another one."""
    with suppress(psutil.Error):
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
