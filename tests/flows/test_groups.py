"""How commands start in their process groups."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.process.groups import run_group


@pytest.fixture
def interrupts_ignored() -> Iterator[None]:
    """Ignore SIGINT, as a job does that a script starts with `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.processes
@pytest.mark.usefixtures("interrupts_ignored")
def test_a_command_starts_with_the_default_handler_of_sigint_also_from_a_job_that_ignores_it(tmp_path: Path) -> None:
    """Or the signal that asks it to save its state would not reach it; the job itself still ignores it."""
    program = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    with run_group([sys.executable, "-c", program], tmp_path) as process:
        assert process.stdout
        assert process.stdout.read() == "True\n"
    signal.raise_signal(signal.SIGINT)
