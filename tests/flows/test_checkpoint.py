"""Model folders and training states: round trips, and damaged files that are refused."""

import errno
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from fuzzing import Hostile

from flows.core import memory
from flows.core.checkpoint import (
    DamagedStateError,
    config_sha256,
    fitted_to,
    load_model,
    load_state,
    model_sha256,
    save_model,
    save_state,
)
from flows.core.errors import CheckpointError, Exit, UserError
from vdm.evaluation import evaluate
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
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in saved.parameters()]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(
    dtype: torch.dtype, tmp_path: Path, tiny_model: Callable[..., VDM]
) -> None:
    model = tiny_model(schedule="fixed_linear").to(dtype)
    save_model(tmp_path, model, TINY | {"schedule": "fixed_linear"})
    loaded = load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float()), name
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_a_model_says_which_images_it_was_fitted_to(folder: Path, tiny_model: Callable[..., VDM]) -> None:
    assert fitted_to(folder) is None
    save_model(folder, tiny_model(), TINY, fitted_to="train_and_validation")
    assert fitted_to(folder) == "train_and_validation"
    config = folder / "config.json"
    config.write_text(config.read_text().replace("train_and_validation", "test"))
    with pytest.raises(CheckpointError, match="`fitted_to` must be one of train, train_and_validation"):
        load_model(folder)


@pytest.mark.parametrize("num_timesteps", [None, 50])
def test_an_older_model_has_the_figure_of_its_time(num_timesteps: int | None, digits: np.ndarray) -> None:
    folder = Path(__file__).parents[1] / "oracles" / "digits_2026_11"
    expected = json.loads((folder / "bpd.json").read_text())[str(num_timesteps)]
    options: dict[str, Any] = {"times_per_image": 4, "batch_size": 64, "seed": 1, "num_timesteps": num_timesteps}
    np.testing.assert_allclose(evaluate(load_model(folder), digits[1400:1416], **options).bpd, expected, rtol=1e-5)


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
        (lambda f: (f / "weights.safetensors").unlink(), "no such file"),
        (lambda f: (f / "config.json").unlink(), "no such file"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "must hold an object"),
        (lambda f: flip_a_byte(f / "weights.safetensors"), "sha256 differs"),
        (lambda f: (f / "weights.safetensors").write_bytes(b""), "sha256 differs"),
        (lambda f: change(f / "config.json", '"gamma_0": -7.0', '"gamma_0": -9.0'), "differs from its sha256"),
        (
            lambda f: edit_config(f, lambda d: d["model"].update(image_shape=[1, 8])),
            "do not describe one model: images cannot have shape",
        ),
        (lambda f: edit_config(f, lambda d: d["model"].update(norm_groups=0)), "do not describe one model"),
        (lambda f: edit_config(f, lambda d: d["model"].update(width=16)), "do not describe one model"),
        (lambda f: edit_config(f, lambda d: d["model"].pop("width")), "model.width: Field required;"),
        (lambda f: edit_config(f, lambda d: d["model"].update(num_levels=1)), "do not describe one model"),
        (lambda f: edit_config(f, lambda d: d["model"].update(depth=3)), "model.depth: Extra inputs"),
        (
            lambda f: edit_config(f, lambda d: d["model"].update(schedule="cosine")),
            "model.schedule: Input should be 'fixed_linear'",
        ),
        (
            lambda f: edit_config(f, lambda d: d["model"].update(fourier_exponents=[1, 2, "a"])),
            "model.fourier_exponents.2: Input should be a valid integer",
        ),
        (lambda f: edit_config(f, lambda d: d["model"].update(fourier_exponents=7)), "model.fourier_exponents: Input"),
        (
            lambda f: edit_config(f, lambda d: d["model"].update(norm_eps="x")),
            "model.norm_eps: Input should be a valid number",
        ),
        (lambda f: edit_config(f, lambda d: d["model"].update(norm_eps=math.nan)), "not JSON: NaN"),
        (lambda f: edit_config(f, lambda d: d["model"].update(gamma_1=10**400)), "not JSON: 1000"),
        (lambda f: edit_config(f, lambda d: d["model"].update(num_levels="x")), "model.num_levels: Input"),
        (
            lambda f: edit_config(f, lambda d: d["model"].update(blocks=True)),
            "model.blocks: Input should be a valid integer",
        ),
        (lambda f: edit_config(f, lambda d: d.update(model=[])), "model: Input should be a valid dictionary"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "not JSON"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], object], reason: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=reason):
        load_model(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path, tiny_model: Callable[..., VDM]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.network.conv_in.weight[0, 0, 0, 0] = value
    save_model(folder, model, TINY)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: network\.conv_in\.weight is not finite"):
        load_model(folder)


def test_an_int_is_accepted_as_a_float(folder: Path) -> None:
    edit_config(folder, lambda d: d["model"].update(gamma_0=-7, dropout=0))
    assert load_model(folder).schedule.gamma_0 == -7


def test_a_missing_folder_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: no such file; is this a model folder? `dvc repro` ")


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:20], lambda content: b""])
def test_a_damaged_state_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, {"done": 3, "weights": torch.arange(5)})
    assert load_state(path)["done"] == 3
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedStateError, match="truncated or damaged"):
        load_state(path)


