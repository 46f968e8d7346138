"""The benchmarks that start programs run, at the smallest sizes, and say on which machine and at which commit."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from project import ROOT

from benchmarks import equal_minutes, speed
from flows.images.image_set import save_images

MACHINE = {"device", "threads", "torch", "python", "commit"}


@pytest.mark.parametrize(
    "command",
    [
        ["registry", "--versions", "2", "--commands", "models"],
        ["many_images", "--images", "--pictures", "2000"],
        ["app", "--requests", "4", "--clients", "2", "--steps", "2", "--seconds", "0"],
    ],
    ids=" ".join,
)
def test_a_benchmark_prints_its_figures_and_the_machine(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *options = command
    monkeypatch.chdir(ROOT if module == "app" else tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *options, "--json"])
    import_module(f"benchmarks.{module}").main()
    assert json.loads(capsys.readouterr().out).keys() > MACHINE


@pytest.mark.needs("PEERS")
@pytest.mark.parametrize("peer", ["addtt", "bsi", "google"])
def test_a_peer_is_measured_and_trains(
    peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers, rng = Path(os.environ["PEERS"]), np.random.default_rng(0)
    which = ["--peer", peer, "--checkout", str(peers / peer), "--peer-python", str(peers / "jax/bin/python")]
    splits = {name: rng.integers(256, size=(8, 1, 28, 28), dtype=np.uint8) for name in ("train", "validation", "test")}
    save_images(tmp_path / "images", splits, {"name": "any", "num_levels": 256})
    monkeypatch.chdir(ROOT)
    small = ["--preset", "fashion_mnist", "--width", "32", "--blocks", "1", "--batch-size", "4"]
    monkeypatch.setattr(sys, "argv", ["speed", "train", *small, "--seconds", "0", "--rounds", "1", *which, "--json"])
    speed.main()
    found = json.loads(capsys.readouterr().out)
    assert 0.9 < found["operations_ratio"] < 1.1
    times = ["--minutes", "0.01", "--points", "1", "--num-images", "2", "--times-per-image", "1", "--seeds", "0"]
    recipe = ["--peer-batch-size", "4", "--peer-learning-rates", "1e-3"]
    options = ["--images", str(tmp_path / "images"), *times, *recipe, *which, "--json"]
    monkeypatch.setattr(sys, "argv", ["equal_minutes", *options])
    equal_minutes.main()
    assert [row["who"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["ours", "peer"]
