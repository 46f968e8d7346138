"""Every benchmark runs, at the smallest sizes, and says on which machine and at which commit.

Those that start programs are in tests/soak.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY
from project import ROOT

from benchmarks import continuing, equal_minutes, gpu_day, preset_params, surprise
from flows.core.files import write_whole
from flows.core.model import open_model, save_model
from flows.evaluation.calibration import calibrate
from flows.images.image_set import open_images, save_images
from flows.training.fitting import build
from vdm.model import VDM
from vdm.training.trainer import Trainer

MACHINE = {"device", "threads", "torch", "python", "commit"}
SMALL = ["--preset", "digits", "--width", "16", "--blocks", "1"]
QUICK = ["--seconds", "0", *SMALL, "--batch-size", "8"]
DIFFUSERS = ["--who", "peer", "--peer", "diffusers"]
NEEDS_DIFFUSERS = pytest.mark.needs("diffusers")


@pytest.fixture
def small(tmp_path: Path, digits: np.ndarray) -> Path:
    """Return a folder with a few digits and a tiny model."""
    splits = {"train": digits[:80], "validation": digits[80:90], "test": digits[90:99]}
    save_images(tmp_path / "images", splits, {"name": "digits", "num_levels": 17})
    save_model(tmp_path / "model", VDM(**TINY), TINY)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["speed", "train", *QUICK, "--num-devices", "1"],
        ["speed", "evaluate", *QUICK, "--preset", "digits_classes"],
        ["speed", "sample", *QUICK, "--num-timesteps", "3"],
        ["speed", "profile", *QUICK],
        *(
            ["likelihood", what, "--images", "images", "--steps", "4", "--repeats", "2", "--count", "2"]
            for what in ("variance", "error")
        ),
        ["compression", "--model", "model", "--images", "images", "--count", "5", "--steps", "1"],
        ["judging", "--comparisons", "20"],
        ["few_steps", "--model", "model", "--images", "images", "--steps", "2", "--levels", "4", "--times", "4"],
        ["sixteen_bits", "time", "--repeats", "1"],
        ["contract", "--sets", "digits", "--rows", "a class missing, test"],
        *(
            pytest.param(
                ["speed", what, *QUICK, "--num-timesteps", "3", *DIFFUSERS], marks=pytest.mark.needs("diffusers")
            )
            for what in ("train", "evaluate", "sample", "profile")
        ),
        ["gpu_day", *QUICK, "--rows", "evaluate", "train, bfloat16, graphs", "--minutes", "0.001", "--out", "day"],
    ],
    ids=" ".join,
)
def test_a_benchmark_prints_its_figures_and_the_machine(
    command: list[str], small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *options = command
    monkeypatch.chdir(ROOT if module == "contract" else small)
    monkeypatch.setattr(sys, "argv", [module, *options, "--json"])
    import_module(f"benchmarks.{module}").main()
    assert json.loads(capsys.readouterr().out).keys() > MACHINE


def test_ours_trains_and_the_curves_are_compared(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The peer's curve is ours, and a quarter of a bit worse, or a half: peers are not on the machine of the tests."""
    params = preset_params("digits", model={"width": 16, "blocks": 1}, train={"num_devices": 1})
    equal_minutes.train_part(params, small / "images", 0.005, 2, small / "ours")
    options = ["--images", str(small / "images"), "--plot", str(small / "curves.svg"), "--json"]
    chosen = equal_minutes.parser().parse_args(options)
    points = equal_minutes.measured(small / "ours", chosen)
    worse = [point | {"per_image": point["per_image"] + 0.25} for point in points]
    worst = [point | {"per_image": point["per_image"] + 0.5} for point in points]
    curves = {("ours", 0, 0.0): points, ("peer", 0, 2e-4): worst, ("peer", 0, 1e-3): worse}
    equal_minutes.report(curves, chosen)
    figures = json.loads(capsys.readouterr().out)
    assert figures["peer_learning_rate"] == 1e-3
    assert figures["peer_minus_ours_bpd"] == pytest.approx(0.25)
    assert (small / "curves.svg").stat().st_size > 0


