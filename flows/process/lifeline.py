"""A process of ours ends with the process that wants its result.

When a parent is killed, its children hear nothing: they would go on alone, and hold their device.  So every process
that imports `flows` watches those who started it and wait for it: DVC, which sets DVC_STAGE, torchrun, which sets
TORCHELASTIC_RUN_ID, or a process of ours that called `hold_what_starts`.  What a person starts, perhaps with nohup,
watches nobody.
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
# A process that still runs so long after SIGTERM hangs, perhaps in a device.  What it saved before is whole.
KILL_SECONDS = 120.0
LOOK_SECONDS = 1.0

asked = Lock()


def hold_what_starts() -> None:
    """Let every process of ours that this one starts from now on end with it."""
    os.environ[HOLDER] = f"{os.getpid()}:{start_time(os.getpid())}"


def end_with_starters() -> None:
    """Let this process end with those that started it and wait for its result; at once if one is gone already."""
    number, _, started = os.environ.get(HOLDER, "").partition(":")
    if number.isdecimal():
        end_with(int(number))
        if start_time(int(number)) != started:  # perhaps another process has the number by now
            end()
    for variable in STARTERS:
        if variable in os.environ:
            watched = starters(variable)
            for pid in watched:
                end_with(pid)
            if starters(variable) != watched or is_orphan(watched):
                end()


def end_with(pid: int) -> None:
    """Send SIGTERM to this process when the other one ends, at once if it has; SIGKILL if it takes two minutes.

    Returns at once.  Any thread may call it, for as many processes as it likes: SIGTERM comes once.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):  # no such process, or no such call on this system
        descriptor = None
    Thread(target=watch, args=(pid, descriptor), daemon=True, name=f"lifeline {pid}").start()


def watch(pid: int, descriptor: int | None) -> None:
    """Wait until the other process ends, then end this one."""
    if descriptor is None:
        while exists(pid):
            time.sleep(LOOK_SECONDS)
    else:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        ended.poll()
    end()
    time.sleep(KILL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def end() -> None:
    """Send SIGTERM to this process, once: a second one may mean that it should not take the time to save."""
    if asked.acquire(blocking=False):
        os.kill(os.getpid(), signal.SIGTERM)


def starters(variable: str) -> list[int]:
    """Return the ancestors, the nearest first, up to the one that set the variable; a shell may stay in between."""
    found = [os.getppid()]
    while inherited(variable, found[-1]) and (above := parent(found[-1])):
        found.append(above)
    return found


def is_orphan(watched: list[int]) -> bool:
    """Whether the last of the starters only takes in orphans: the one that set the variable is gone.

    A child is in its parent's process group, or in a new one that it or a shell in between leads.
    """
    group = os.getpgrp()
    with suppress(ProcessLookupError):
        return os.getpgid(watched[-1]) != group and group not in (os.getpid(), *watched)
    return True


def inherited(variable: str, pid: int) -> bool:
    """Whether the process was started with the variable in its environment, as far as the system says."""
    with suppress(OSError):
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return any(entry.startswith(f"{variable}=".encode()) for entry in entries)
    return False


def exists(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def parent(pid: int) -> int:
    """Return the process's parent; 0 if the system does not say."""
    fields = status(pid)
    return int(fields[1]) if fields else 0


def start_time(pid: int) -> str:
    """Return when the process started, in the system's unit; empty if the system does not say."""
    fields = status(pid)
    return fields[19] if fields else ""


def status(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat that come after the name, which may hold anything."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []
