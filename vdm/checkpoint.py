"""A model on disk: a folder with `weights.safetensors` and `config.json`, the arguments of `vdm.model.VDM`.

`config.json` carries the sha256 of the weights and of the arguments: a damaged file is refused and never loaded.
"""

import hashlib
import inspect
import io
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from vdm.files import write_whole, written_last
from vdm.model import VDM

WEIGHTS, CONFIG = "weights.safetensors", "config.json"


class CheckpointError(ValueError):
    """A model folder is missing, damaged, or not what it claims to be."""


def save_model(folder: Path, model: VDM, config: dict[str, Any]) -> None:
    """Write the model and the arguments it was built from: both files, or neither.  Raises OSError that names one."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()})
    description = {
        "model": config,
        "model_sha256": config_sha256(config),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    with written_last(folder / CONFIG, json.dumps(description, indent=2) + "\n"):
        write_whole(folder / WEIGHTS, weights)


def load_model(folder: Path, device: torch.device | str = "cpu") -> VDM:
    """The model in `folder`, in evaluation mode on `device`.  Raises CheckpointError; runs no code from the files."""
    config, weights = read_description(folder), read_bytes(folder / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != config["weights_sha256"]:
        raise CheckpointError(f"{folder / WEIGHTS}: sha256 differs from the one in {CONFIG}; restore the file")
    try:
        model = VDM(**config["model"])
        model.load_state_dict(load(weights))
    except (SafetensorError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{folder}: weights and {CONFIG} do not describe one model: {reason}") from error
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{folder / WEIGHTS}: {name} is not finite; restore the file or train again")
    return model.eval().to(device)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state behind its digest; the file appears whole or not at all."""
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(path, hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())


def load_state(path: Path, *, keys: Collection[str] = ()) -> dict[str, Any]:
    """The training state in `path`, on the CPU.

    Raises CheckpointError unless every byte is as it was written, this version of torch reads them, and `keys` are
    among the state's.
    """
    content = read_bytes(path)
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path}: truncated or damaged")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises over another version's file is nowhere listed
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: not a state of torch {torch.__version__}: {reason}") from error
    if not isinstance(state, dict) or not set(keys) <= state.keys():
        raise CheckpointError(f"{path}: must hold {', '.join(sorted(keys))}")
    return state


def model_sha256(folder: Path) -> str:
    """One digest for the whole model: of config.json, which carries the digest of the weights."""
    return hashlib.sha256(read_bytes(folder / CONFIG)).hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """config.json, checked for its keys, its types and its digest.  Raises CheckpointError."""
    content = read_bytes(folder / CONFIG)
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not JSON: {error}") from error
    keys = {"model", "model_sha256", "weights_sha256"}
    if not isinstance(description, dict) or not keys <= description.keys():
        raise CheckpointError(f"{folder / CONFIG}: must hold an object with {', '.join(sorted(keys))}")
    if (wrong := mistyped(description["model"])) is not None:
        raise CheckpointError(f"{folder / CONFIG}: {wrong} is not what vdm.model.VDM takes; restore the file")
    if config_sha256(description["model"]) != description["model_sha256"]:
        raise CheckpointError(f"{folder / CONFIG}: `model` differs from its sha256; restore the file")
    return description


def mistyped(config: Any) -> str | None:
    """The first of a model's arguments that VDM does not take, or not of that type; None where all are right."""
    if not isinstance(config, dict):
        return "`model`"
    types = inspect.get_annotations(VDM.__init__)
    return next((f"`model.{name}`" for name, value in config.items() if not is_a(value, types.get(name))), None)


def is_a(value: Any, annotation: Any) -> bool:
    """Whether a value read from JSON is of the annotated type.  An int is a float; a bool is no int."""
    if get_origin(annotation) is Sequence:
        return isinstance(value, list) and all(is_a(item, get_args(annotation)[0]) for item in value)
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if annotation is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is annotation


def config_sha256(config: Any) -> str:
    """The digest of a model's arguments, whatever the layout of the file."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_bytes(path: Path) -> bytes:
    """The file's bytes; CheckpointError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; is this a model folder?") from error
