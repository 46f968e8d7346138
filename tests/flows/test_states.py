"""The saved states and the log of a training run, without a training."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TINY
from project import ROOT
from torch import distributed

from flows.core.checkpoint import fitted_to, load_model, save_state
from flows.core.device import find_device, find_precision
from flows.core.errors import Exit, UserError
from flows.core.params_file import read_params
from flows.images.store import ImageSet
from flows.training import collectives, fitting, runs
from flows.training.collectives import STORE, lost_another, process_group
from flows.training.fitting import fit, out_of_memory, resume
from flows.training.runs import Run, forget, writing_curves
from vdm import vlb
from vdm.model import VDM
from vdm.training.log import TrainingRecord
from vdm.training.trainer import Trainer

RECORD = TrainingRecord(5, 3.0, 1.0, 1.0, 1.0, -7.0, 5.0, 1.0, 1e-3, None, None, 100.0)


@pytest.mark.slow
def test_a_full_disk_keeps_the_state_before(full_disk: Path) -> None:
    run = Run(full_disk / "run", keep=2)
    run.save(1, {"done": 1, "weights": torch.zeros(10_000)})
    with pytest.raises(UserError, match="could not be written: No space left on device") as error:
        run.save(2, {"done": 2, "weights": torch.zeros(100_000)})
    assert error.value.code == Exit.BUG
    assert [path.name for path in run.folder.iterdir()] == ["step-000000001.state"]
    newest = run.newest()
    assert newest is not None
    assert newest["done"] == 1


def test_curves_on_a_full_disk_are_named(full_disk: Path) -> None:
    path = full_disk / "curves.csv"
    with writing_curves(path, []) as add:
        (full_disk / "filler").write_bytes(bytes(252 * 1024))
        with pytest.raises(UserError, match=f"{path} could not be written: No space left on device") as error:
            any(map(add, [RECORD] * 1000))
    assert error.value.code == Exit.BUG


def test_only_an_error_of_a_collective_means_that_another_process_is_lost() -> None:
    assert lost_another(RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"))
    assert not lost_another(RuntimeError("out of memory"))
    assert not lost_another(UserError("/data/gloomy/images/dataset.json: missing or damaged", Exit.MISSING))


def test_curves_are_a_new_file(tmp_path: Path) -> None:
    """An old file there may be a link into DVC's cache, or a FIFO."""
    path, cached = tmp_path / "curves.csv", tmp_path / "cached"
    cached.write_text("old")
    for before in (path.hardlink_to, path.symlink_to):
        before(cached)
        with writing_curves(path, [RECORD]) as add:
            add(RECORD)
        assert cached.read_text() == "old"
        assert path.read_text().count("\n5,3.0,") == 2
        assert len({line.count(",") for line in path.read_text().splitlines()}) == 1  # without the images per second
        path.unlink()
    os.mkfifo(path)
    with writing_curves(path, []):
        assert path.is_file()


def test_what_is_no_file_is_no_state(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    run.save(5, {"done": 5})
    os.mkfifo(tmp_path / "step-000000009.state")
    assert run.newest() == {"done": 5}


def test_a_run_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "run", keep=1)
    run.save(5, {"done": 5})
    shutil.rmtree(tmp_path / "runs")
    run.save(10, {"done": 10})
    assert run.newest() == {"done": 10}


