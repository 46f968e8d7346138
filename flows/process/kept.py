"""Keep a command running: start it again when it dies, and stop it at the end."""

import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from functools import partial

from flows.core.errors import Exit, UserError
from flows.process.groups import signal_with_parent, stop_group
from flows.process.streams import say_on_stderr

# How long each signal may take to end the command.
STOP_SECONDS = 30.0
# A process that dies again within this time is not restarted.
RESTART_SECONDS = 30.0
# How long a process imports, during which SIGINT would end it with a traceback.
IMPORT_SECONDS = 5.0


class Kept:
    """A command in its own process group, restarted when it dies and stopped when `stack` is closed.

    On Linux it also ends when this process is killed.
    """

    def __init__(self, stack: ExitStack, name: str, command: list[str], *, when_orphaned: signal.Signals) -> None:
        """Start the command; `when_orphaned` is the signal that it gets when this process is killed."""
        self.name, self.command = name, command
        self.when_orphaned = when_orphaned
        self.restarted: float | None = None
        self.drained = False
        self.start()
        stack.callback(self.stop)

    def start(self) -> None:
        """Start the command's process."""
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command, start_new_session=True, text=True, preexec_fn=partial(signal_with_parent, self.when_orphaned)
        )

    def revive(self) -> None:
        """Restart the command if it died.  Raises UserError (exit 1) if it died within RESTART_SECONDS of a restart."""
        if self.process.poll() is None:
            return
        if self.restarted and time.monotonic() - self.restarted < RESTART_SECONDS:
            raise UserError(f"`{self.name}` ended; see its output above", Exit.BUG)
        say_on_stderr(f"`{self.name}` ended; starting it again")
        self.restarted = time.monotonic()
        self.start()

    def drain(self) -> None:
        """Send SIGTERM: Prefect's worker then takes no more runs, and ends after those that it has."""
        self.process.terminate()
        self.drained = True

    def stop(self) -> None:
        """Stop the process group: SIGINT, or SIGTERM while it still imports, then SIGTERM, then SIGKILL.

        After `drain` the command first has time to end, since Prefect's worker kills itself at a second signal.
        """
        if self.drained:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        first = signal.SIGTERM if time.monotonic() - self.started < IMPORT_SECONDS else signal.SIGINT
        stop_group(self.process, *((number, STOP_SECONDS) for number in (first, signal.SIGTERM, signal.SIGKILL)))
