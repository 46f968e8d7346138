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
from results import PLACES, write_results

from flows.core.checkpoint import save_model
from vdm.model import VDM


@pytest.fixture
def vdmctl(tmp_path: Path, digits: np.ndarray) -> Callable[..., subprocess.CompletedProcess[str]]:
    write_results(tmp_path, digits)
    shutil.copyfile(ROOT / "presets" / "digits.yaml", tmp_path / "params.yaml")
    return lambda *arguments: run_vdmctl(tmp_path, {}, "report", *arguments)


@pytest.mark.slow
def test_an_existing_file_is_kept_unless_it_is_the_stages_output(
    vdmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text("mine")
    refused = vdmctl("--out", "page.html")
    assert (refused.returncode, refused.stderr) == (2, "vdmctl: page.html exists; --force overwrites it\n")
    assert (tmp_path / "page.html").read_text() == "mine"
    assert vdmctl("--out", "page.html", "--force").returncode == 0
    for _ in range(2):
        assert vdmctl("--out", "reports/report.html").returncode == 0
    assert (tmp_path / "reports/report.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert len(list((tmp_path / "reports/pictures").iterdir())) == 4
    assert vdmctl("models/vdm", "--out", "reports/report.html").returncode == 2  # not the stage


@pytest.mark.slow
def test_a_model_folder_has_results_of_its_own(
    vdmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, tiny_model: Callable[..., VDM]
) -> None:
    """They are those that `vdmctl evaluate --out` wrote; without them, those of the same model in the workspace."""
    model = tmp_path / "my model"
    model.mkdir()
    result = vdmctl("my model", "--out", "page.html")
    assert (result.returncode, result.stderr) == (
        *(5, "vdmctl: my model: no model folder, since it has no config.json\n"),
    )
    (model / "config.json").write_bytes(bytes(2**27))
    result = vdmctl("my model", "--out", "page.html")
    assert result.returncode == 5
    assert result.stderr.startswith("vdmctl: my model/config.json: larger than 1,048,576 bytes, the limit")
    save_model(model, tiny_model(), TINY)
    for place in (PLACES.noise_levels, PLACES.per_image):  # the charts take most of a page's time
        (tmp_path / str(place)).unlink()
    result = vdmctl("my model", "--out", "page.html")
    advice = "run `vdmctl evaluate 'my model' --out 'my model'`"
    assert result.returncode == 5
    assert result.stderr.startswith(f"vdmctl: my model: not evaluated yet; {advice}, with `--images SET` if its images")
    written = json.loads((tmp_path / PLACES.metrics).read_text())
    (model / "metrics.json").write_text(json.dumps(written))
    result = vdmctl("my model", "--out", "page.html")
    assert (result.returncode, result.stderr) == (
        *(5, f"vdmctl: my model/metrics.json is about another model; {advice}\n"),
    )
    own = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    (model / "metrics.json").write_text(json.dumps(written | {"model_sha256": own}))
    assert vdmctl("my model", "--out", "page.html").returncode == 0
    text = words(Document((tmp_path / "page.html").read_text()).text)
    assert text.count("image_shape") == 1  # of the images, and not a parameter of the model
    assert "There is no training log" in text
    assert "width 8" in text
    assert "--out 'my model' --split test --times-per-image" in text
    (tmp_path / PLACES.metrics).write_text(json.dumps(written | {"model_sha256": own}))
    assert vdmctl("my model", "--out", "page.html", "--force").returncode == 0
    assert "There is no training log" in words(Document((tmp_path / "page.html").read_text()).text)
    (model / "metrics.json").unlink()
    assert vdmctl("my model", "my model", "--out", "two.html").returncode == 0
    text = words(Document((tmp_path / "two.html").read_text()).text)
    assert "Loss while training" in text
    assert "my model, first" in text
    weights = (model / "weights.safetensors").read_bytes()
    (model / "weights.safetensors").write_bytes(weights[:-1])
    result = vdmctl("my model", "--out", "damaged.html")
    assert result.returncode == 5
    assert result.stderr.startswith("vdmctl: my model/weights.safetensors: sha256 differs from the one in config.json")
    assert not (tmp_path / "damaged.html").exists()
    assert vdmctl("my model", "--out", ".").stderr == "vdmctl: . is a folder; name a file, such as report.html\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["models/vdm"], 2, "a model and --force need --out FILE"),
        (["--force"], 2, "a model and --force need --out FILE"),
        (["a", "b", "c", "--out", "x"], 2, "Got unexpected extra argument(s) (c); see `vdmctl report --help`"),
        (["--out", "params.yaml/x.html"], 5, "params.yaml: File exists"),
        (["--out", "reports", "--force"], 2, "reports is a folder; name a file, such as reports/report.html"),
        (["nowhere", "--out", "x.html"], 5, "nowhere: no model folder, since it has no config.json"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    vdmctl: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = vdmctl(*arguments)
    assert (result.returncode, result.stderr) == (code, f"vdmctl: {message}\n")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["champion", "v1.0.0"])
def test_a_folder_called_like_a_version_is_named_as_a_folder(
    name: str,
    vdmctl: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    tiny_model: Callable[..., VDM],
) -> None:
    save_model(tmp_path / name, tiny_model(), TINY)
    result = vdmctl(f"./{name}", "--out", "page.html")
    assert result.returncode == 5
    assert f"run `vdmctl evaluate ./{name} --out ./{name}`" in result.stderr


def test_a_model_of_the_pipeline_is_evaluated_by_the_pipeline(
    vdmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, tiny_model: Callable[..., VDM]
) -> None:
    """`vdmctl evaluate --out` writes into no output of the pipeline."""
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    save_model(tmp_path / "models/trained", tiny_model(), TINY)
    result = vdmctl("models/trained", "--out", "page.html")
    assert result.returncode == 5
    assert result.stderr == "vdmctl: models/trained: not evaluated yet; run `dvc repro evaluate`\n"


def test_no_input_of_the_page_is_replaced(
    vdmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, tiny_model: Callable[..., VDM]
) -> None:
    model = tmp_path / "mine"
    save_model(model, tiny_model(), TINY)
    own = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    written = json.loads((tmp_path / PLACES.metrics).read_text())
    (model / "metrics.json").write_text(json.dumps(written | {"model_sha256": own}))
    for place in (model / "weights.safetensors", model / "metrics.json", tmp_path / "params.yaml"):
        before = place.read_bytes()
        result = vdmctl("mine", "--out", str(place), "--force")
        error = f"vdmctl: {place} exists and is not an HTML page; name another file\n"
        assert (result.returncode, result.stderr) == (2, error)
        assert place.read_bytes() == before
    for _ in range(2):  # a page may have another suffix
        assert vdmctl("mine", "--out", "mine/page", "--force").returncode == 0


@pytest.mark.parametrize("more", [[], ["--force"]])
def test_force_is_not_advised_where_it_is_refused(
    more: list[str], vdmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    place = "reports/report.html"
    (tmp_path / place).write_text("the stage's")
    result = vdmctl("models/vdm", "--out", place, *more)
    line = f"vdmctl: {place}: {place} is an output of the pipeline; choose another place\n"
    assert (result.returncode, result.stderr) == (2, line)


def test_the_command_of_a_page_says_that_the_images_are_others(
    vdmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, tiny_model: Callable[..., VDM]
) -> None:
    save_model(tmp_path / "mine", tiny_model(), TINY)
    own = hashlib.sha256((tmp_path / "mine/config.json").read_bytes()).hexdigest()
    written = json.loads((tmp_path / PLACES.metrics).read_text())
    written |= {"model_sha256": own, "data_sha256": "b" * 64}
    (tmp_path / "mine/metrics.json").write_text(json.dumps(written))
    result = vdmctl("mine", "--out", "page.html")
    assert result.returncode == 0, result.stderr
    text = words(Document((tmp_path / "page.html").read_text()).text)
    assert "vdmctl evaluate mine --out mine --images SET --split test --times-per-image 2" in text


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False])
def test_the_parameters_of_the_lock_are_shown_only_if_its_stages_made_the_results(
    recorded: bool, vdmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """`vdmctl evaluate` without DVC takes those of params.yaml."""
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    md5 = hashlib.md5((tmp_path / PLACES.metrics).read_bytes()).hexdigest() if recorded else "0" * 32
    stage = {
        "cmd": "vdmctl evaluate",
        "params": {"params.yaml": {"evaluate": {"batch_size": 98765}}},
        "outs": [{"path": str(PLACES.metrics), "hash": "md5", "md5": md5}],
    }
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"evaluate": stage}}))
    for place in (PLACES.curves, PLACES.noise_levels, PLACES.per_image):  # the charts take most of a page's time
        (tmp_path / str(place)).unlink()
    result = vdmctl("--out", "page.html")
    assert result.returncode == 0, result.stderr
    assert ("98765" in (tmp_path / "page.html").read_text()) is recorded
