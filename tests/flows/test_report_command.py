"""`vdmctl report`: the results that it finds, the files that it writes, and its errors."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from documents import Document, words
from project import ROOT, run_vdmctl
from results import write_results
from small import training_json

from flows.core import layout
from flows.core.model import save_model
from vdm.model import VDM

Vdmctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def vdmctl(tmp_path: Path, digits: np.ndarray) -> Vdmctl:
    """Return a function that runs `vdmctl report` in a folder with results."""
    write_results(tmp_path, digits)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copyfile(ROOT / "presets" / "digits.yaml", tmp_path / "params.yaml")
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    return lambda *arguments: run_vdmctl(tmp_path, {}, "report", *arguments)


@pytest.mark.slow
def test_an_existing_file_is_kept_unless_it_is_the_stages_output(vdmctl: Vdmctl, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    refused = vdmctl("--out", "page.html")
    assert (refused.returncode, refused.stderr) == (2, "vdmctl: page.html exists; --force overwrites it\n")
    assert (tmp_path / "page.html").read_text() == "mine"
    assert vdmctl("--out", "page.html", "--force").returncode == 0
    for _ in range(2):
        assert vdmctl("--out", "reports/report.html").returncode == 0
    assert (tmp_path / "reports/report.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert len(list((tmp_path / "reports/pictures").iterdir())) == 6
    refused = vdmctl("models/vdm", "--out", "reports/report.html", "--force")  # not the stage
    assert refused.returncode == 2
    assert "reports/report.html is an output of the pipeline; choose another place" in refused.stderr


@pytest.mark.slow
def test_a_model_folder_has_results_of_its_own(vdmctl: Vdmctl, tmp_path: Path, tiny_model: Callable[..., VDM]) -> None:
    """They are those that `vdmctl evaluate --out` wrote; without them, those of the same model in the workspace."""
    model = tmp_path / "my model"
    save_model(model, tiny_model(), TINY)
    for place in (layout.NOISE_LEVELS, layout.PER_IMAGE):  # the charts take most of a page's time
        (tmp_path / str(place)).unlink()
    result = vdmctl("my model", "--out", "page.html")
    advice = "run `vdmctl evaluate 'my model' --out 'my model/evaluation'`"
    assert (result.returncode, result.stderr) == (5, f"vdmctl: my model: not evaluated yet; {advice}\n")
    written = json.loads((tmp_path / layout.METRICS).read_text())
    own_metrics = model / "evaluation/metrics.json"
    own_metrics.parent.mkdir()
    own_metrics.write_text(json.dumps(written))
    result = vdmctl("my model", "--out", "page.html")
    error = f"vdmctl: my model/evaluation/metrics.json is about another model; {advice}\n"
    assert (result.returncode, result.stderr) == (5, error)
    own = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    own_metrics.write_text(json.dumps(written | {"model_sha256": own}))
    assert vdmctl("my model", "--out", "page.html").returncode == 0
    text = words(Document((tmp_path / "page.html").read_text()).text)
    assert text.count("image_shape") == 1  # of the images, and not a parameter of the model
    assert "There is no training log" in text
    assert "width 8" in text
    assert "vdmctl evaluate 'my model' --out 'my model/evaluation'" in text
    (tmp_path / layout.METRICS).write_text(json.dumps(written | {"model_sha256": own}))
    own_metrics.unlink()
    assert vdmctl("my model", "my model", "--out", "two.html").returncode == 0
    text = words(Document((tmp_path / "two.html").read_text()).text)
    assert "Loss while training" in text
    assert "my model, first" in text


@pytest.mark.slow
def test_a_copied_folder_has_a_whole_page_elsewhere(vdmctl: Vdmctl, tmp_path: Path) -> None:
    """With its training log, and with the folders of `reports` that were copied into it: even without the images."""
    model = tmp_path / "copy"
    shutil.copytree(tmp_path / "models/vdm", model)
    shutil.copytree(tmp_path / "reports", model, dirs_exist_ok=True)
    (model / "training.json").write_text(training_json({"train": {"steps": 2601, "keep": "best"}}))
    for folder in ("reports", "data"):
        shutil.rmtree(tmp_path / folder)
    result = vdmctl("copy", "--out", "page.html")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "page.html").read_text()
    text = words(Document(page).text)
    for part in ("Loss while training", "Noise schedule", "16 samples, not selected", "From noise to images",
                 "Fréchet distance", "weights of step 20", "2601"):  # fmt: skip
        assert part in text
    assert page.count('class="chart"') == 6


@pytest.mark.slow
def test_the_model_that_the_repository_has_brings_its_results(vdmctl: Vdmctl, tmp_path: Path) -> None:
    """All but its training log, which nobody has."""
    result = vdmctl(str(ROOT / "pretrained/fashion_mnist_cpu"), "--out", "page.html")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "page.html").read_text()
    text = words(Document(page).text)
    for part in ("49 samples, not selected", "Parameters 336,644", "From noise to images", "There is no training log",
                 "10,000 test"):  # fmt: skip
        assert part in text
    assert page.count('class="chart"') == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["models/vdm"], 2, "a model and --force need --out FILE"),
        (["--force"], 2, "a model and --force need --out FILE"),
        (["--json", "--out", "x.html"], 2, "--json prints the metrics"),
        (["a", "b", "c", "--out", "x"], 2, "Got unexpected extra argument"),
        (["--out", "params.yaml/x.html"], 5, "params.yaml"),
        (["--out", "reports", "--force"], 2, "reports: reports/report.html is an output of the pipeline; choose"),
        (["nowhere", "--out", "x.html"], 5, "nowhere: no model folder, since it has no config.json"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    arguments: list[str], code: int, message: str, vdmctl: Vdmctl, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = vdmctl(*arguments)
    assert (result.returncode, result.stderr.count("\n")) == (code, 1)
    assert result.stderr.startswith(f"vdmctl: {message}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_of_the_pipeline_is_evaluated_by_its_stage(
    vdmctl: Vdmctl, tmp_path: Path, tiny_model: Callable[..., VDM]
) -> None:
    save_model(tmp_path / "models/trained", tiny_model(), TINY)  # not the model of the workspace's results
    result = vdmctl("models/trained", "--out", "page.html")
    advice = "run `dvc repro evaluate`"
    assert (result.returncode, result.stderr) == (5, f"vdmctl: models/trained: not evaluated yet; {advice}\n")


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False])
def test_the_parameters_of_the_lock_are_shown_only_if_its_stages_made_the_results(
    recorded: bool, vdmctl: Vdmctl, tmp_path: Path
) -> None:
    """`vdmctl evaluate` without DVC takes those of params.yaml.  A page without the model says so."""
    md5 = hashlib.md5((tmp_path / layout.METRICS).read_bytes()).hexdigest() if recorded else "0" * 32
    stage = {
        "cmd": "vdmctl evaluate",
        "params": {"params.yaml": {"evaluate": {"batch_size": 98765}}},
        "outs": [{"path": str(layout.METRICS), "hash": "md5", "md5": md5}],
    }
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"evaluate": stage}}))
    for place in (layout.CURVES, layout.NOISE_LEVELS, layout.PER_IMAGE):  # the charts take most of a page's time
        (tmp_path / str(place)).unlink()
    shutil.rmtree(tmp_path / "models/vdm")
    result = vdmctl("--out", "page.html")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "page.html").read_text()
    assert ("98765" in page) is recorded
    assert "The model is not here" in page
