"""Convert checkpoints of google-research/vdm and addtt/variational-diffusion-models to model folders.

They may be of anybody: nothing is unpickled, and no code in them runs.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgpack
import numpy as np
import torch
from torch import Tensor

from flows.core import bounded_yaml, layout
from flows.core.errors import CheckpointError, UserError, brief
from flows.core.files import file_sha256, open_regular, read_bounded, replace_folder, require_replaceable
from flows.core.model import CONFIG, TRAINING, WEIGHTS, find_type_error, save_model
from flows.dossier import places
from vdm.model import VDM

Weights = dict[str, Tensor]
Format = Literal["google-vdm", "addtt"]
Config = dict[str, Any]

MOST_BYTES = 2**34
"""The largest file of flax that is read."""
MODEL_FILES = [CONFIG, WEIGHTS, TRAINING, layout.CARD.name]
OF_MODEL = (layout.CALIBRATION, layout.ERROR_CURVE)
RESULTS = [str(path.relative_to(layout.REPORTS)) for path in (*places.RESULTS, *OF_MODEL, layout.SAMPLES)]
EVALUATED = [path.name for path in (layout.METRICS, layout.PER_IMAGE, layout.NOISE_LEVELS, *OF_MODEL)]
REPLACED = "|".join(map(re.escape, [*MODEL_FILES, *RESULTS, *EVALUATED]))
"""The files of a model folder: the model and its card, and what commands put beside it, wherever `--out` said."""

GOOGLE_NAMES = [
    (r"^dense0/", "condition_1/"),
    (r"^dense1/", "condition_2/"),
    (r"^GroupNorm_0/", "norm_out/"),
    (r"^(down|up)\.block_(\d+)/", r"\1.\2/"),
    (r"^(down|up)\.attn_(\d+)/", r"\1_attention.\2/"),
    (r"^mid\.block_(\d)/", r"middle_\1/"),
    (r"^mid\.attn_1/", "middle_attention/"),
    (r"(attention.*)/GroupNorm_0/", r"\1/norm/"),
    (r"/GroupNorm_0/", "/norm_1/"),
    (r"/GroupNorm_1/", "/norm_2/"),
    (r"/conv(\d)/", r"/conv_\1/"),
    (r"/(cond_proj|proj_out)/", "/project/"),
    (r"/nin_shortcut/", "/shortcut/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
]
ADDTT_NAMES = [
    (r"^embed_conditioning\.0\.", "condition_1."),
    (r"^embed_conditioning\.2\.", "condition_2."),
    (r"^conv_out\.0\.", "norm_out."),
    (r"^conv_out\.2\.", "conv_out."),
    (r"^(down|up)_blocks\.(\d+)\.resnet_block\.", r"\1.\2."),
    (r"\.layers\.0\.", ".layers.norm."),
    (r"\.layers\.1\.", ".layers.query_key_value."),
    (r"\.layers\.3\.", ".layers.project."),
    (r"^(down|up)_blocks\.(\d+)\.attention_block\.layers\.", r"\1_attention.\2."),
    (r"^mid_resnet_block_(\d)\.", r"middle_\1."),
    (r"^mid_attn_block\.layers\.", "middle_attention."),
    (r"\.net1\.0\.", ".norm_1."),
    (r"\.net1\.2\.", ".conv_1."),
    (r"\.cond_proj\.", ".project."),
    (r"\.net2\.0\.", ".norm_2."),
    (r"\.net2\.[23]\.", ".conv_2."),
    (r"\.skip_conv\.", ".shortcut."),
]


def import_checkpoint(
    file: Path,
    file_format: Format,
    *,
    out: Path,
    image_size: tuple[int, int],
    num_levels: int,
    averaged: bool,
    sha256: str | None = None,
) -> None:
    """Write the model in `file` to the folder `out`, with the averaged weights or else the last ones.

    A folder `out` that exists is replaced.  Raises, with nothing written, UserError (exit 2) if it holds other files
    than those of a model, and CheckpointError if the file is missing, damaged, of another shape, has another digest
    than `sha256`, or holds anything but weights.  Raises OSError that names a file that cannot be written.
    """
    require_replaceable(out, file, force=True, names=REPLACED)
    try:
        if sha256 and (found := file_sha256(file)) != sha256.lower():
            raise CheckpointError(f"{file}: its sha256 is {found}; get the file again, or correct --sha256")
        config, weights = (read_google if file_format == "google-vdm" else read_addtt)(file, averaged)
        config |= {"image_shape": [config.pop("channels"), *image_size], "num_levels": num_levels}
        if wrong := find_type_error(config):
            raise ValueError(wrong)
        model = VDM(**config)
        model.load_state_dict(weights)
        if not all(weight.isfinite().all() for weight in model.state_dict().values()):
            raise ValueError("its weights are not finite")
    except UserError:
        raise
    except OSError as error:
        raise CheckpointError(f"{error.filename or file}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes msgpack, torch and the conversion raise almost anything
        said = brief(str(error).strip().removesuffix(".") or error)
        reason = said if type(error) is ValueError else f"{type(error).__name__}: {said}; is --format right?"
        raise CheckpointError(f"{file}: not a whole {file_format} checkpoint: {reason}") from error
    with replace_folder(out) as folder:
        save_model(folder, model, config)


@np.errstate(all="ignore")  # numbers too large for float32 become inf, which is refused later
def read_google(file: Path, averaged: bool) -> tuple[Config, Weights]:
    """Return configuration and weights in a flax msgpack of google-research/vdm.

    The file lacks the end points of gamma that scale the time embedding: -13.3 and 5 in every published configuration.
    """
    state = msgpack.unpackb(read_bounded(file, MOST_BYTES), ext_hook=flax_array, strict_map_key=False)
    tree = state["ema_params" if averaged else "params"]
    arrays = flatten(tree["score_model"])
    renamed = {rename(path, GOOGLE_NAMES): torch_layout(path, array) for path, array in arrays.items()}
    network = join_attention(renamed)
    kind, schedule = google_schedule(flatten(tree.get("gamma", {})))
    config = network_config(network, exponents=[6, 7]) | {
        "schedule": kind,
        "gamma_0": -13.3,
        "gamma_1": 5.0,
        "norm_groups": 32,
        "norm_eps": 1e-6,
        "dropout": 0.1,
    }
    return config, add_prefix("network", network) | add_prefix("schedule", schedule)


def google_schedule(arrays: Mapping[str, np.ndarray]) -> tuple[str, Weights]:
    """Return kind and weights of the schedule: learnable_nnet, learnable_scalar, or fixed, which has no weights."""
    gamma = {name: torch.from_numpy(array.astype(np.float32)).flatten() for name, array in arrays.items()}
    if not gamma:
        return "fixed_linear", {"start": torch.tensor(-13.3), "span": torch.tensor(18.3)}
    if "w" in gamma:
        return "learned_linear", {"start": gamma["b"].squeeze(), "span": gamma["w"].squeeze()}
    inner, bias, outer = gamma["l2/kernel"], gamma["l2/bias"], gamma["l3/kernel"]

    def raw(t: float) -> Tensor:
        hidden = 2 * torch.sigmoid(inner.abs() * (2 * t - 1) + bias) - 1
        return gamma["l1/bias"] + gamma["l1/kernel"].abs() * t + (outer.abs() * hidden).mean()

    # Our network is normalised, so its end points are the values of theirs at 0 and 1.
    end_points = {"start": raw(0.0).squeeze(), "span": (raw(1.0) - raw(0.0)).squeeze()}
    return "learned_monotone", end_points | {
        "linear": gamma["l1/kernel"].squeeze(),
        "inner": inner,
        "bias": bias,
        "outer": outer,
    }


def read_addtt(file: Path, averaged: bool) -> tuple[Config, Weights]:
    """Return configuration and weights of addtt's `model.pt`, with `config.yaml` beside it."""
    beside = file.with_name("config.yaml")
    if not beside.exists():
        raise CheckpointError(f"{beside}: No such file; it must lie beside {file.name}, as addtt's training leaves it")
    settings = bounded_yaml.parse(read_bounded(beside))
    with open_regular(file) as content:
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    state = checkpoint["ema" if averaged else "model"]
    prefix = "ema_model." if averaged else ""
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    network = addtt_network(weights)
    if settings["n_attention_heads"] != 1:
        raise ValueError(f"n_attention_heads is {settings['n_attention_heads']}; only 1 can be imported")
    gamma_0, gamma_1 = float(settings["gamma_min"]), float(settings["gamma_max"])
    schedule = {"start": torch.tensor(gamma_0), "span": torch.tensor(gamma_1 - gamma_0)}
    if settings["noise_schedule"] != "fixed_linear":
        schedule = {"start": weights["gamma.b"], "span": weights["gamma.w"]}
    elif "gamma.b" in weights:
        raise ValueError("config.yaml says noise_schedule: fixed_linear, and the weights have a learned one")
    config = network_config(network, exponents=[5, 6]) | {
        "schedule": settings["noise_schedule"],
        "gamma_0": gamma_0,
        "gamma_1": gamma_1,
        "norm_groups": settings["norm_groups"],
        "norm_eps": 1e-5,
        "dropout": settings["dropout_prob"],
    }
    return config, add_prefix("network", network) | add_prefix("schedule", schedule)


