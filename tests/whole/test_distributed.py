"""Training in several real processes, started by torch's agent, killed and stopped."""

import os
import shutil
import signal
from pathlib import Path
from unittest.mock import patch

import jobs
import pytest
import torch
from group import curves, prepare, start, train_undisturbed, weights
from interrupted import read_until, remove_finished, states
from plant import wait_until
from project import Sandbox, run_vdmctl, session
from small import Small

from flows.core.errors import Exit
from flows.training.distributed import launch


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return a project with validated images, set up to train with two processes."""
    return prepare(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def undisturbed(project: Sandbox) -> bytes:
    """Return the weights of a run that nothing interrupts."""
    return train_undisturbed(project)


def test_two_processes_follow_the_losses_of_one(project: Sandbox, undisturbed: bytes) -> None:
    two = curves(project)
    project.edit("params.yaml", **{"num_devices: 2": "num_devices: 1"})
    assert project.vdmctl("train").returncode == 0
    project.edit("params.yaml", **{"num_devices: 1": "num_devices: 2"})
    for row, expected in zip(curves(project), two, strict=True):
        # 30 steps amplify rounding; other times or noise would change the second digit.
        assert row == pytest.approx(expected, rel=2e-4, nan_ok=True)
    assert weights(project) != undisturbed  # different rounding proves a different computation


def test_processes_do_not_outlive_the_one_that_started_them(project: Sandbox) -> None:
    """The steps since the last planned state are saved, too."""
    every = {"checkpoint_every_steps: 5\n": "checkpoint_every_steps: 1000\n", "steps: 30\n": "steps: 3000\n"}
    project.edit("params.yaml", **every)
    process = start(project)
    read_until(process, "step 3:")
    process.kill()
    process.wait()
    wait_until(lambda: not session(process.pid), 60)
    assert process.stderr is not None
    process.stderr.close()
    project.edit("params.yaml", **{new: old for old, new in every.items()})
    (state,) = states(project)
    shutil.rmtree(state.parent)


def test_an_error_that_only_one_meets_on_the_way_ends_all(project: Sandbox) -> None:
    """The log cannot be written; the other processes must not go on waiting for the first."""
    remove_finished(project)
    curves = project.folder / "reports/training/curves.csv"
    curves.unlink(missing_ok=True)
    (curves / "in the way").mkdir(parents=True)
    result = project.vdmctl("train")
    shutil.rmtree(curves)
    assert result.returncode == Exit.MISSING
    assert result.stderr.splitlines()[-1] == "vdmctl: reports/training/curves.csv: Is a directory"


def test_memory_that_one_process_lacks_leaves_nobody_waiting() -> None:
    """No restart would cure it."""
    with patch.dict(os.environ), pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory. Tried"):
        launch(jobs.full, num_processes=2)


def test_processes_ask_about_once_a_second_whether_to_stop_and_stop_together() -> None:
    with patch.dict(os.environ):
        (calls, asked, _), (*other, seconds) = launch(jobs.polling, num_processes=2)
    assert other == [calls, asked]
    assert seconds < 10
    assert calls > 100
    assert asked < 25  # 1, 2, 4 calls and so on up to a second of them


def test_two_processes_draw_and_evaluate_as_one(tmp_path: Path) -> None:
    """The samples, and the figures of every image to the last digit, are those of one process."""
    small = Small(tmp_path / "small")
    evaluate = ("evaluate", "models/vdm", "--out", "reports/evaluation")  # of the test images alone
    params, results = small.folder / "params.yaml", ("samples/samples.npy", "evaluation/per_image.csv")
    # Three images a batch, so that no split of the images alone would give both processes the same batches as one.
    assert "batch_size: 512" in params.read_text()
    text = params.read_text().replace("batch_size: 512", "batch_size: 6")
    params.write_text(text)

    def found() -> list[bytes]:
        files = [small.folder / "reports" / name for name in (*results, "evaluation/metrics.json")]
        contents = [file.read_bytes() for file in files]
        for file in files:
            file.unlink()
        return contents

    for command in (["sample"], evaluate):
        assert run_vdmctl(small.folder, small.environment, *command).returncode == 0
    one = found()
    before, name, after = text.partition("\nevaluate:\n")
    assert after.count("num_devices: 1") == 2  # of `evaluate` and of `sample`
    params.write_text(before + name + after.replace("num_devices: 1", "num_devices: 2"))

    def stop(*_: object) -> None:
        pytest.fail("stopped")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for command in (["sample"], evaluate):
            result = run_vdmctl(small.folder, small.environment, *command)
            assert result.returncode == 0, result.stderr
            assert {signal.getsignal(number) for number in handlers} == {stop}  # torch's agent leaves its own
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert found() == one
