"""Models and training states on disk: round trips, and damaged files that are refused."""

import errno
import inspect
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TINY
from fuzzing import Hostile

from flows.core.device import find_device, threads_each
from flows.core.errors import CheckpointError, Exit, UserError
from flows.core.model import Arguments, ArgumentsWithNetwork, config_sha256, open_model, read_config, save_model
from flows.training.states import DamagedStateError, load_state, save_state
from vdm.evaluation import BoundSettings, evaluate
from vdm.grids import Grid
from vdm.model import VDM
from vdm.network import NoisePredictor


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., VDM]) -> Path:
    save_model(tmp_path / "model", tiny_model(), TINY)
    return tmp_path / "model"


def test_a_model_survives_the_round_trip(folder: Path, tiny_model: Callable[..., VDM]) -> None:
    loaded, saved = open_model(folder).vdm, tiny_model()
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())
    assert not loaded.training
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in saved.parameters()]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]


@pytest.mark.parametrize("num_timesteps", [None, 50])
def test_an_older_model_has_the_figure_of_its_time(num_timesteps: int | None, digits: np.ndarray) -> None:
    folder = Path(__file__).parents[1] / "oracles" / "digits_2026_11"
    expected = json.loads((folder / "bpd.json").read_text())[str(num_timesteps)]
    settings = BoundSettings(
        times_per_image=4, batch_size=64, seed=1, grid=Grid(num_timesteps) if num_timesteps else None
    )
    np.testing.assert_allclose(evaluate(open_model(folder).vdm, digits[1400:1416], settings).bpd, expected, rtol=1e-5)


def test_the_digest_covers_weights_and_configuration(folder: Path, tiny_model: Callable[..., VDM]) -> None:
    first = read_config(folder)[1]
    model = tiny_model()
    save_model(folder, model, TINY)
    assert read_config(folder)[1] == first
    with torch.no_grad():
        model.network.conv_in.weight[0, 0, 0, 0] += 1e-6
    save_model(folder, model, TINY)
    assert read_config(folder)[1] != first


def edit(folder: Path, **changes: Any) -> None:
    """Change arguments of the model, and the digest of the arguments with them."""
    description = json.loads((folder / "config.json").read_text())
    description["model"] = {key: value for key, value in (description["model"] | changes).items() if value is not None}
    description["model_sha256"] = config_sha256(description["model"])
    (folder / "config.json").write_text(json.dumps(description))


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "weights.safetensors").unlink(), "No such file or directory; is this a model folder"),
        (lambda f: (f / "config.json").write_text("["), "config.json: damaged: "),
        (lambda f: (f / "config.json").write_bytes(b" " * 2**21), "larger than 1,048,576 bytes"),
        (lambda f: flip_a_byte(f / "weights.safetensors"), "sha256 differs"),
        (lambda f: change(f / "config.json", '"gamma_0": -7.0', '"gamma_0": -9.0'), "differs from its sha256"),
        (lambda f: edit(f, image_shape=[1, 8]), "do not describe one model: images cannot have shape"),
        (lambda f: os.truncate(f / "weights.safetensors", 2**40), r"weights\.safetensors: larger than"),
        (lambda f: edit(f, width=None), "model.width: Field required;"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], object], reason: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(UserError, match=reason) as error:
        open_model(folder)
    assert error.value.code is Exit.MISSING


def test_weights_that_are_not_finite_are_refused(folder: Path, tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.network.conv_in.weight[0, 0, 0, 0] = math.nan
    save_model(folder, model, TINY)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: network\.conv_in\.weight is not finite"):
        open_model(folder)


def test_the_arguments_of_a_model_are_those_of_its_class() -> None:
    of_model, of_network = (set(inspect.signature(each.__init__).parameters) for each in (VDM, NoisePredictor))
    derived = {"self", "network", "of_network", "channels", "gamma_min", "gamma_max"}
    assert {*Arguments.model_fields} == (of_model | of_network) - derived
    assert {*ArgumentsWithNetwork.model_fields} == of_model - {"self", "of_network"} | {"options"}


def test_a_model_larger_than_the_free_memory_is_refused_before_it_is_built(folder: Path) -> None:
    edit(folder, width=2**14, blocks=32)
    with pytest.raises(UserError, match=r"model: the model has [\d,]{10,} parameters, and cpu has .* GiB") as error:
        open_model(folder)
    assert error.value.code is Exit.USAGE


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, {"done": 3, "weights": torch.arange(5)})
    assert load_state(path, keys=["done"])["done"] == 3
    with pytest.raises(DamagedStateError, match="must hold done, model"):
        load_state(path, keys=["model", "done"])
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b""):
        path.write_bytes(content)
        with pytest.raises(DamagedStateError, match="truncated or damaged"):
            load_state(path)


@pytest.mark.parametrize(
    ("replaced", "error"),
    [
        ("flows.training.states.read_bounded", OSError(errno.EIO, "Input/output error")),
        ("torch.load", RuntimeError("DefaultCPUAllocator: can't allocate memory\nat")),
    ],
)
def test_a_state_that_cannot_be_read_now_is_not_called_damaged(
    replaced: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged state is left out, which loses the steps since the one before."""
    path = tmp_path / "state"
    save_state(path, {"done": 3})
    monkeypatch.setattr(replaced, Mock(side_effect=error))
    with pytest.raises(CheckpointError, match=f"^{path} could not be read: .*; correct that or move it") as raised:
        load_state(path)
    assert not isinstance(raised.value, DamagedStateError)


def test_a_state_runs_no_code(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"done": Hostile(tmp_path / "made")})
    with pytest.raises(CheckpointError, match="Weights only load failed"):
        load_state(tmp_path / "state")
    assert not (tmp_path / "made").exists()


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)  # what a container allows
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert [threads_each(count) for count in (1, 2, 16)] == [8, 4, 1]


def test_a_device_that_this_machine_lacks_is_named() -> None:
    for name, count in (("cuda:99", 1), ("cuda", 99)):
        with pytest.raises(UserError, match=r"(device|num_devices) \S+: ") as error:
            find_device(name, count)
        assert error.value.code is Exit.USAGE