def addtt_network(weights: Weights) -> Weights:
    """Return the weights of addtt's network under our names and in our layout."""
    network = {
        rename(name.removeprefix("model."), ADDTT_NAMES): tensor
        for name, tensor in weights.items()
        if name.startswith("model.")
    }
    # Attention's 1x1 convolutions are our linear layers.
    network |= {name: t.flatten(1) for name, t in network.items() if "attention" in name and t.ndim == 4}
    network["conv_in.weight"] = channel_major(network["conv_in.weight"], network["conv_out.weight"].shape[0])
    return network


def channel_major(kernel: Tensor, channels: int) -> Tensor:
    """Reorder the inputs of the first convolution from features grouped by frequency to features grouped by channel."""
    plain, features = kernel[:, :channels], kernel[:, channels:]
    by_frequency = features.unflatten(1, (2, -1, channels))  # sine or cosine, frequency, channel
    return torch.cat([plain, by_frequency.transpose(2, 3).flatten(1, 3)], dim=1)


def network_config(network: Weights, *, exponents: list[int]) -> Config:
    """Return the configuration of the network that follows from the shapes of its parameters.

    `exponents` are those of its Fourier features, if it has any.
    """
    width, channels = network["conv_in.weight"].shape[0], network["conv_out.weight"].shape[0]
    return {
        "channels": channels,
        "fourier_exponents": exponents if network["conv_in.weight"].shape[1] > channels else [],
        "width": width,
        "blocks": sum(bool(re.fullmatch(r"down\.\d+\.conv_1\.weight", name)) for name in network),
        "attention_everywhere": any(name.startswith("down_attention.") for name in network),
        "augmentation_input": network["condition_1.weight"].shape[1] == width + 1,
    }