def test_the_last_states_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", keep=2)
    for step in (5, 10, 15):
        run.save(step, {"done": step})
    assert [path.name for path in run.states()] == ["step-000000010.state", "step-000000015.state"]
    run.finish("abc")
    assert [path.name for path in run.states()] == ["step-000000015.state"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_sha256").write_bytes(b"\xff")
    forget(tmp_path, "def")
    assert run.newest() == {"done": 15}
    forget(tmp_path, "abc")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    forget(tmp_path / "nowhere", "abc")
    run.finish("abc")  # its folder is gone
    assert run.states() == []


def test_no_state_outlives_the_name_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a `register` that is killed would leave states that no later one deletes."""

    def killed(folder: Path) -> None:
        (folder / "model_sha256").unlink()
        raise OSError(errno.EIO, "Input/output error")

    run = Run(tmp_path / "run", keep=1)
    run.save(5, {"done": 5})
    run.finish("abc")
    monkeypatch.setattr(runs.shutil, "rmtree", killed)
    forget(tmp_path, "abc")
    assert run.states() == []


@pytest.mark.parametrize("keep", [1, 2])
def test_a_state_is_kept_below_damaged_ones(keep: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, keep=keep)
    for step in (9500, 10000):
        run.save(step, {"done": step})
    damaged = run.states()
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-100])
    for step in (500, 700, 900):
        run.save(step, {"done": step})
    assert run.newest() == {"done": 900}
    assert [int(path.stem.removeprefix("step-")) for path in run.states()] == [500, 700, 900][-keep:]
    for path in damaged:
        aside = f"{path.name}.damaged"
        assert f"{path}: truncated or damaged; falling back to the state before, and keeping this one as {aside}" in (
            caplog.messages
        )
        assert (tmp_path / aside).is_file()


@pytest.mark.parametrize("part", ["step-000000010.state", "folder"])
def test_a_state_that_cannot_be_read_now_is_not_passed_over(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder may be unreadable too."""

    def unreadable(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    run = Run(tmp_path / "folder", keep=2)
    for step in (5, 10):
        run.save(step, {"done": step})
    replaced = "os.scandir" if part == "folder" else "flows.core.checkpoint.read_bounded"
    with monkeypatch.context() as patch:
        patch.setattr(replaced, unreadable)
        with pytest.raises(UserError, match=f"{part} could not be read: Permission denied; correct that") as error:
            run.newest()
    assert error.value.code is Exit.MISSING
    assert [path.name for path in run.folder.iterdir()] == [path.name for path in run.states()]
    assert run.newest() == {"done": 10}


def test_the_only_process_of_a_machine_takes_a_card_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.delenv(STORE, raising=False)
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    index_of = torch.cuda._utils._get_device_index  # what set_device calls first
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(index_of(device)))
    for name in ("cuda", "cuda:1"):
        with process_group(torch.device(name)):
            pass
    assert chosen == [0, 1]


@pytest.mark.parametrize(
    "said", ["CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'", "CUDA error: ECC"]
)
def test_a_failing_card_is_not_a_wrong_state(said: str, tmp_path: Path) -> None:
    def load_state(state: dict[str, Any]) -> None:
        raise RuntimeError(said)

    with pytest.raises(RuntimeError, match="CUDA error"):
        resume(SimpleNamespace(load_state=load_state), {}, tmp_path)  # type: ignore[arg-type]
    assert out_of_memory(RuntimeError(said)) is ("memory" in said)
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    nccl = "NCCL error in: init.cpp:5, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"
    assert out_of_memory(RuntimeError(nccl))
    assert not out_of_memory(RuntimeError(nccl.replace("out of memory", "invalid argument")))


def test_the_precision_is_that_of_the_card_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    current = ["cuda:0"]

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(str(chosen))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == "cuda:1")
    assert find_precision("auto", torch.device("cuda:1")) == "bfloat16"
    assert find_precision("auto", torch.device("cuda:0")) == "float32"


