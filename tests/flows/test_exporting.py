"""A model as a repository of the Hugging Face Hub: its card, its metadata, and that the folder is the same model."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import Forge, crown
from project import ROOT
from ruamel.yaml import YAML
from small import Small

from flows import api
from flows.cli import run
from flows.core import layout
from flows.core.ancestry import Ancestor
from flows.core.errors import Exit
from flows.core.model import WEIGHTS, TrainedModel, open_model, save_model
from flows.core.network_code import HERE
from flows.core.networks import new_vdm
from flows.exchange.exporting import export, name_on_hub
from flows.images.image_set import open_images
from vdm.model import VDM

CLASSES = ROOT / "pretrained/digits_classes"


def parts(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the metadata and the text of a card."""
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return YAML(typ="safe").load(metadata), text


def test_a_trained_model_has_a_card_for_the_hub(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(CLASSES, small.folder / "classes")
    assert run(["export", "classes", "--out", "out/digits", "--format", "hub"]) == Exit.DONE
    out = Path("out/digits")
    assert "`hf upload USER/digits out/digits .` uploads it" in capsys.readouterr().out
    metadata, text = parts(out)
    name = "bits/dim given the class, standard error 0.0126, 365 images"
    title = "Optical recognition of handwritten digits (scikit-learn's copy of the test part)"
    task = "unconditional-image-generation"
    result = {
        "task": {"type": task},
        "dataset": {"type": "digits", "name": title, "split": "test"},
        "metrics": [{"type": "bits_per_dim", "name": name, "value": 1.6286}],
    }
    assert metadata == {
        "license": "cc-by-4.0",
        "library_name": "vdm-pipeline",
        "pipeline_tag": task,
        "tags": ["diffusion", "variational-diffusion-model", "likelihood"],
        "model-index": [{"name": "digits", "results": [result]}],
    }
    assert "| bits/dim given the class | 1.6286 +- 0.0126 |" in text
    assert f"whose version {version('vdm-pipeline')} wrote this" in text
    theirs = open_model(CLASSES)
    ours = open_model(out)
    assert (ours.sha256, ours.training, ours.line[0].licence) == (theirs.sha256, theirs.training, "CC BY 4.0")
    assert (out / WEIGHTS).read_bytes() == (CLASSES / WEIGHTS).read_bytes()
    kept = [json.loads((each / "evaluation/calibration.json").read_text()) for each in (out, CLASSES)]
    assert kept[0] == kept[1]
    monkeypatch.chdir("out")
    found: dict[str, Any] = {}
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(code, found)
    assert found["model"].classes == 10
    assert run(["export", "digits", "--out", "again", "--licence", "mit"]) == Exit.DONE
    again, same = parts(Path("again"))
    assert again["license"] == "mit"
    assert same.count("## Figures") == same.count("## Load it") == 1


def test_a_model_without_a_card_says_what_is_known(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    api.save(api.load("models/trained"), "models/mine")
    assert run(["export", "models/mine", "--out", "plain"]) == Exit.DONE
    assert "no figures, since no evaluation of this model is known" in caplog.text
    assert "no licence" in caplog.text
    metadata, text = parts(Path("plain"))
    assert metadata["license"] == "unknown"
    assert not {"model-index", "datasets"} & set(metadata)
    assert "over images of 1x8x8 with 17 levels" in text
    digest = open_model(Path("models/trained")).sha256
    figures = json.loads(layout.METRICS.read_text())
    layout.METRICS.write_text(json.dumps(figures | {"bpd": 3.9, "model_sha256": digest}))
    assert run(["export", "models/mine", "--out", "evaluated"]) == Exit.DONE
    metadata, text = parts(Path("evaluated"))
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 3.9
    assert "It has learned almost nothing. 20 test images cost 3.90 bits/dim" in text
    np.save("digits.npy", open_images(layout.IMAGES)["test"][:4])
    assert run(["evaluate", "evaluated", "--images", "digits.npy"]) == Exit.DONE


@pytest.mark.slow
@pytest.mark.processes
def test_a_version_has_the_figures_of_its_run(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(forge.project, "v1.0.0")
    monkeypatch.chdir(forge.root)
    assert run(["export", "champion", "--out", "../out"]) == Exit.DONE
    champion = forge.opened.registry.resolve("vdm@v1.0.0")
    (result,) = parts(Path("../out"))[0]["model-index"][0]["results"]
    assert champion.metrics.bpd
    assert result["metrics"][0]["value"] == round(champion.metrics.bpd, 4)
    assert open_model(Path("../out")).sha256 == champion.metrics.model_sha256


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # within torch
def test_the_programs_in_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").symlink_to(CLASSES)
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/export.md").read_text(), re.DOTALL | re.MULTILINE):
        exec(code, found)
    z_t, gamma_t = torch.randn(3, 1, 28, 28), torch.linspace(-5, 5, 3)
    with torch.no_grad():
        ours, theirs = found["model"].network(z_t, gamma_t), torch.export.load("network.pt2").module()(z_t, gamma_t)
    torch.testing.assert_close(theirs, ours)


def test_a_model_that_began_from_images_of_another_licence_has_no_licence_by_itself(tmp_path: Path) -> None:
    theirs = open_model(CLASSES)
    for licence, stated in (("CC BY 4.0", "cc-by-4.0"), ("CC BY-NC 4.0", "unknown")):
        ancestor = Ancestor(name="first", model_sha256="a" * 64, licence=licence)
        description = theirs.description.model_copy(update={"ancestors": [ancestor]})
        model = TrainedModel(description, theirs.vdm)
        assert export(model, None, tmp_path / stated) == stated


def test_the_card_says_which_network_is_not_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = {
        "image_shape": (1, 8, 8),
        "num_levels": 17,
        "schedule": "fixed_linear",
        "gamma_0": -9.0,
        "gamma_1": 5.0,
    }
    own = {"network": "networks.dit:DiT", "options": {"channels": 1, "size": [8, 8], "width": 16, "layers": 1}}
    save_model(tmp_path / "model", new_vdm(VDM, arguments | own, HERE), arguments | own)
    export(open_model(tmp_path / "model"), None, tmp_path / "out")
    assert "Its network is `networks.dit:DiT`, whose code is not in this folder" in parts(tmp_path / "out")[1]


def test_an_existing_folder_is_kept(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "models/vdm", "--out", "data"]) == Exit.USAGE
    assert "data exists; name another folder, or remove it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("licence", "name"),
    [
        ("CC BY-SA 3.0", "cc-by-sa-3.0"),
        ("MIT License", "mit"),
        ("non-commercial use only", "unknown"),
        (None, "unknown"),
    ],
)
def test_licences_have_the_names_of_the_hub(licence: str | None, name: str) -> None:
    assert name_on_hub(licence) == name
