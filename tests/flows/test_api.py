"""The functions for Python: the README's program runs, results are those of `vdmctl`, and what cannot be is refused."""

import json
import re
import shutil
import time
import tomllib
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from project import ROOT
from small import Small
from trainings import same_bits

from flows.api import classify, compare, compress, decompress, evaluate, fill_in, load, sample, save, train
from flows.cli import run
from flows.core.errors import Exit, UserError
from flows.core.model import open_model, save_model
from flows.core.params_file import PACKAGED, preset_names
from flows.images.image_set import open_images
from vdm.model import VDM
from vdm.sampling import Solver
from vdm.training.settings import TrainingSettings


@pytest.mark.slow
def test_the_program_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    program = re.search(r"## In Python\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program
    assert program[1].count("\n") <= 10
    names: dict[str, Any] = {}
    exec(program[1].replace("model, 16", "model, 4"), names)
    assert re.fullmatch(r"[1-4]\.\d{3} \+- 0\.\d{3} bits/dim\n", capsys.readouterr().out)
    assert (names["images"].shape, names["images"].dtype) == ((4, 1, 28, 28), np.uint8)
    (known,) = names["images"][:1, :, ~names["missing"]]
    assert (names["filled"][:, :, ~names["missing"]] == known).all()
    assert (names["filled"][0] != names["images"][0]).any()


@pytest.fixture
def seconds_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two seconds be enough to train, however slow a step is beside other tests."""
    monkeypatch.setattr("flows.training.arrays.LEAST_STEPS", 1)


@pytest.mark.slow
def test_the_program_in_the_documentation_runs(
    seconds_suffice: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seconds stand for its minutes, and fewer images for its own."""
    monkeypatch.chdir(tmp_path)
    program = re.search(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert program
    assert len([line for line in program[1].splitlines() if line]) <= 30
    quick = program[1]
    fewer = ("minutes=5", 2, "minutes=0.03"), ("test[:50]", 1, "test[:5]"), ("images[:300]", 1, "images[:40]")
    for text, count, instead in fewer:
        assert quick.count(text) == count
        quick = quick.replace(text, instead)
    exec(quick, {})
    said = r"[1-9]\.\d{3} \+- 0\.\d{3} bits/dim\nimage \d+ is .*\ntraining on .* between -?\d\.\d{3} and .*\n"
    assert re.fullmatch(said, capsys.readouterr().out)
    written = ["drawn.npy", "filled.npy", "models", "test.vdmz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    assert run(["decompress", "test.vdmz", "models/mine", "--out", "decoded"]) == Exit.DONE


def test_the_results_are_those_of_vdmctl(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = load("models/vdm", device="cpu"), open_images(Path("data/images"))
    assert run(["evaluate", "models/vdm", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["bpd"] == evaluate(model, images["test"], times_per_image=2).bpd.mean()
    options = ["-n", "5", "--steps", "25", "--seed", "3", "--device", "cpu", "--force", "--out"]
    assert run(["sample", "models/vdm", *options, "drawn.npy"]) == Exit.DONE
    np.testing.assert_array_equal(sample(model, 5, seed=3), np.load("drawn.npy"))
    np.save("known.npy", images["test"][0, 0])
    np.save("mask.npy", np.tri(8, dtype=np.uint8))
    assert run(["sample", "models/vdm", "--known", "known.npy", "--mask", "mask.npy", *options, "drawn.npy"]) == 0
    filled = fill_in(model, images["test"][0], np.tri(8, dtype=bool), 5, seed=3)
    np.testing.assert_array_equal(filled, np.load("drawn.npy"))


def test_classes_and_differences_are_those_of_vdmctl(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    images = open_images(Path("data/images"))["test"][:4]
    np.save("images.npy", images)
    config = TINY | {"classes": 3}
    for seed, folder in enumerate(("first", "second")):
        torch.manual_seed(seed)
        network = VDM(**config)  # type: ignore[arg-type]
        for parameter in network.network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        save_model(Path(folder), network, config)
    first, second = load("first", device="cpu"), load("second", device="cpu")
    assert run(["classify", "images.npy", "first", "--times", "3", "--json"]) == Exit.DONE
    said = json.loads(capsys.readouterr().out)
    found = classify(first, images, times_per_image=3)
    assert (said["best"], said["probabilities"]) == (found.best.tolist(), found.probabilities.tolist())
    assert run(["compare", "first", "second", "--json"]) == Exit.DONE
    said = json.loads(capsys.readouterr().out)
    paired = compare(first, second, open_images(Path("data/images"))["test"], times_per_image=2)
    assert (said["difference_bpd"], said["confidence_interval"]) == (paired.difference, [*paired.interval])
    classes = np.arange(4) % 3
    given = [evaluate(first, images, labels=labels, times_per_image=2).bpd for labels in (None, classes)]
    assert (given[0] != given[1]).all()


def test_compressed_images_are_files_of_vdmctl(small: Small) -> None:
    model, images = load("models/vdm", device="cpu"), open_images(Path("data/images"))["test"][:6]
    content = compress(model, images, num_timesteps=3)
    np.testing.assert_array_equal(decompress(model, content), images)
    Path("images.vdmz").write_bytes(content)
    assert run(["decompress", "images.vdmz", "models/vdm", "--out", "decoded", "--device", "cpu"]) == Exit.DONE
    np.testing.assert_array_equal(np.load("decoded/images.npy"), images)
    other = train(images, steps=1, start_from=model, device="cpu")
    with pytest.raises(UserError, match=r"encoded with the model .*, and a model in memory is"):
        decompress(other, content)


@pytest.mark.slow
def test_a_training_lowers_the_bound_and_only_save_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "TMPDIR", "XDG_STATE_HOME", "VDM_LOCK_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"num_levels": 17, "device": "cpu"}
    random = torch.get_rng_state()
    model, short = (train(digits[:200], steps=steps, **options) for steps in (40, 2))
    assert capsys.readouterr().err == ""  # it is no terminal
    torch.testing.assert_close(torch.get_rng_state(), random)
    torch.rand(1)
    assert same_bits(short.state_dict(), train(digits[:200], steps=2, **options).state_dict())
    assert not model.training
    assert compare(short, model, digits[200:220], times_per_image=2).difference < -1
    assert list(tmp_path.iterdir()) == []
    save(model, "models/mine")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "mine", "models", "weights.safetensors"]
    again = load("models/mine", device="cpu")
    assert same_bits(again.state_dict(), model.state_dict())
    np.testing.assert_array_equal(decompress(again, compress(model, digits[:9], num_timesteps=2)), digits[:9])
    with pytest.raises(UserError, match="models/mine exists; save the model, which is still in memory, into another"):
        save(short, "models/mine")
    save(short, "models/mine", overwrite=True)
    assert same_bits(load("models/mine", device="cpu").state_dict(), short.state_dict())
    with pytest.raises(UserError, match="models is no model, so it is not overwritten; name another folder"):
        save(short, "models", overwrite=True)
    other = Path("thesis")
    other.mkdir()
    (other / "config.json").write_text("{}")  # of another program
    with pytest.raises(UserError, match="thesis is no model, so it is not overwritten; name another folder"):
        save(short, other, overwrite=True)
    Path("models/mine/notes").mkdir()
    Path("models/mine/metrics.json").write_text("{}")
    reason = "models/mine is not overwritten, since it holds more than a model: .metrics.json., .notes.; name another"
    with pytest.raises(UserError, match=reason):
        save(short, "models/mine", overwrite=True)
    assert (other / "config.json").exists()
    assert Path("models/mine/notes").exists()


@pytest.mark.slow
def test_minutes_are_spent_and_the_learning_rate_falls_over_all_of_them(
    monkeypatch: pytest.MonkeyPatch, digits: np.ndarray
) -> None:
    """Here a step is said to take 0.1 s, which leaves 60 s for 600 steps."""
    monkeypatch.setattr("flows.training.arrays.time_steps", lambda *_, seconds, source: (0.1, 0.1))
    trained = []

    def build(config: dict[str, Any], settings: TrainingSettings, *_: Any, **__: Any) -> None:
        trained.append(settings)
        raise InterruptedError

    monkeypatch.setattr("flows.training.arrays.build", build)
    with pytest.raises(InterruptedError):
        train(digits, minutes=1, num_levels=17)
    (settings,) = trained
    assert 590 <= settings.steps <= 600
    assert (settings.warmup_steps, settings.learning_rate_decay) == (settings.steps // 10, "linear")
    assert settings.batch_size == 32  # 64 images would take too long for 1,000 steps
    with pytest.raises(ValueError, match=r"0\.01 minutes are too few: a step takes 0\.1 s"):
        train(digits, minutes=0.01, num_levels=17)


@pytest.mark.slow
def test_steps_that_are_faster_than_those_measured_are_more(
    monkeypatch: pytest.MonkeyPatch, digits: np.ndarray
) -> None:
    """Ten steps of 0.1 s would take the second; here they take a tenth of it."""
    monkeypatch.setattr("flows.training.arrays.time_steps", lambda *_, seconds, source: (0.1, 0.1))
    began = time.monotonic()
    train(digits[:64], minutes=1.01 / 60, num_levels=17, device="cpu")
    assert time.monotonic() - began > 0.9


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_a_progress_bar_is_for_a_terminal(monkeypatch: pytest.MonkeyPatch, digits: np.ndarray) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    train(digits[:64], steps=40, num_levels=17, device="cpu")
    assert re.search(r"training: .* \d\.\d{4} bits/dim", terminal.getvalue())


@pytest.mark.slow
def test_seconds_suffice_for_a_model_of_own_classes(seconds_suffice: None, digits: np.ndarray) -> None:
    images = digits[:64].repeat(2, 2).repeat(2, 3)
    model = train(images, minutes=0.03, labels=np.arange(64) % 3, num_levels=17)
    assert (model.image_shape, model.num_levels, model.classes) == ((1, 16, 16), 17, 3)
    drawn = sample(model, 2, solver=Solver(num_timesteps=2, classes=[2], guidance=2.0))
    assert drawn.shape == (2, 1, 16, 16)


@pytest.mark.slow
def test_training_goes_on_from_a_model_and_leaves_it_as_it_is(small: Small) -> None:
    shutil.copytree(ROOT / "pretrained/digits_classes", "first")
    labels = np.arange(60) % 10
    model, images = load("first", device="cpu"), open_images(Path("data/images"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    as_it_is = train(images["train"], labels=labels, steps=2, learning_rate=1e-12, start_from=model)
    assert same_bits(model.state_dict(), before)
    assert all(torch.allclose(value, before[name], rtol=0, atol=1e-6) for name, value in as_it_is.state_dict().items())
    bpd = [evaluate(each, images["test"], times_per_image=2).bpd.mean() for each in (model, as_it_is)]
    assert bpd[0] == pytest.approx(bpd[1], abs=1e-4)
    save(as_it_is, "second")
    opened = open_model(Path("first"))
    assert open_model(Path("second")).line[1:] == opened.line
    assert opened.line[0].licence
    save(model, "copy")
    for name in ("config.json", "weights.safetensors", "training.json"):
        assert Path("copy", name).read_bytes() == Path("first", name).read_bytes()


def test_a_model_whose_weights_were_changed_is_another_one(small: Small) -> None:
    model = load("models/vdm", device="cpu")
    with torch.no_grad():
        next(model.network.parameters()).add_(1)
    save(model, "changed")
    assert same_bits(load("changed", device="cpu").state_dict(), model.state_dict())
    assert open_model(Path("changed")).line[1:] == open_model(Path("models/vdm")).line


def of_levels(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


IMAGES = of_levels(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (IMAGES.tolist(), {}, TypeError, "images must be a NumPy array, got list; numpy.asarray makes one"),
        (IMAGES / 2, {}, TypeError, "got float64; (255 * images).round().astype('uint8') makes levels of 0 to 1"),
        (IMAGES[:, 0], {}, ValueError, "got (4, 8, 8); images[:, None] adds the channel"),
        (IMAGES[:0], {}, ValueError, "images must have the shape (N,C,H,W) and be at least one, got (0, 1, 8, 8)"),
        (of_levels(4, 8, 8, 3), {}, ValueError, "images.transpose(0, 3, 1, 2) puts the channels before height"),
        (IMAGES + 17, {"num_levels": 17}, ValueError, "the levels of 17 are 0 to 16, got 17 to 17; set num_levels"),
        (IMAGES, {"minutes": 0}, ValueError, "minutes and steps must be above 0, got 0"),
        (IMAGES, {"minutes": float("nan")}, ValueError, "minutes and steps must be above 0, got nan"),
        (IMAGES, {"minutes": None}, ValueError, "say how long to train: either `minutes` or `steps`"),
        (IMAGES, {"steps": 3}, ValueError, "say how long to train: either `minutes` or `steps`"),
        (IMAGES, {"labels": [0, 1, 0, 1]}, TypeError, "labels must be a NumPy array of integers, classes from 0"),
        (IMAGES, {"labels": np.ones(4)}, TypeError, "labels must be a NumPy array of integers, classes from 0"),
        (IMAGES, {"labels": np.arange(3)}, ValueError, "labels must have one class for each of 4 images, got (3,)"),
        (IMAGES, {"labels": np.arange(4) - 1}, ValueError, "labels must be classes from 0, got -1 to 2"),
        (IMAGES, {"preset": "digits_classes"}, ValueError, "the preset digits_classes has classes; give `labels`"),
        (IMAGES, {"preset": "none"}, UserError, "no preset 'none': cifar10, "),
        (IMAGES, {"learning_rate": -1.0}, ValueError, "learning_rate must be above 0"),
        (IMAGES, {"device": "cuda:77"}, UserError, "set others, or device: cpu"),
    ],
)
def test_what_nothing_can_be_trained_on_is_one_error(
    images: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as raised:
        train(images, **{"minutes": 1, "num_levels": 256} | options)
    assert "\n" not in str(raised.value)


def test_a_model_takes_only_images_and_classes_like_its_own(small: Small) -> None:
    model = load("models/vdm", device="cpu")
    for wrong, message in (
        ({"num_levels": 256}, r"images must have the shape and the levels of start_from"),
        ({"labels": np.arange(4)}, "labels must be classes from none, got 0 to 3"),
    ):
        with pytest.raises(ValueError, match=message):
            train(IMAGES, steps=2, start_from=model, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images must have the shape and the levels of start_from"):
        train(of_levels(4, 1, 6, 6), steps=2, start_from=model)
    with pytest.raises(ValueError, match="labels must be classes from none"):
        evaluate(model, IMAGES, labels=np.arange(4))
    with pytest.raises(ValueError, match="labels must be classes from none"):
        evaluate(model, IMAGES, np.arange(4))
    with pytest.raises(ValueError, match="the model has no classes; give `train` the labels"):
        classify(model, IMAGES)
    with pytest.raises(TypeError, match="a model from `load` or `train` is needed, got VDM"):
        save(VDM(**TINY), "nowhere")  # type: ignore[arg-type]
    assert not Path("nowhere").exists()


def test_less_than_one_image_time_or_step_is_one_error(small: Small) -> None:
    model = load("models/vdm", device="cpu")
    none: dict[str, list[Callable[[], object]]] = {
        "num_images": [lambda: sample(model, 0), lambda: fill_in(model, IMAGES[0], np.ones((8, 8), bool), 0)],
        "times_per_image": [
            lambda: evaluate(model, IMAGES, times_per_image=0),
            lambda: compare(model, model, IMAGES, times_per_image=0),
        ],
        "num_timesteps": [
            lambda: evaluate(model, IMAGES, num_timesteps=0),
            lambda: compress(model, IMAGES, num_timesteps=0),
            lambda: sample(model, 1, solver=Solver(num_timesteps=0)),
        ],
    }
    for name, calls in none.items():
        for call in calls:
            with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1, got 0$"):
                call()


def test_levels_that_are_not_stated_are_256_and_doubted_if_few_are_there(caplog: pytest.LogCaptureFixture) -> None:
    assert train(IMAGES + 200, steps=1).num_levels == 256
    assert "levels" not in caplog.text
    train(IMAGES + 16, steps=1)
    assert "the highest level is 16, and the model gets 256 levels; if these images have fewer, say num_levels=17" in (
        caplog.text
    )


def test_the_package_has_the_presets() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert packaged["flows"] == ["presets/*.yaml", "py.typed"]
    assert preset_names(PACKAGED) == preset_names(ROOT / "presets")


def test_a_model_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="nowhere: no such folder, and not a version such as") as error:
        load("nowhere")
    assert error.value.code is Exit.MISSING
