"""Wait for a training in another process, and stop it."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

from project import Sandbox

from flows.core import layout
from flows.core.errors import Exit

# Changes of vdm/training/validation.py that announce every batch of a validation, and make it longer.
SLOW = {
    "import math\n": "import math\nimport sys\nimport time\n",
    "if stop():": "if print('validating', file=sys.stderr, flush=True) or time.sleep(0.1) or stop():",
}


def states(project: Sandbox) -> list[Path]:
    """Return the saved states of all runs."""
    return sorted((project.folder / layout.TRAININGS).glob("*/step-*.state"))


def remove_finished(project: Sandbox) -> None:
    """Remove the last model, and the states of finished runs, which a run with the same parameters would continue."""
    shutil.rmtree(project.folder / "models" / "trained", ignore_errors=True)
    for path in (project.folder / layout.TRAININGS).glob("*/model_sha256"):
        shutil.rmtree(path.parent)


def has_state(project: Sandbox, step: int) -> bool:
    """Whether a state at or after the step is on disk."""
    return any(int(path.stem.removeprefix("step-")) >= step for path in states(project))


def wait_for_step(project: Sandbox, process: subprocess.Popen[str], step: int) -> None:
    """Wait until the process has saved a state at or after the step."""
    while not has_state(project, step):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read stderr up to the first line with the text."""
    assert process.stderr is not None
    while text not in (line := process.stderr.readline()):
        assert line, f"the process ended without {text!r}"


def stopped_in_validation(process: subprocess.Popen[str], *, after: str) -> str:
    """Send SIGTERM inside the first validation after a line of the log; return what follows on stderr."""
    for awaited in (after, "validating"):
        read_until(process, awaited)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    errors = process.stderr.read()  # `communicate` would leave out what `readline` has buffered
    process.wait(300)
    process.stderr.close()
    assert process.returncode == Exit.RESUMABLE, errors
    return errors
