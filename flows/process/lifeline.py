"""End a process of the project when the process that waits for its result has ended.

A process that is killed does not stop its children, which would continue to use their device.  So every process that
imports `flows` watches the processes that started it and wait for it: DVC, which sets DVC_STAGE, torchrun, which sets
TORCHELASTIC_RUN_ID, or a process of the project that called `hold_what_starts`.  A command that a person starts, also
with nohup, watches no process.
"""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread

HOLDER = "VDM_LIFELINE"
STARTERS = ("DVC_STAGE", "TORCHELASTIC_RUN_ID")
# A process that still runs this long after SIGTERM hangs, for example in a device driver.
KILL_SECONDS = 120.0
LOOK_SECONDS = 1.0

asked = Lock()


def hold_what_starts() -> None:
    """Make every process of the project that this one starts from now on end when this one ends."""
    os.environ[HOLDER] = f"{os.getpid()}:{start_time(os.getpid())}"


def end_with_starters() -> None:
    """End this process when a process that waits for its result ends, or now if one has already ended."""
    number, _, started = os.environ.get(HOLDER, "").partition(":")
    if number.isdecimal():
        end_with(int(number))
        if start_time(int(number)) != started:  # it has ended, and another process may have its number
            end()
    for variable in STARTERS:
        if variable in os.environ:
            watched = starters(variable)
            for pid in watched:
                end_with(pid)
            if starters(variable) != watched or is_orphan(watched):
                end()


def end_with(pid: int) -> None:
    """Begin to watch the process `pid`: when it ends, this one gets SIGTERM, and SIGKILL two minutes later."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):  # no such process, or no such call on this system
        descriptor = None
    Thread(target=watch, args=(pid, descriptor), daemon=True, name=f"lifeline {pid}").start()


def end_with_parent(name: str) -> None:
    """End this process when its parent ends, or now if the parent has ended and another process has adopted this one.

    `name` is a part of the command line of the parent.
    """
    import psutil

    parent = os.getppid()
    end_with(parent)
    with suppress(psutil.Error):
        if any(name in word for word in psutil.Process(parent).cmdline()):
            return
    end()


def watch(pid: int, descriptor: int | None) -> None:
    """Wait until the other process ends, then end this one."""
    if descriptor is None:
        import psutil

        while psutil.pid_exists(pid):
            time.sleep(LOOK_SECONDS)
    else:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        ended.poll()
    end()
    time.sleep(KILL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def end() -> None:
    """Send SIGTERM to this process, but only once: a second SIGTERM may stop it before it has saved."""
    if asked.acquire(blocking=False):
        os.kill(os.getpid(), signal.SIGTERM)


def starters(variable: str) -> list[int]:
    """Return the ids of the ancestors, nearest first, up to the one that set the variable.  Some may be shells."""
    import psutil

    found = [os.getppid()]
    with suppress(psutil.Error, OSError):
        while variable in (process := psutil.Process(found[-1])).environ() and (above := process.ppid()):
            found.append(above)
    return found


def is_orphan(watched: list[int]) -> bool:
    """Whether the last watched process is not a starter but the process that adopts orphans.

    A child is in its parent's process group, or in a new one whose leader is the child or a shell between them.
    """
    group = os.getpgrp()
    with suppress(ProcessLookupError):
        return os.getpgid(watched[-1]) != group and group not in (os.getpid(), *watched)
    return True


def start_time(pid: int) -> str:
    """Return when the process started, in the system's clock ticks; empty if the system does not say."""
    # Not by psutil, whose seconds since 1970 change when the clock is set.
    with suppress(OSError):
        # The program's name may contain any character; it ends at the last parenthesis.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    return ""
