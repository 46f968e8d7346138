"""The saved states and the log of a training run, without a training."""

import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TINY
from pictures import set_of
from PIL import Image
from project import ROOT
from small import Small
from trainings import same_bits

from flows.cli import run as run_command
from flows.core import layout
from flows.core.device import keep_on_device
from flows.core.errors import CheckpointError, Exit, UserError
from flows.core.model import CONFIG, WEIGHTS, config_sha256, inputs_sha256, open_model
from flows.core.params import Train
from flows.core.params_file import read_params
from flows.training import fitting
from flows.training import states as states_file
from flows.training.distributed import local_rank, out_of_memory
from flows.training.fitting import take_steps
from flows.training.states import States, add_lines, forget, make_tracker, start_curves
from vdm.model import VDM
from vdm.training.log import TrainingRecord
from vdm.training.trainer import Trainer

RECORD = TrainingRecord(5, 3.0, 1.0, 1.0, 1.0, -7.0, 5.0, 1.0, 1e-3, None, None, 100.0)
CPU = torch.device("cpu")


def parameters(**changes: Any) -> Train:
    """Return the section `train` of the digits with changes."""
    return read_params(ROOT / "presets/digits.yaml").train.model_copy(update={"num_devices": 1, **changes})


def test_the_newest_states_are_kept_until_their_model_is_registered(tmp_path: Path) -> None:
    states = States(tmp_path / "run", keep=2)
    for step in (5, 10, 15):
        states.save(step, {"done": step})
    assert [path.name for path in states.states()] == ["step-000000010.state", "step-000000015.state"]
    states.finish("abc")
    assert [path.name for path in states.states()] == ["step-000000015.state"]
    forget(tmp_path, "def")
    assert states.newest() == {"done": 15}
    forget(tmp_path, "abc")
    assert not states.folder.exists()
    assert states.newest() is None


