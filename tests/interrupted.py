"""Wait for a training in another process, and stop it."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

from project import Project

from flows.core.errors import Exit

# Changes of vdm/training/validation.py that announce every batch of a validation, and make it longer.
SLOW = {
    "import math\n": "import math\nimport sys\nimport time\n",
    "if stop():": "if print('validating', file=sys.stderr, flush=True) or time.sleep(0.1) or stop():",
}


def states(project: Project) -> list[Path]:
    """Return the saved states of all runs."""
    return sorted((project.folder / ".vdm" / "runs").glob("*/step-*.state"))


def remove_finished(project: Project) -> None:
    """Remove the last model, and the states of finished runs, which a run with the same parameters would continue."""
    shutil.rmtree(project.folder / "models" / "trained", ignore_errors=True)
    for path in (project.folder / ".vdm" / "runs").glob("*/model_sha256"):
        shutil.rmtree(path.parent)


def wait_for_step(project: Project, process: subprocess.Popen[str], step: int) -> None:
    """Wait until a state at or after the step is on disk."""
    while not any(int(path.stem.removeprefix("step-")) >= step for path in states(project)):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)


def stopped_in_validation(process: subprocess.Popen[str], *, after: str) -> str:
    """Send SIGTERM inside the first validation after a line of the log; return what follows on stderr."""
    assert process.stderr is not None
    for awaited in (after, "validating"):
        while awaited not in (line := process.stderr.readline()):
            assert line
    process.send_signal(signal.SIGTERM)
    errors = process.stderr.read()
    process.communicate(timeout=300)
    assert process.returncode == Exit.RESUMABLE, errors
    return errors