def test_ours_stops_by_the_clock_and_its_learning_rate_ends_then(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps become slower: the first 10 take a second each, later ones three."""
    params = preset_params("digits", model={"width": 16, "blocks": 1}, train={"num_devices": 1, "warmup_steps": 2})
    runs: list[Trainer] = []
    monkeypatch.setattr(equal_minutes, "build", lambda *given: runs.append(build(*given)) or runs[-1])
    clock = SimpleNamespace(perf_counter=lambda: sum(1 if step < 10 else 3 for step in range(runs[-1].done)))
    monkeypatch.setattr(equal_minutes, "time", clock)
    equal_minutes.train_part(params, small / "images", 2.0, 2, small / "ours")
    run = runs[-1]
    points = json.loads((small / "ours/points.json").read_text())
    assert [point["steps"] for point in points] == [27, 47]
    assert points[-1]["minutes"] == pytest.approx(2.0, rel=0.03)
    assert run.learning_rate(run.done - 1) == pytest.approx(0, abs=0.05 * params.train.learning_rate)


@NEEDS_DIFFUSERS
def test_a_peer_trains_and_its_better_weights_count(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--peer", "diffusers", "--peer-batch-size", "8", "--minutes", "0.005", "--points", "2"]
    monkeypatch.setattr(
        equal_minutes, "preset_params", lambda _: preset_params("digits", model={"width": 16, "blocks": 1})
    )
    chosen = equal_minutes.parser().parse_args([*options, "--images", str(small / "images")])
    equal_minutes.train_peer(chosen, 0, 1e-3, small / "peer")
    points = equal_minutes.measured(small / "peer", chosen)
    assert len(points) == 2
    weights = [np.load(small / "peer/1" / f"{name}.npy") for name in ("averaged", "last")]
    assert points[-1]["bpd"] == min(np.mean(each) for each in weights)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "--peer bsi needs a checkout of martenlienen/bsi; --checkout is missing"),
        (["--checkout", "."], "--peer bsi needs a checkout of martenlienen/bsi; --checkout . is none: it has no bsi/"),
    ],
)
@pytest.mark.parametrize("module", ["speed", "equal_minutes"])
def test_a_peer_says_what_it_needs(
    module: str, given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"speed": ["train", *QUICK], "equal_minutes": ["--images", "."]}[module]
    monkeypatch.setattr(sys, "argv", [module, *options, "--peer", "bsi", *given])
    with pytest.raises(SystemExit, match="2"):
        import_module(f"benchmarks.{module}").main()
    assert said in capsys.readouterr().err


def test_continuing_begins_with_the_model_of_half_of_the_images_and_is_resumed(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"device": "cpu", "num_devices": 1, "steps": 4, "validate_every_steps": 2, "batch_size": 8}
    params = preset_params("digits", model={"width": 16, "blocks": 1}, train=train, evaluate={"times_per_image": 1})
    images = open_images(small / "images")
    half, noise, continued = continuing.choices(continuing.Trainings(params, images, small / "done"), [(1e-12, 2)])
    assert [row["training"] for row in (half, noise, continued)] == [
        "half-2-0.01-0",
        "noise-4-0.01-0",
        "continued-2-1e-12-0",
    ]
    assert continued["bpd"] == pytest.approx(half["bpd"], abs=1e-5)
    assert continued["minus_noise_bpd"] == pytest.approx(continued["bpd"] - noise["bpd"])
    rows = [*continuing.compared(continuing.Trainings(params, images, small / "done"), 1e-12, 2, seeds=2)]
    assert [row["training"] for row in rows[-3:]] == ["noise, 2 seeds", "half, 2 seeds", "continued, 2 seeds"]
    assert rows[-1]["bpd"] == pytest.approx(np.mean([rows[2]["bpd"], rows[5]["bpd"]]))
    monkeypatch.setattr(continuing.Trainings, "trained", None)  # all is done
    assert [*continuing.compared(continuing.Trainings(params, images, small / "done"), 1e-12, 2, seeds=2)] == rows


def test_a_training_that_continues_has_the_same_losses_and_bfloat16_similar_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_day", "losses", *QUICK, "--json"])
    gpu_day.main()
    found = json.loads(capsys.readouterr().out)
    assert found["continued_from_whole"] == 0
    assert 0 < found["bfloat16_from_float32"] < 0.3
    assert 0 < abs(found["evaluated_bfloat16_minus_float32"]) < 0.1


def test_foreign_images_are_told_from_test_images(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = preset_params("digits", evaluate={"device": "cpu"}).evaluate
    kept = calibrate(settings, open_model(small / "model"), open_images(small / "images"))
    write_whole(small / "model/evaluation/calibration.json", kept.as_json())
    monkeypatch.chdir(small)
    sizes = ["--count", "4", "--tested", "6", "--times", "1"]
    monkeypatch.setattr(sys, "argv", ["surprise", "sets", "--model", "model", "--images", "images", *sizes, "--json"])
    surprise.main()
    found = json.loads(capsys.readouterr().out)
    areas = {row["set"]: row["ours"] for row in found["rows"]}
    assert areas.keys() == surprise.CHANGES.keys()
    assert areas["uniform noise"] == 1
    assert surprise.auroc(np.array([1.0, 2.0]), np.array([0.0, 1.0]))[0] == 7 / 8
