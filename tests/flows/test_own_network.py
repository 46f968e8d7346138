"""Networks of the user's own: in Python, as docs/python.md shows, and in the pipeline."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from project import ROOT
from small import Small
from torch import nn

from flows.api import classify, evaluate, load, save, train
from flows.cli import run
from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.model import config_sha256, model_in_memory, open_model, read_config, save_model
from flows.core.network_code import HERE
from flows.core.networks import new_vdm
from flows.core.params_file import parse_params
from flows.training.fitting import build
from networks.dit import DiT
from vdm.model import VDM
from vdm.training.settings import TrainingSettings

PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
CODE = {
    "__init__": "",
    "parts": """from torch import nn

class Scale(nn.Module):
    def forward(self, x):
        return 0.5 * x
""",
    "mine": """import pathlib
from .parts import Scale
from subprocess import run
from torch import nn
from torch.nn import Conv2d

def function():
    run(["touch", "ran"])

class Other:
    pass

class Net(nn.Module):
    def __init__(self, layers=2, power=1.0, width=1, touch=None):
        super().__init__()
        if touch:
            pathlib.Path(touch).touch()
        self.layers = nn.ModuleList(Conv2d(width, width, 1) for _ in range(layers))
        self.scale = Scale()
        self.power = power

    def forward(self, z_t, gamma_t):
        for layer in self.layers:
            z_t = layer(z_t)
        return self.scale(z_t) ** self.power
""",
}
BOUND = {"image_shape": (1, 8, 8), "num_levels": 17, "schedule": "learned_linear", "gamma_0": -9.0, "gamma_1": 5.0}


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
    refusal = r"there is no network networks\.dit:DiT, .* put its file into networks/, or in Python give `load`"
    with pytest.raises(UserError, match=refusal) as raised:
        load("mine")
    assert raised.value.code is Exit.USAGE
    again = load("mine", network=DiT(1, (8, 8), width=16, layers=1, classes=3))
    bpd = evaluate(model, digits[:5], times_per_image=1).bpd
    np.testing.assert_array_equal(evaluate(again, digits[:5], times_per_image=1).bpd, bpd)
    continued = train(digits[:60], labels, steps=1, start_from=again)
    assert not torch.equal(continued.state_dict()["network.network.place"], again.state_dict()["network.network.place"])


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model of a network in networks/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    write_code()
    return own_model(Path("model"), "networks.mine:Net", {"layers": 2, "power": 1.0})


def write_code(**changed: str) -> None:
    """Write networks/, with a class that imports its parts, and what no model may call."""
    for name, text in (CODE | changed).items():
        Path("networks", f"{name}.py").parent.mkdir(exist_ok=True)
        Path("networks", f"{name}.py").write_text(text)


def own_model(folder: Path, name: str, options: dict[str, Any], **stated: Any) -> Path:
    """Save a model of a network of one's own, with the weights that it is made with."""
    config = BOUND | {"network": name, "options": options}
    save_model(folder, new_vdm(VDM, config, HERE), config, **stated)
    return folder


def rename(folder: Path, network: str, options: dict[str, Any]) -> None:
    """Let a model name another network, with a digest that says so."""
    described = json.loads((folder / "config.json").read_text())
    described["model"] |= {"network": network, "options": options}
    described["model_sha256"] = config_sha256(described["model"])
    (folder / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("network", "options", "reason"),
    [
        ("networks.mine:run", {"args": ["touch", "ran"]}, "mine.py defines no torch.nn.Module run"),
        ("networks.mine:function", {}, "defines no torch.nn.Module function"),
        ("networks.mine:Scale", {}, "defines no torch.nn.Module Scale"),
        ("networks.mine:Conv2d", {"in_channels": 1}, "defines no torch.nn.Module Conv2d"),
        ("networks.mine:Other", {}, "defines no torch.nn.Module Other"),
        ("networks.mine:Missing", {}, "defines no torch.nn.Module Missing"),
        ("networks.mine:Net", {"layers": 3}, "weights and config.json do not describe one model"),
        ("networks.mine:Net", {"depth": 2}, "cannot be made with model.options: "),
        ("networks.mine:Net", {"layers": 10**7}, "it becomes far larger than the 6 tensors of its weights"),
        ("networks.mine:Net", {"width": 2 * 10**4}, "it becomes far larger than the 6 tensors of its weights"),
        ("networks.mine:Net.forward", {}, "there is no network networks.mine:Net.forward"),
        ("networks.nothing:Net", {}, "there is no network networks.nothing:Net"),
        ("networks/mine:Net", {}, "there is no network networks/mine:Net"),
        ("networks...elsewhere:Net", {}, "there is no network networks...elsewhere:Net"),
        ("subprocess:run", {"args": ["touch", "ran"]}, "there is no network subprocess:run"),
    ],
)
def test_a_model_from_elsewhere_makes_nothing_but_a_module_of_networks(
    network: str, options: dict[str, Any], reason: str, mine: Path
) -> None:
    Path("elsewhere.py").write_text(CODE["mine"].replace("from .parts", "from networks.parts"))
    rename(mine, network, options)
    with pytest.raises(UserError, match=re.escape(reason)):
        open_model(mine)
    assert not Path("ran").exists()


