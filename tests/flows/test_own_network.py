"""Networks of the user's own: in Python, as docs/python.md shows, and in the pipeline."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from project import ROOT
from small import Small
from torch import nn

from flows.api import classify, evaluate, load, save, train
from flows.cli import run
from flows.core import networks
from flows.core.errors import Exit, UserError
from flows.core.model import read_config
from flows.core.params_file import parse_params
from networks.dit import DiT
from vdm.model import VDM

PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
BOUND = {"image_shape": (1, 8, 8), "num_levels": 17, "schedule": "learned_linear", "gamma_0": -9.0, "gamma_1": 5.0}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the networks that other tests gave by hand."""
    monkeypatch.setattr(networks, "IN_MEMORY", {})


def program(name: str) -> str:
    """Return the program of docs/python.md that has the name in it, with few steps."""
    (found,) = [each for each in PROGRAMS if name in each]
    assert len([line for line in found.splitlines() if line]) <= 30
    assert "minutes=5" in found
    return found.replace("minutes=5", "steps=3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["networks.dit", pytest.param("UNet2DModel", marks=pytest.mark.needs("diffusers"))], ids=["dit", "unet"]
)
def test_the_programs_of_the_documentation_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(program(name), {})
    assert re.fullmatch(r"\d\.\d{3} \+- 0\.\d{3} bits/dim\n", capsys.readouterr().out)


@pytest.mark.slow
def test_a_model_with_classes_is_loaded_with_its_network_only(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no networks/ is
    labels = np.arange(60) % 3
    model = train(digits[:60], labels, steps=2, num_levels=17, network=DiT(1, (8, 8), width=16, layers=1, classes=3))
    assert classify(model, digits[:2], times_per_image=2).best.shape == (2,)
    save(model, "mine")
    networks.IN_MEMORY.clear()
    refusal = r"there is no network networks\.dit:DiT, .* put its file into networks/, or in Python give `load`"
    with pytest.raises(UserError, match=refusal) as raised:
        load("mine")
    assert raised.value.code is Exit.USAGE
    again = load("mine", network=DiT(1, (8, 8), width=16, layers=1, classes=3))
    bpd = evaluate(model, digits[:5], times_per_image=1).bpd
    np.testing.assert_array_equal(evaluate(again, digits[:5], times_per_image=1).bpd, bpd)
    continued = train(digits[:60], labels, steps=1, start_from=again)
    assert not torch.equal(continued.state_dict()["network.network.place"], again.state_dict()["network.network.place"])


def test_a_network_is_told_what_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match=r"a tensor of the shape \(2, 1, 8, 8\) of z_t, got \(2, 1, 6, 6\)"):
        VDM(**BOUND, network=Cut()).network(torch.zeros(2, 1, 8, 8), torch.zeros(2))
    with pytest.raises(TypeError, match="width are arguments of the network that `network` replaces"):
        VDM(**BOUND, network=Cut(), width=8)


class Cut(nn.Module):
    """Leaves out the border."""

    def forward(self, z_t: torch.Tensor, gamma_t: torch.Tensor) -> torch.Tensor:
        return z_t[..., 1:-1, 1:-1]


@pytest.mark.slow
def test_a_network_in_the_pipeline_is_trained_evaluated_and_drawn_from(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "networks", "networks", ignore=shutil.ignore_patterns("__pycache__"))
    params = Path("params.yaml")
    text = params.read_text()
    for old, new in (
        ("network: null", "network: networks.dit:DiT"),
        ("options: {}", "options: {channels: 1, size: [8, 8], width: 16, layers: 1}"),
        ("optimizer: muon", "optimizer: adamw"),
        ("learning_rate: 1e-2", "learning_rate: 1e-3"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    params.write_text(text)
    for command in (["train"], ["register"], ["evaluate"], ["sample"]):
        assert run(command) == Exit.DONE, capsys.readouterr().err
    config = read_config(Path("models/vdm"))[0].model
    assert (config["network"], config["options"]["width"], "blocks" in config) == ("networks.dit:DiT", 16, False)
    params.write_text(text.replace("layers: 1", "depth: 1"))
    assert run(["train"]) == Exit.USAGE
    assert "model.network: networks.dit:DiT cannot be made with model.options: " in capsys.readouterr().err
    shutil.rmtree("networks")
    assert run(["evaluate"]) == Exit.USAGE
    assert "there is no network networks.dit:DiT, which the model needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("network: null", "network: networks.dit:DiT", "for train.augmentation: [] and train.optimizer: adamw"),
        ("options: {}", "options: {width: 8}", "model.options are those of model.network, which is null"),
        ("network: null", "network: networks/dit.py", "model.network: string should match pattern"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(old: str, new: str, message: str) -> None:
    text = (ROOT / "presets/digits.yaml").read_text()
    assert old in text
    with pytest.raises(UserError, match=re.escape(message)):
        parse_params(text.replace(old, new), "params.yaml")


def test_stages_that_make_the_network_depend_on_its_file() -> None:
    stages = parse_graph()
    makes = {name for name, stage in stages.items() if "flows/core/model.py" in stage["deps"]}
    assert {name for name, stage in stages.items() if "networks" in stage["deps"]} == makes


def parse_graph() -> dict[str, dict[str, list[str]]]:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]  # type: ignore[no-any-return]