def test_a_state_is_saved_when_the_minutes_are_over(
    tmp_path: Path, tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock is 40 seconds after the one before."""
    train: Any = read_params(ROOT / "presets/digits.yaml").train
    train = train.model_copy(update={"num_devices": 1, "steps": 6, "checkpoint_every_minutes": 1.0})
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    trainer = Trainer(tiny_model(), images, fitting.resolve(train, torch.device("cpu")))
    clock, saved = count(0.0, 40.0), list[int]()
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(fitting, "save", lambda trainer, run: saved.append(trainer.done))
    fit(trainer, Run(tmp_path / "run", keep=2), tmp_path / "curves.csv", train, lambda: False)
    assert saved == [2, 4, 6]


def test_ranks_count_only_in_processes_of_torchs_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other launchers number processes that do not train together, each of which writes its own model."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (collectives.is_first(), collectives.local_rank()) == (True, 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert (collectives.is_first(), collectives.local_rank()) == (False, 1)


@pytest.mark.processes
def test_a_run_has_one_name_however_its_processes_are_started() -> None:
    """Processes of torchrun import the stage; those that `launch` starts do not."""
    program = """
import flows.training.distributed, flows.training.fitting
from flows.training.runs import fingerprint
print(fingerprint())
import flows.stages.train
print(fingerprint())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    first, second = done.stdout.split()
    assert first == second


@pytest.mark.parametrize("setting", ["train.compile", "train.precision"])
def test_machines_on_which_auto_has_another_meaning_are_refused(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(fitting, "load_images", Mock())
    monkeypatch.setattr(fitting, "arguments_of", Mock(return_value=TINY))
    monkeypatch.setattr(fitting, "data_sha256", Mock(return_value="a"))
    monkeypatch.setattr(fitting, "gather", lambda name: [name, "of another machine"])
    train = read_params(ROOT / "presets/digits.yaml").train.model_copy(update={"device": "cpu", "num_devices": 1})
    with pytest.raises(UserError, match=f"{setting}: auto") as raised:
        fitting.train_here(Mock(), train, images=tmp_path, out=tmp_path, curves=tmp_path / "c", runs=tmp_path)
    assert raised.value.code is Exit.USAGE


def test_compiled_code_is_kept_where_no_other_user_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that the end of the test restores it
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(fitting, "load_images", Mock(side_effect=UserError("stop here", Exit.USAGE)))
    train = read_params(ROOT / "presets/digits.yaml").train.model_copy(update={"device": "cpu", "num_devices": 1})
    with pytest.raises(UserError, match="stop here"):
        fitting.train_here(Mock(), train, images=tmp_path, out=tmp_path, curves=tmp_path / "c", runs=tmp_path)
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(tmp_path / "locks")
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o700


def test_a_run_of_other_inputs_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would continue from a state of the old ones."""
    given = read_params(ROOT / "presets/digits.yaml").train
    cpu = torch.device("cpu")

    def name(config: dict[str, Any] = TINY, data: str = "a", **changes: Any) -> str:
        train = given.model_copy(update=changes)
        return fitting.run_digest(config, train, fitting.resolve(train, cpu), cpu, data)

    names = [name(), name(data="b"), name(TINY | {"width": 16}), name(seed=9), name(images="train_and_validation")]
    names += [name(keep="last"), name(patience=3), name(validate_every_steps=7), name(validation_times=1)]
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "process", lambda: (0, 2))
        names.append(name())
    with monkeypatch.context() as patch:
        patch.setattr(vlb, "__file__", __file__)  # other code
        names.append(name())
    assert len(set(names)) == len(names)
    assert name(checkpoint_every_steps=7, keep_checkpoints=9) == names[0]


def test_the_model_that_is_written_is_the_one_that_is_kept(tmp_path: Path) -> None:
    kept, last = VDM(**TINY), VDM(**TINY)
    trainer: Any = SimpleNamespace(kept=kept, averaged=last, model=last)
    fitting.write_model(trainer, TINY, read_params(ROOT / "presets/digits.yaml").train, "0" * 64, tmp_path / "model")
    written = load_model(tmp_path / "model").network.conv_in.weight
    assert torch.equal(written, kept.network.conv_in.weight)
    assert not torch.equal(written, last.network.conv_in.weight)
    assert fitted_to(tmp_path / "model") == "train"


def test_float32_is_not_rounded_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch._C, "_set_cublas_allow_tf32", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    find_device("cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert asked == [False]


def test_each_process_has_a_card_of_its_own_and_all_have_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [find_device("auto", 2, rank) for rank in (0, 1)] == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert find_device("cpu", 8, 7) == torch.device("cpu")
    with pytest.raises(UserError, match="num_devices 3: this machine has 2 CUDA devices; lower num_devices") as raised:
        find_device("auto", 3)
    assert raised.value.code is Exit.USAGE


def test_no_test_image_is_trained_on() -> None:
    train, validation, test = (np.arange(first, first + 4, dtype=np.uint8).reshape(4, 1, 1, 1) for first in (0, 4, 8))
    image_set = ImageSet({}, train, validation, test)
    assert fitting.training_images(image_set, "train").ravel().tolist() == [0, 1, 2, 3]
    assert fitting.training_images(image_set, "train_and_validation").ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_state_that_cannot_be_written_is_tried_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, pauses = [OSError(errno.EIO, "Input/output error") for _ in range(2)], list[float]()

    def failing(path: Path, state: dict[str, Any]) -> None:
        if errors:
            raise errors.pop()
        save_state(path, state)

    monkeypatch.setattr(runs, "save_state", failing)
    monkeypatch.setattr(runs.time, "sleep", pauses.append)
    run = Run(tmp_path, keep=1)
    run.save(5, {"done": 5})
    assert run.newest() == {"done": 5}
    assert pauses == [0.5, 2.0]
    errors += [OSError(errno.EIO, "Input/output error") for _ in range(3)]
    with pytest.raises(UserError, match="the state at step 10 could not be written: Input/output error"):
        run.save(10, {"done": 10})
    assert run.newest() == {"done": 5}


def test_a_run_that_is_asked_to_stop_at_its_last_step_has_finished(
    tmp_path: Path, tiny_model: Callable[..., VDM]
) -> None:
    train: Any = read_params(ROOT / "presets/digits.yaml").train
    train = train.model_copy(update={"num_devices": 1, "steps": 2})
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    trainer = Trainer(tiny_model(), images, fitting.resolve(train, torch.device("cpu")))
    fit(trainer, Run(tmp_path, keep=2), tmp_path / "curves.csv", train, lambda: trainer.done == 2)
    assert [path.name for path in Run(tmp_path, keep=2).states()] == ["step-000000002.state"]