def test_a_network_is_made_only_for_weights_that_are_whole(mine: Path) -> None:
    rename(mine, "networks.mine:Net", {"layers": 2, "touch": "ran"})
    open_model(mine)
    assert Path("ran").exists()
    Path("ran").unlink()
    content = bytearray((mine / "weights.safetensors").read_bytes())
    content[-10] ^= 1
    for damaged in (content, content[:100], b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]"):
        (mine / "weights.safetensors").write_bytes(damaged)
        with pytest.raises(UserError) as raised:
            open_model(mine)
        assert raised.value.code is Exit.MISSING
    assert not Path("ran").exists()


def test_a_model_folder_brings_no_code(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move("networks", mine)
    with pytest.raises(UserError, match=r"there is no network networks\.mine:Net"):
        open_model(mine)
    monkeypatch.chdir(mine)
    with pytest.raises(UserError, match="the code of its network lies in the folder itself, networks, and is not run"):
        open_model(Path())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("from networks.parts import Scale", "mine.py:2: write `from .FILE import NAME`"),
        ("import os, networks.parts", "mine.py:2: write `from .FILE import NAME`"),
        ("from ...outside import Scale", "cannot be imported: attempted relative import beyond"),
        ("from .missing import Scale", "cannot be imported: No module named"),
        ("def", "mine.py: invalid syntax"),
    ],
)
def test_imports_of_networks_are_relative(line: str, reason: str, mine: Path) -> None:
    write_code(mine=CODE["mine"].replace("from .parts import Scale", line))
    with pytest.raises(UserError, match=re.escape(reason)) as raised:
        open_model(mine)
    assert raised.value.code is Exit.USAGE


