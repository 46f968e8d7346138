"""Model folders: whole, checked, and harmless."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY

from vdm.checkpoint import (
    CheckpointError,
    config_sha256,
    load_model,
    load_state,
    model_sha256,
    save_model,
    save_state,
    write_whole,
)
from vdm.model import VDM


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., VDM]) -> Path:
    save_model(tmp_path / "model", tiny_model(), TINY)
    return tmp_path / "model"


def test_a_model_survives_the_round_trip(folder: Path, tiny_model: Callable[..., VDM]) -> None:
    loaded, saved = load_model(folder), tiny_model()
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())
    assert not loaded.training
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]


def test_the_digest_covers_weights_and_configuration(folder: Path, tiny_model: Callable[..., VDM]) -> None:
    first = model_sha256(folder)
    model = tiny_model()
    save_model(folder, model, TINY)
    assert model_sha256(folder) == first
    with torch.no_grad():
        model.network.conv_in.weight[0, 0, 0, 0] += 1e-6
    save_model(folder, model, TINY)
    assert model_sha256(folder) != first


def edit_config(folder: Path, edit: Callable[[dict[str, object]], object]) -> None:
    description = json.loads((folder / "config.json").read_text())
    edit(description)
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
        (lambda f: (f / "weights.safetensors").unlink(), "No such file"),
        (lambda f: (f / "config.json").unlink(), "No such file"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "must hold an object"),
        (lambda f: flip_a_byte(f / "weights.safetensors"), "sha256 differs"),
        (lambda f: (f / "weights.safetensors").write_bytes(b""), "sha256 differs"),
        (lambda f: change(f / "config.json", '"gamma_0": -7.0', '"gamma_0": -9.0'), "differs from its sha256"),
        (lambda f: edit_config(f, lambda d: d["model"].update(image_shape=[])), "do not describe one model"),
        (lambda f: edit_config(f, lambda d: d["model"].update(norm_groups=0)), "do not describe one model"),
        (lambda f: edit_config(f, lambda d: d["model"].update(width=16)), "do not describe one model"),
        (lambda f: edit_config(f, lambda d: d["model"].pop("width")), "do not describe one model"),
        (lambda f: edit_config(f, lambda d: d["model"].update(depth=3)), "do not describe one model"),
        (lambda f: edit_config(f, lambda d: d["model"].update(schedule="cosine")), "do not describe one model"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], object], reason: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=reason):
        load_model(folder)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:20], lambda content: b""])
def test_a_damaged_state_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, {"done": 3, "weights": torch.arange(5)})
    assert load_state(path)["done"] == 3
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_state(path)