def test_a_damaged_state_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    states = States(tmp_path, keep=2)
    for step in (5, 10):
        states.save(step, {"done": step})
    damaged = states.states()[-1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert states.newest() == {"done": 5}
    aside = f"{damaged.name}.damaged"
    assert caplog.messages == [
        f"{damaged}: truncated or damaged; falling back to the state before, and keeping this one as {aside}"
    ]
    states.save(9, {"done": 9})
    assert states.newest() == {"done": 9}


def test_curves_are_a_new_file(tmp_path: Path) -> None:
    """An old one may share its bytes with DVC's cache."""
    path, cached = tmp_path / "curves.csv", tmp_path / "cached"
    cached.write_text("old")
    path.hardlink_to(cached)
    start_curves(path, b"5,3.0,1\r\n")
    add_lines(path, RECORD)
    assert cached.read_text() == "old"
    header, given, line = path.read_text().splitlines()
    assert given == "5,3.0,1"
    assert line.startswith("5,3.0,")
    assert line.count(",") == header.count(",") == len(RECORD) - 2  # without the images per second


def trainer_of(model: VDM, train: Train) -> Trainer:
    return Trainer(model, torch.zeros(64, 1, 8, 8, dtype=torch.uint8), fitting.resolve(train, CPU))


def test_a_save_costs_the_same_at_step_100_and_after_ten_million(
    tmp_path: Path, tiny_model: Callable[..., VDM]
) -> None:
    """Of 200,000 lines of the log the state has none, and continuing takes them from the file."""
    train, sizes = parameters(steps=10_000_000), []
    for lines in (2, 200_000):
        states, trainer = States(tmp_path / str(lines), keep=2), trainer_of(tiny_model(), train)
        states.folder.mkdir()
        add_lines(states.log, RECORD)
        of_step = states.log.read_bytes().removeprefix(b"5")
        states.log.write_bytes(b"".join(b"%d%b" % (50 * line, of_step) for line in range(1, lines + 1)))
        trainer.done = trainer.log.last = 50 * lines
        trainer.log.lines = lines
        states.save(trainer.done, trainer.state())
        sizes.append(states.states()[0].stat().st_size)
        continued = trainer_of(tiny_model(), train)
        fitting.continue_training(continued, states)
        assert continued.done == 50 * lines
        assert states.lines(continued.log.last, continued.log.lines) == states.log.read_bytes()
    assert abs(sizes[1] - sizes[0]) < 200


@pytest.mark.slow
def test_a_run_killed_at_any_moment_of_its_writing_continues_to_the_same_curves(
    tmp_path: Path, tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after each write: of a line to the log, of a part of it, of a line to the curves, and of a state."""
    train = parameters(steps=4, log_every=1, checkpoint_every_steps=2)
    curves, moment = tmp_path / "curves.csv", [0]

    class Killed(Exception):
        pass

    def dying(action: Callable[..., None], *, torn: bool = False) -> Callable[..., None]:
        def act(*arguments: Any) -> None:
            if torn and moment[0] == 1:
                with arguments[0].open("ab") as file:
                    file.write(b"9,0.5")
                raise Killed
            action(*arguments)
            moment[0] -= 1
            if moment[0] == 0:
                raise Killed

        return act

    def continued(states: States) -> Trainer:
        trainer = trainer_of(tiny_model(dropout=0.3), train)
        fitting.continue_training(trainer, states)
        take_steps(trainer, states, curves, train, lambda: False)
        return trainer

    whole = continued(States(tmp_path / "whole", keep=2))
    expected = curves.read_bytes()
    assert expected.count(b"\n") == 5
    moments = [(False, number) for number in range(1, 11)]  # 4 lines in two files, 2 states
    for torn, last in [*moments, (True, 3), (True, 6)]:
        states = States(tmp_path / f"{torn}-{last}", keep=2)
        moment[0] = last
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "add_lines", dying(add_lines, torn=torn))
            patch.setattr(states_file, "save_state", dying(states_file.save_state))
            with pytest.raises(Killed):
                continued(states)
        trainer = continued(states)
        assert curves.read_bytes() == expected
        assert same_bits(trainer.averaged.state_dict(), whole.averaged.state_dict())


def test_lines_of_the_log_that_are_lost_are_named(tmp_path: Path, tiny_model: Callable[..., VDM]) -> None:
    train, states = parameters(steps=4, log_every=1), States(tmp_path / "run", keep=2)
    take_steps(trainer_of(tiny_model(), train), states, tmp_path / "curves.csv", train, lambda: False)
    states.log.write_bytes(states.log.read_bytes().replace(b"\n2,", b"\nx,"))
    trainer = trainer_of(tiny_model(), train)
    fitting.continue_training(trainer, states)
    reason = f"{states.log}: has 3 of the 4 lines up to step 4; move {states.folder} away to train from the first step"
    with pytest.raises(CheckpointError, match=f"^{re.escape(reason)}$"):
        take_steps(trainer, states, tmp_path / "curves.csv", train, lambda: False)


def test_a_state_is_saved_when_the_minutes_are_over(
    tmp_path: Path, tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock is 40 seconds after the one before."""
    train = parameters(steps=6, checkpoint_every_minutes=1.0)
    clock, states = count(0.0, 40.0), Mock(log=tmp_path / "log.csv", lines=Mock(return_value=b""))
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    take_steps(trainer_of(tiny_model(), train), states, tmp_path / "curves.csv", train, lambda: False)
    assert [call.args[0] for call in states.save.call_args_list] == [2, 4, 6]


def test_a_run_asked_to_stop_at_its_last_step_has_finished(tmp_path: Path, tiny_model: Callable[..., VDM]) -> None:
    train = parameters(steps=2)
    trainer, states = trainer_of(tiny_model(), train), States(tmp_path, keep=2)
    take_steps(trainer, states, tmp_path / "curves.csv", train, lambda: trainer.done == 2)
    assert [path.name for path in states.states()] == ["step-000000002.state"]


@pytest.mark.parametrize("asked", [1, 5])
def test_a_run_stopped_between_micro_batches_saves_its_last_whole_step(
    asked: int, tmp_path: Path, tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of two micro-batches asks between them and after the second; the first and the third step are stopped."""
    train = parameters(steps=4, accumulation=2, samples_every_steps=4)
    drawn = Mock(return_value=b"")
    monkeypatch.setattr(fitting, "preview", drawn)
    curves = tmp_path / "curves.csv"
    whole = trainer_of(tiny_model(dropout=0.3), train)
    take_steps(whole, States(tmp_path / "whole", keep=2), curves, train, lambda: False)
    expected, calls, states = curves.read_bytes(), count(1), States(tmp_path / "stopped", keep=2)
    first = trainer_of(tiny_model(dropout=0.3), train)
    with pytest.raises(UserError, match=f"^stopped at step {asked // 2} of 4; run again to continue") as stopped:
        take_steps(first, states, curves, train, lambda: next(calls) == asked)
    assert stopped.value.code is Exit.RESUMABLE
    assert drawn.call_count == 1  # that of the last step of the whole run
    trainer = trainer_of(tiny_model(dropout=0.3), train)
    fitting.continue_training(trainer, states)
    assert trainer.done == asked // 2
    take_steps(trainer, states, curves, train, lambda: False)
    assert curves.read_bytes() == expected
    assert same_bits(trainer.averaged.state_dict(), whole.averaged.state_dict())


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_pictures_of_samples_to_the_same_bytes(
    small: Small, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VDM_LOCK_DIR", str(small.folder))
    params, outputs = Path("params.yaml"), [layout.CURVES, *(layout.TRAINED / name for name in (WEIGHTS, CONFIG))]
    params.write_text(params.read_text().replace("dropout: 0.0", "dropout: 0.3"))
    other = layout.CURVES.with_name("samples-000000099.png")
    other.touch()
    assert run_command(["train"]) == Exit.DONE
    assert not other.exists()
    undisturbed = [path.read_bytes() for path in outputs]
    shutil.rmtree(layout.TRAININGS)

    def interrupted(trainer: Trainer, stop: Callable[[], bool], step: Any = Trainer.step) -> TrainingRecord | None:
        if trainer.done == 9:
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, stop)  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert run_command(["train"]) == Exit.RESUMABLE
    params.write_text(params.read_text().replace("samples_every_steps: null", "samples_every_steps: 8"))
    assert run_command(["train"]) == Exit.DONE
    assert "continuing from step 10 of 20" in caplog.text
    assert [path.read_bytes() for path in outputs] == undisturbed
    (picture,) = layout.CURVES.parent.glob("*.png")
    assert picture.name == "samples-000000016.png"
    with Image.open(picture) as opened:
        assert opened.size == (4 * 34 + 2, 4 * 34 + 2)
        assert len(opened.getcolors()) > 2
    assert run_command(["register"]) == Exit.DONE


def test_a_line_of_the_log_says_how_much_time_is_left(
    tmp_path: Path, tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that has begun at its second step takes 100 seconds for each."""
    caplog.set_level("INFO")
    train = parameters(steps=5, log_every=2, checkpoint_every_minutes=1e9)
    trainer = trainer_of(tiny_model(), train)
    trainer.step()
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: 100.0 * trainer.done))
    take_steps(trainer, States(tmp_path, keep=2), tmp_path / "curves.csv", train, lambda: False)
    assert re.findall(r"(step .): .* images/s, (.*) left", caplog.text) == [
        ("step 2", "0:05:00"),
        ("step 4", "0:01:40"),
        ("step 5", "0:00:00"),
    ]


@pytest.mark.parametrize(("compiled", "step", "left"), [(False, 2, "6:40:00"), (True, 3, "0:06:00")])
def test_the_first_step_says_how_long_a_step_takes_and_how_much_time_is_left(
    compiled: bool,
    step: int,
    left: str,
    tmp_path: Path,
    tiny_model: Callable[..., VDM],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of a run that continues at its second step, of which the first one takes 8000 s and every other 180 s.

    With a compiler the first one would say little.
    """
    caplog.set_level("INFO")
    train = parameters(steps=5, log_every=9, checkpoint_every_minutes=1e9)
    trainer = trainer_of(tiny_model(), train)
    trainer.step()
    trainer.settings = replace(trainer.settings, compile=compiled)
    times = [0, 0, 8000, 8180, 8360, 8540]
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: times[trainer.done]))
    take_steps(trainer, States(tmp_path, keep=2), tmp_path / "curves.csv", train, lambda: False)
    seconds = "180.00" if compiled else "8000.00"
    assert [line for line in caplog.messages if "a step takes" in line] == [
        f"step {step}: a step takes {seconds} s, {left} left"
    ]


@pytest.mark.parametrize(("side", "num_devices", "minutes"), [(64, 1, 0), (256, 1, 9), (256, 2, 4)])
def test_a_cpu_for_which_the_attention_is_too_much_is_named_before_the_first_step(
    side: int, num_devices: int, minutes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vdm.training.trainer.process", lambda: (0, num_devices))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    settings, config = fitting.resolve(parameters(), CPU), TINY | {"image_shape": (1, side, side)}
    fitting.build(config, settings, torch.zeros(64, 1, side, side, dtype=torch.uint8), None)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(minutes)
    for warning in warnings:
        assert f"attention between all 256x256 pixels takes about {minutes} min a step on this CPU" in warning
        assert "data.resize" in warning
        assert "train.accumulation" in warning


@pytest.mark.slow
@pytest.mark.needs("TensorBoard")
def test_tensorboard_has_every_line_of_a_run_that_was_continued(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    later = RECORD._replace(step=10, validation_bpd=2.5)
    for done, record in ((0, RECORD), (5, later), (5, later)):  # killed after step 10, before its state was saved
        make_tracker("tensorboard", tmp_path / "runs/abc", done)(record)
    events = EventAccumulator(str(tmp_path / "tensorboard/abc")).Reload()
    assert [(each.step, each.value) for each in events.Scalars("bpd")] == [(5, 3.0), (10, 3.0)]
    assert [(each.step, each.value) for each in events.Scalars("validation_bpd")] == [(10, 2.5)]


def test_a_tracker_that_is_not_installed_is_refused_before_the_first_step(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setenv("VDM_LOCK_DIR", str(small.folder))
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step is taken"))
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("tracker: null", "tracker: tensorboard"))
    assert run_command(["train"]) == Exit.USAGE
    advice = "pip install 'vdm-pipeline[tensorboard]', or set it to null"
    assert f"vdmctl: train.tracker: TensorBoard is not installed: {advice}\n" in capsys.readouterr().err


def test_ranks_count_only_in_processes_of_torchs_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other launchers number processes that do not train together, each of which has its own device."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert local_rank() == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert local_rank() == 1


def test_machines_that_read_auto_differently_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr(fitting, "arguments_of", Mock(return_value=TINY))
    monkeypatch.setattr(fitting, "gather", lambda name: [name, "of another machine"])
    paths = dict.fromkeys(("out", "curves", "trainings"), tmp_path)
    model = Mock(classes=None)
    model.model_copy.return_value = model
    with pytest.raises(UserError, match=r"differ in .* train\.precision: auto and train\.compile: auto") as raised:
        fitting.train_here(model, parameters(), Mock(data_sha256="a"), **paths)
    assert raised.value.code is Exit.USAGE


def test_a_run_of_other_inputs_has_another_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else it would continue from a state of the old ones."""

    def name(config: dict[str, Any] = TINY, data: str = "a", **changes: Any) -> str:
        train = parameters(**changes)
        return fitting.run_digest(config, train, fitting.resolve(train, CPU), CPU, data)

    names = [name(), name(data="b"), name(TINY | {"width": 16}), name(seed=9), name(images="train_and_validation")]
    names += [name(keep="last"), name(patience=3), name(validate_every_steps=7), name(validation_times=1)]
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "process", lambda: (0, 2))
        names.append(name())
    (tmp_path / "code.py").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(states_file, "CODE", [*states_file.CODE, tmp_path])
        names.append(name())
    train = parameters()
    names += [fitting.run_digest(TINY, train, fitting.resolve(train, CPU), CPU, "a", start=digest) for digest in "ab"]
    assert len(set(names)) == len(names)
    shown: dict[str, Any] = {"samples_every_steps": 7, "tracker": "tensorboard", "images_on": "host"}
    assert name(checkpoint_every_steps=7, keep_checkpoints=9, max_restarts=0, **shown) == names[0]
    before = parameters().model_dump(exclude={*shown, "class_dropout", "start_from"})
    expected = config_sha256({"model": TINY, "train": before, "data": "a"})
    assert inputs_sha256(TINY, parameters(**shown).model_dump(), "a") == expected
    assert inputs_sha256(TINY, parameters(start_from="vdm@v1.0.0").model_dump(), "a") != expected


def test_the_model_that_is_written_is_the_one_that_is_kept(tmp_path: Path) -> None:
    kept, last = VDM(**TINY), VDM(**TINY)
    trainer: Any = SimpleNamespace(kept=kept, averaged=last, model=last)
    fitting.write_model(trainer, TINY, parameters(), "0" * 64, tmp_path / "model")
    written = open_model(tmp_path / "model")
    assert torch.equal(written.vdm.network.conv_in.weight, kept.network.conv_in.weight)
    assert written.fitted_to == "train"


def test_images_that_would_fill_half_of_the_card_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 900))
    card = torch.device("cuda")
    assert [keep_on_device("auto", size, card) for size in (49, 50)] == [True, False]
    assert [keep_on_device(choice, 99, card) for choice in ("host", "device")] == [False, True]
    assert keep_on_device("auto", 99, CPU)


def test_no_test_image_is_trained_on() -> None:
    train, validation, test = (np.arange(first, first + 4, dtype=np.uint8).reshape(4, 1, 1, 1) for first in (0, 4, 8))
    images = set_of(12, train=train, validation=validation, test=test)
    assert fitting.pixels_to_fit(images, "train").ravel().tolist() == [0, 1, 2, 3]
    assert fitting.pixels_to_fit(images, "train_and_validation").ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_only_what_says_so_is_an_error_of_memory() -> None:
    for said in (
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "NCCL error in: init.cpp:5, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried",
    ):
        assert out_of_memory(RuntimeError(said))
    for said in ("CUDA error: ECC", "process 1 of 2 was killed by SIGKILL (out of memory?)"):
        assert not out_of_memory(RuntimeError(said))


def test_a_model_that_cannot_be_trained_is_refused() -> None:
    settings = fitting.resolve(parameters(augmentation=["swap_channels"]), CPU)
    with pytest.raises(UserError, match="parameters `model` and `train`: swap_channels") as raised:
        fitting.build(TINY, settings, torch.zeros(64, 1, 8, 8, dtype=torch.uint8), None)
    assert raised.value.code is Exit.USAGE
