"""Import checkpoints of the official JAX code and of the PyTorch peer by the command line, and compare results.

Damaged and hostile ones are refused in one line, and no code in them runs.
"""

import hashlib
import json
import re
import shutil
from copy import deepcopy
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from fuzzing import Hostile
from project import ROOT
from torch import Tensor

from flows.cli import run
from flows.core.model import open_model, read_config
from flows.images.image_set import save_images
from vdm.diffusion import denoise, reverse_step
from vdm.discretization import nearest_pixels, reconstruction_draw
from vdm.model import VDM
from vdm.vlb import bits_per_dim

ORACLES = Path(__file__).parents[1] / "oracles"
GOOGLE = ["google_scalar_T0", "google_nnet_T0_attn"]


def oracle(path: Path) -> dict[str, Tensor]:
    """Return the recorded numbers, images as (B,C,H,W)."""
    with np.load(path) as arrays:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    channels_last = [name for name, tensor in tensors.items() if tensor.ndim == 4 and tensor.shape[-1] == 3]
    return tensors | {name: tensors[name].permute(0, 3, 1, 2) for name in channels_last}


@pytest.fixture(params=GOOGLE, scope="module")
def google(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[VDM, dict[str, Tensor]]:
    file = ORACLES / f"{request.param}.flax"
    command = ["import-checkpoint", str(file), "--format", "google-vdm", "--image-size", "8", "8"]
    out = tmp_path_factory.mktemp("google") / "model"
    assert run([*command, "--out", str(out)]) == 0
    return open_model(out).vdm, oracle(ORACLES / f"{request.param}.npz")


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_imported_schedule_and_network_agree(google: tuple[VDM, dict[str, Tensor]]) -> None:
    model, expected = google
    gamma, slope = model.schedule.gamma_and_slope(expected["tt"])
    close(gamma, expected["gamma"])
    close(slope, expected["dgamma"])
    close(torch.sigmoid(model.schedule.gamma_0).reshape(1), expected["var_0"])
    close(torch.sigmoid(model.schedule.gamma_1).reshape(1), expected["var_1"])
    close(model.network(expected["z"], expected["g_t"]), expected["eps_hat"])


def test_the_terms_of_the_bound_agree_also_in_float64(google: tuple[VDM, dict[str, Tensor]]) -> None:
    model, expected = google
    terms = model(expected["x"], expected["eps"], expected["t"])
    close(bits_per_dim(terms.prior, model.num_dims), expected["bpd_latent"])
    close(bits_per_dim(terms.diffusion, model.num_dims), expected["bpd_diff"])
    draw = reconstruction_draw(expected["x"], expected["eps0"], model.schedule.gamma_0, 256)
    close(bits_per_dim(draw, model.num_dims), expected["bpd_recon"])
    double = deepcopy(model).double()(expected["x"], expected["eps"].double(), expected["t"].double())
    for one, other in zip(terms, double, strict=True):
        assert other.dtype == torch.float64
        close(one, other)


def test_the_reverse_step_and_decoding_agree(google: tuple[VDM, dict[str, Tensor]]) -> None:
    model, expected = google
    i, steps = int(expected["i"]), int(expected["T"])
    gamma_s, gamma_t = model.schedule(torch.tensor([(steps - i - 1) / steps, (steps - i) / steps]))
    gamma_s, gamma_t = gamma_s.expand(4), gamma_t.expand(4)
    eps_hat = model.network(expected["z"], gamma_t)
    x_hat = denoise(expected["z"], eps_hat, gamma_t)
    close(reverse_step(expected["z"], x_hat, expected["nz"], gamma_s, gamma_t), expected["zs"])
    assert torch.equal(nearest_pixels(expected["z"], model.schedule.gamma_0, 256).int(), expected["x_dec"])


def test_the_pytorch_peers_checkpoint_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ORACLES / "addtt_learned" / "model.pt"
    out = tmp_path / "a model"
    assert run(["import-checkpoint", str(file), "--format", "addtt", "--out", str(out)]) == 0
    said = f"{out}: the model of {file}; `vdmctl evaluate '{out}'` measures its bits/dim\n"
    assert capsys.readouterr() == (said, "")
    model, expected = open_model(out).vdm, oracle(ORACLES / "addtt_learned" / "oracle.npz")
    assert read_config(out)[0].model["norm_eps"] == 1e-5  # torch's, where the official code has 1e-6
    close(model.schedule(expected["t"]), expected["gamma"])
    close(model.network(expected["z"], expected["gamma"]), expected["eps_hat"])
    terms = model(expected["pixels"], expected["eps"], expected["t"])
    close(bits_per_dim(terms.diffusion, model.num_dims).mean(), expected["diffusion_bpd_mean"])
    close(bits_per_dim(terms.prior, model.num_dims).mean(), expected["prior_bpd_mean"])
    assert model.schedule.gamma_0.item() == pytest.approx(expected["gamma_0"].item())
    assert model.schedule.gamma_1.item() == pytest.approx(expected["gamma_1"].item())


def peer_checkpoint(folder: Path, **settings: object) -> Path:
    """Write the peer's checkpoint with the middle attention copied into every block, and with changed settings."""
    state = torch.load(ORACLES / "addtt_learned" / "model.pt", weights_only=True)
    for weights, prefix in ((state["ema"], "ema_model.model."), (state["model"], "model.")):
        layers = {name.split("mid_attn_block.")[1]: w for name, w in weights.items() if "mid_attn_block." in name}
        for block in ("down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "up_blocks.2"):
            weights.update({f"{prefix}{block}.attention_block.{name}": w for name, w in layers.items()})
    torch.save(state, folder / "model.pt")
    config = (ORACLES / "addtt_learned" / "config.yaml").read_text()
    for name, value in settings.items():
        config = re.sub(f"^{name}: .*$", f"{name}: {value}", config, flags=re.MULTILINE)
    (folder / "config.yaml").write_text(config)
    return folder / "model.pt"


def test_the_peers_attention_in_every_block_is_imported(tmp_path: Path) -> None:
    file = peer_checkpoint(tmp_path, attention_everywhere="true")
    assert run(["import-checkpoint", str(file), "--format", "addtt", "--out", str(tmp_path / "model")]) == 0
    network = open_model(tmp_path / "model").vdm.network
    middle = network.middle_attention.state_dict()
    for block in [*network.down_attention, *network.up_attention]:
        assert all(torch.equal(block.state_dict()[name], middle[name]) for name in middle)


def test_unsupported_settings_of_the_peer_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value, message in (
        ("n_attention_heads", 4, "only 1 can be imported"),
        ("gamma_min", "[", "not a whole addtt checkpoint"),
        ("noise_schedule", "fixed_linear", "says noise_schedule: fixed_linear, and the weights have a learned one"),
        ("norm_groups", "x", "model.norm_groups: Input should be a valid integer"),
    ):
        assert message in refused(peer_checkpoint(tmp_path, **{key: value}), "addtt", capsys)


def imported(state: object, file: Path, *options: str) -> VDM:
    """Import a tree of google-vdm by way of a file, and return the model."""
    file.write_bytes(msgpack.packb(state))
    out = file.with_name("imported")
    command = ["import-checkpoint", str(file), "--format", "google-vdm", "--image-size", "8", "16", "--force"]
    assert run([*command, "--out", str(out), *options]) == 0
    return open_model(out).vdm


def test_the_last_weights_are_imported_on_request_for_images_of_a_height_and_a_width(tmp_path: Path) -> None:
    state = msgpack.unpackb((ORACLES / f"{GOOGLE[0]}.flax").read_bytes(), strict_map_key=False)
    layer = state["params"]["score_model"]["conv_in"]
    shape, kind, numbers = msgpack.unpackb(layer["kernel"].data)
    layer["kernel"] = msgpack.ExtType(1, msgpack.packb([shape, kind, bytes(len(numbers))]))
    averaged = imported(state, tmp_path / "both.flax")
    last = imported(state, tmp_path / "both.flax", "--no-averaged")
    assert averaged.network.conv_in.weight.any()
    assert not last.network.conv_in.weight.any()
    assert last.image_shape == (3, 8, 16)


def test_a_fixed_schedule_has_no_weights(tmp_path: Path) -> None:
    state = msgpack.unpackb((ORACLES / f"{GOOGLE[0]}.flax").read_bytes(), strict_map_key=False)
    del state["ema_params"]["gamma"]
    model = imported(state, tmp_path / "fixed.flax")
    torch.testing.assert_close(model.schedule(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-13.3, -4.15, 5.0]))
    assert model.schedule.end_points() == []


@pytest.mark.slow
def test_an_imported_model_is_evaluated_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = oracle(ORACLES / f"{GOOGLE[0]}.npz")["x"].contiguous().numpy()
    description = {"name": "oracle", "num_levels": 256, "image_shape": [3, 8, 8], "num_train": 4, "num_test": 4}
    save_images(tmp_path / "images", {"train": pixels, "test": pixels}, description)
    shutil.copyfile(ROOT / "presets" / "digits.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    imported = ["import-checkpoint", str(ORACLES / f"{GOOGLE[0]}.flax"), "--format", "google-vdm", "--out", "model"]
    assert run([*imported, "--image-size", "8", "8"]) == 0
    capsys.readouterr()
    assert run(["evaluate", "model", "--images", "images", "--device", "cpu", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["num_images"] == 4
    # The times differ from the oracle's, whose random weights give 10 to 20 bits/dim.
    assert 3 < metrics["bpd"] < 30
    for out in ("model", "model/evaluation"):
        assert run(["evaluate", "model", "--images", "images", "--device", "cpu", "--out", out]) == 0
    assert {"calibration.json", "evaluation"} <= {path.name for path in Path("model").iterdir()}
    assert run([*imported, "--image-size", "16", "16"]) == 2
    capsys.readouterr()
    notes = Path("model/evaluation/notes.md")
    notes.write_text("mine")
    assert run([*imported, "--image-size", "16", "16", "--force"]) == 2
    assert "model is no folder of files that this command writes" in capsys.readouterr().err
    notes.unlink()
    assert run([*imported, "--image-size", "16", "16"]) == 2
    assert "model exists; name another folder, or replace it with --force" in capsys.readouterr().err
    assert run([*imported, "--image-size", "16", "16", "--force"]) == 0
    assert run(["evaluate", "model", "--images", "images", "--device", "cpu"]) == 2
    assert "model is a model of images of 3x16x16" in capsys.readouterr().err


def test_a_file_of_another_digest_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ORACLES / f"{GOOGLE[0]}.flax"
    command = ["import-checkpoint", str(file), "--format", "google-vdm", "--out", str(tmp_path / "model")]
    assert run([*command, "--sha256", "0" * 64]) == 5
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"{file.name}: its sha256 is {found}; get the file again" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert run([*command, "--sha256", found.upper()]) == 0


def test_a_network_without_fourier_features_is_one_that_ignores_them(tmp_path: Path) -> None:
    state = msgpack.unpackb((ORACLES / f"{GOOGLE[0]}.flax").read_bytes(), strict_map_key=False)
    layer = state["ema_params"]["score_model"]["conv_in"]
    shape, kind, numbers = msgpack.unpackb(layer["kernel"].data)
    kernel = np.frombuffer(numbers, kind).reshape(shape)
    ignored = kernel.copy()
    ignored[:, :, 3:] = 0
    networks = []
    for weights in (ignored, kernel[:, :, :3]):
        layer["kernel"] = msgpack.ExtType(1, msgpack.packb([weights.shape, kind, weights.tobytes()]))
        networks.append(imported(state, tmp_path / "file.flax").network)
    expected = oracle(ORACLES / f"{GOOGLE[0]}.npz")
    close(*(network(expected["z"], expected["g_t"]) for network in networks))


def array_of(shape: list[int], content: bytes = b"") -> msgpack.ExtType:
    """Return a flax array whose header claims a shape."""
    return msgpack.ExtType(1, msgpack.packb([shape, "float32", content]))


def flax(tree: object) -> bytes:
    return bytes(msgpack.packb({"ema_params": {"score_model": tree}}))


FLAX: dict[str, bytes] = {
    "cut short": (ORACLES / f"{GOOGLE[0]}.flax").read_bytes()[:-1000],
    "without a layer": (ORACLES / f"{GOOGLE[0]}.flax").read_bytes().replace(b"conv_out", b"conv_uot"),
    "deep": b"\x81\xa1a" * 100_000,
    "a shape without its numbers": flax({"conv_in": {"kernel": array_of([2**40, 2**40], bytes(4))}}),
}


def refused(file: Path, file_format: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Require that a checkpoint is refused in one line, which names the file, with nothing written; return the line."""
    out = file.with_name("refused")
    assert run(["import-checkpoint", str(file), "--format", file_format, "--out", str(out)]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file.parent) in line
    assert not out.exists()
    return line


@pytest.mark.parametrize("kind", FLAX)
def test_a_damaged_file_of_flax_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.flax").write_bytes(FLAX[kind])
    assert "file.flax: not a whole google-vdm checkpoint: " in refused(tmp_path / "file.flax", "google-vdm", capsys)


@pytest.mark.parametrize("kind", ["cut short", "hostile", "not finite", "expanded"])
def test_a_damaged_file_of_torch_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = peer_checkpoint(tmp_path)
    state, name = torch.load(file, weights_only=True), "ema_model.model.conv_in.weight"
    match kind:
        case "hostile":
            state["more"] = Hostile(tmp_path / "trace")
        case "not finite":
            state["ema"][name][0, 0, 0, 0] = torch.nan
        case "expanded":  # more numbers than any memory holds, in a small file
            state["ema"][name] = torch.zeros(1, 1, 1, 1).expand(2**20, 2**20, 3, 3)
    torch.save(state, file)
    if kind == "cut short":
        file.write_bytes(file.read_bytes()[:-1000])
    assert "model.pt: not a whole addtt checkpoint: " in refused(file, "addtt", capsys)
    assert not (tmp_path / "trace").exists()


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing: No such file" in refused(tmp_path / "nothing", "google-vdm", capsys)
    file = peer_checkpoint(tmp_path)
    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:os.system [x]")
    refused(file, "addtt", capsys)
    (tmp_path / "config.yaml").unlink()
    assert "config.yaml: No such file; it must lie beside model.pt" in refused(file, "addtt", capsys)