def test_a_state_that_this_torch_cannot_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(hashlib.sha256(b"of another format").digest() + b"of another format")
    with pytest.raises(DamagedStateError, match=f"not a state of torch {re.escape(torch.__version__)}: "):
        load_state(path)


@pytest.mark.parametrize("state", [{"done": 3}, [3]])
def test_a_state_without_its_keys_is_refused(state: Any, tmp_path: Path) -> None:
    save_state(tmp_path / "state", state)
    with pytest.raises(DamagedStateError, match="must hold done, model"):
        load_state(tmp_path / "state", keys=["model", "done"])


@pytest.mark.parametrize(
    ("replaced", "error", "code"),
    [
        ("flows.core.checkpoint.read_bounded", PermissionError(errno.EACCES, "Permission denied"), Exit.MISSING),
        ("flows.core.checkpoint.read_bounded", OSError(errno.EIO, "Input/output error"), Exit.MISSING),
        ("flows.core.checkpoint.read_bounded", MemoryError(), Exit.USAGE),
        ("torch.load", MemoryError(), Exit.USAGE),
        ("torch.load", RuntimeError("DefaultCPUAllocator: can't allocate memory\nat"), Exit.MISSING),
    ],
)
def test_a_state_that_cannot_be_read_now_is_not_called_damaged(
    replaced: str, error: Exception, code: Exit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    path = tmp_path / "state"
    save_state(path, {"done": 3})
    monkeypatch.setattr(replaced, fail)
    with pytest.raises(CheckpointError, match=f"^{path} could not be read: .*; correct that or move it") as raised:
        load_state(path)
    assert not isinstance(raised.value, DamagedStateError)
    assert raised.value.code is code


def test_a_model_larger_than_the_free_memory_is_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "weights.safetensors"
    monkeypatch.setattr(memory, "available", lambda: 3 * weights.stat().st_size - 1)
    with pytest.raises(UserError, match=f"^{weights}: free memory and run again: this needs at least") as raised:
        load_model(folder)
    assert raised.value.code is Exit.USAGE


def test_a_state_larger_than_the_free_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    save_state(path, {"done": 3})
    monkeypatch.setattr(memory, "available", lambda: 3 * path.stat().st_size - 1)
    with pytest.raises(UserError, match=f"^{path}: free memory and run again: this needs at least") as raised:
        load_state(path)
    assert not isinstance(raised.value, DamagedStateError)
    assert raised.value.code is Exit.USAGE
    monkeypatch.setattr(memory, "available", lambda: 3 * path.stat().st_size)
    assert load_state(path) == {"done": 3}


def test_a_state_runs_no_code(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"done": Hostile(tmp_path / "made")})
    with pytest.raises(DamagedStateError, match="not a state of torch"):
        load_state(tmp_path / "state")
    assert not (tmp_path / "made").exists()