def torch_layout(path: str, array: np.ndarray) -> Tensor:
    """Convert an HWIO convolution to OIHW, an (in, out) matrix to (out, in), a shortcut's to a 1x1 convolution."""
    tensor = torch.from_numpy(array.astype(np.float32))
    if path.endswith("/nin_shortcut/kernel"):
        return tensor.transpose(0, 1)[:, :, None, None].contiguous()
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return (tensor.T if tensor.ndim == 2 else tensor).contiguous()


def join_attention(network: Weights) -> Weights:
    """Join the separate q, k and v layers into one layer with their outputs in that order."""
    joined = {name: tensor for name, tensor in network.items() if not re.search(r"\.[qkv]\.", name)}
    for name in network:
        if ".q." in name:
            parts = [network[name.replace(".q.", f".{part}.")] for part in "qkv"]
            joined[name.replace(".q.", ".query_key_value.")] = torch.cat(parts)
    return joined


def rename(name: str, rules: list[tuple[str, str]]) -> str:
    """Return the name after all replacements, made in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def add_prefix(prefix: str, weights: Weights) -> Weights:
    """Return the weights with `prefix` and a dot before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in weights.items()}


def flax_array(code: int, data: bytes) -> np.ndarray:
    """Return an array (extension 1) or scalar (3) of a flax msgpack, which holds its shape, dtype name and bytes."""
    if code not in (1, 3):
        raise ValueError(f"unknown msgpack extension {code}")
    shape, dtype, content = msgpack.unpackb(data)
    if dtype not in ("float32", "float64", "int32", "int64"):
        raise ValueError(f"unexpected dtype {dtype}")
    return np.frombuffer(content, dtype).reshape(shape)


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, np.ndarray]:
    """Return the leaves of nested mappings by path, such as "a/b"."""
    leaves: dict[str, np.ndarray] = {}
    for name, node in tree.items():
        leaves |= flatten(node, f"{path}{name}/") if isinstance(node, Mapping) else {f"{path}{name}": node}
    return leaves