def test_a_model_says_that_the_code_here_is_another(mine: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_model(mine)
    assert not caplog.text  # the digest of its code is not known
    model = own_model(Path("later"), "networks.mine:Net", {}, network=HERE.of("networks.mine:Net").sha256)
    write_code(unrelated="import torch\n", dit="")
    open_model(model)
    assert not caplog.text
    write_code(parts=CODE["parts"].replace("0.5", "0.6"))
    opened = open_model(model, name="vdm@v1.2.0")
    (line,) = caplog.messages
    assert line.startswith("vdm@v1.2.0 was trained with other code of networks.mine:Net than networks/ has now")
    with torch.no_grad():
        next(opened.vdm.parameters()).add_(1)
    changed = model_in_memory(opened.vdm)
    assert changed.description.network_sha256 == opened.description.network_sha256


def test_a_training_does_not_go_on_with_other_code(
    small: Small, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_code()
    name_network("networks.mine:Net", "{layers: 2}", steps=4)
    found = []
    for each in ("0.5", "0.6", "0.5"):
        write_code(parts=CODE["parts"].replace("0.5", each))
        assert run(["train"]) == Exit.DONE, capsys.readouterr().err
        found.append(read_config(Path("models/trained"))[0])
    first, edited, again = found
    assert first.network_sha256 == again.network_sha256 == HERE.of("networks.mine:Net").sha256
    assert edited.network_sha256 != first.network_sha256
    assert edited.weights_sha256 != first.weights_sha256 == again.weights_sha256
    assert len([*layout.TRAININGS.iterdir()]) == 2


def test_a_model_of_other_code_is_no_start_if_its_weights_do_not_fit(mine: Path, digits: np.ndarray) -> None:
    start = open_model(mine, name="vdm@v1.2.0")
    config, images = start.description.model, torch.from_numpy(digits[:20])
    settings = TrainingSettings(steps=1, batch_size=4, optimizer="adamw")
    build(config, settings, images, None, start=start)
    write_code(mine=CODE["mine"].replace("range(layers)", "range(layers + 1)"))
    with pytest.raises(UserError, match=r"the weights of vdm@v1\.2\.0 do not fit networks\.mine:Net as it is here"):
        build(config, settings, images, None, start=start)


def name_network(network: str, options: str, **train: object) -> None:
    """Let params.yaml name a network, and change parameters `train`."""
    params = Path("params.yaml")
    text = params.read_text()
    for old, new in {
        "network: null": f"network: {network}",
        "options: {}": f"options: {options}",
        "optimizer: muon": "optimizer: adamw",
        "learning_rate: 1e-2": "learning_rate: 1e-3",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    for name, value in train.items():
        text = re.sub(rf"(?m)^(  {name}:).*", rf"\1 {value}", text)
    params.write_text(text)


def test_an_edit_within_the_second_is_seen(mine: Path) -> None:
    first = open_model(mine).own_network
    write_code(parts=CODE["parts"].replace("0.5", "0.6"))
    second = open_model(mine).own_network
    z_t = torch.ones(1, 1, 8, 8)
    assert not torch.equal(first(z_t, torch.zeros(1)), second(z_t, torch.zeros(1)))


def test_a_network_given_by_hand_leaves_the_saved_options(mine: Path, digits: np.ndarray) -> None:
    z_t, gamma_t = torch.ones(1, 1, 8, 8), torch.zeros(1)
    saved = load(mine)
    by_hand = load(mine, network=HERE.of("networks.mine:Net").module().Net(layers=2, power=3.0))
    after = load(mine)
    given, first, last = (vdm.network(z_t, gamma_t) for vdm in (by_hand, saved, after))
    assert torch.equal(first, last)
    assert not torch.equal(first, given)
    continued = train(digits[:20], steps=1, start_from=by_hand)
    assert (continued.network.network.power, by_hand.network.network.power) == (3.0, 3.0)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_network_keeps_the_types_of_its_tensors(dtype: str, mine: Path) -> None:
    buffer = f"""
class Typed(Net):
    def __init__(self):
        super().__init__(layers=1)
        import torch
        self.register_buffer("table", torch.full((3,), 0.1, dtype=torch.{dtype}))
"""
    write_code(mine=CODE["mine"] + buffer)
    folder = own_model(Path("typed"), "networks.mine:Typed", {})
    model = load(folder)
    assert model.state_dict()["network.network.table"].dtype is getattr(torch, dtype)
    assert model_in_memory(model).sha256 == open_model(folder).sha256
    assert run(["export", str(folder), "--out", "exported"]) == 0
    assert open_model(Path("exported")).sha256 == open_model(folder).sha256


def test_a_network_is_not_ignored(mine: Path, tmp_path: Path, digits: np.ndarray) -> None:
    save_model(tmp_path / "ordinary", VDM(**TINY), TINY)
    with pytest.raises(UserError, match="has the network of this package, so `network` cannot take its place"):
        load("ordinary", network=Cut())
    for start in (load("ordinary"), load(mine)):
        with pytest.raises(ValueError, match="start_from has a network already"):
            train(digits[:20], steps=1, start_from=start, network=Cut())


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
    name_network("networks.dit:DiT", "{channels: 1, size: [8, 8], width: 16, layers: 1}")
    params = Path("params.yaml")
    text = params.read_text()
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
        (
            "activation_checkpointing: false",
            "activation_checkpointing: true",
            "train.activation_checkpointing is for the blocks of this package's network",
        ),
        ("options: {}", "options: {width: 8}", "model.options are those of model.network, which is null"),
        ("network: null", "network: networks/dit.py", "model.network: string should match pattern"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(old: str, new: str, message: str) -> None:
    text = (ROOT / "presets/digits.yaml").read_text()
    assert old in text
    if "checkpointing" in old:
        text = text.replace("network: null", "network: networks.dit:DiT").replace("optimizer: muon", "optimizer: adamw")
        text = re.sub(r"augmentation: \[.*\]", "augmentation: []", text)
    with pytest.raises(UserError, match=re.escape(message)):
        parse_params(text.replace(old, new), "params.yaml")


def test_stages_that_make_the_network_depend_on_its_file() -> None:
    stages = parse_graph()
    makes = {name for name, stage in stages.items() if "flows/core/model.py" in stage["deps"]}
    assert {name for name, stage in stages.items() if "networks" in stage["deps"]} == makes


def parse_graph() -> dict[str, dict[str, list[str]]]:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]  # type: ignore[no-any-return]
