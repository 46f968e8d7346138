"""The Prefect flow `train-vdm`: the graph of dvc.yaml, one task per stage.

DVC decides what must run and caches it; Prefect decides when, and shows it.  No data passes between tasks.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import networkx
from dvc.repo import Repo
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

STOP_SECONDS = 8.0


@flow(name="train-vdm")
def train_vdm() -> None:
    """Reproduce every stage of dvc.yaml in the current folder, in order; a stage that is up to date is skipped."""
    for stage in stages():
        # Called, not submitted: a submitted task would never see that the run was cancelled.
        reproduce.with_options(name=stage, task_run_name=stage)(stage)


def stages() -> list[str]:
    """The names of the stages in the order of their dependencies."""
    with Repo() as repo:
        # DVC's edges point from a stage to what it needs.
        graph = networkx.reverse_view(repo.index.graph)
        return [stage.addressing for stage in networkx.lexicographical_topological_sort(graph, key=str)]


@task(cache_policy=NO_CACHE)
def reproduce(stage: str) -> None:
    """`dvc repro --single-item STAGE`, its output streamed into the log.  Raises RuntimeError with the reason."""
    logger = get_run_logger()
    reason = "see the log"
    with process_group([sys.executable, "-m", "dvc", "repro", "--single-item", stage]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            logger.info(line.rstrip())
            if line.startswith("vdmctl: "):
                reason = line.removeprefix("vdmctl: ").strip()
    if process.returncode != 0:
        raise RuntimeError(f"stage {stage} failed: {reason}")


@contextmanager
def process_group(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the command in a process group of its own, which is gone when the block is left, however it is left."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        yield process
        process.wait()
    finally:
        # DVC ignores SIGINT while its stage runs and waits for it; SIGTERM would kill DVC alone and orphan the stage.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if not stop(process, number):
                break


def stop(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Signal the group and give it time; whether any process of it is still there."""
    deadline = time.monotonic() + STOP_SECONDS
    try:
        os.killpg(process.pid, number)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        process.wait()
        return False
    return True


if __name__ == "__main__":
    train_vdm()
