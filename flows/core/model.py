"""A trained model: the folder in which it lies, and the opened model that commands pass along.

The folder has `weights.safetensors`, and `config.json` for the arguments of `vdm.model.VDM`.  `config.json` also has
the sha256 of the weights and of the arguments, so that a damaged file is never loaded, and says which images the model
was fitted to.  A model that the pipeline made has `training.json`, too: on what it was trained, and how.  Its card,
README.md, is made of these and read by nobody; see `flows.core.card`.

The network carries what these documents say.  So a model can be in memory alone: one that was trained there, until it
is saved.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from flows.core.ancestry import Ancestor, SeenImages
from flows.core.documents import Count, Document, Number, Sha256, explain, parse, read_document
from flows.core.errors import CheckpointError, Exit, UserError, brief
from flows.core.files import (
    MOST_BYTES,
    contains,
    open_regular,
    parse_json,
    read_bounded,
    replace_file_last,
    write_whole,
)
from flows.core.network_code import HERE, NetworkCode
from flows.core.networks import NetworkSource, at_most, new_vdm
from flows.core.params import Model, Section
from vdm.choices import FITTED_SPLITS, ScheduleKind, TrainingImages
from vdm.model import VDM
from vdm.network import OwnNetwork

log = logging.getLogger(__name__)

WEIGHTS, CONFIG, TRAINING = "weights.safetensors", "config.json", "training.json"
MOST_CONFIG_BYTES = 2**20
# A weight takes at most 8 bytes; the header has the names, shapes and offsets of the tensors.
MOST_WEIGHT_BYTES, MOST_HEADER_BYTES = 8, 2**23
HARMLESS = {"images_on", "samples_every_steps", "tracker"}
"""Parameters `train` that do not change the result of a training."""
ADVICE = "is this a model folder? `dvc repro` makes those in models"


class Arguments(Section):
    """The types of the arguments of `vdm.model.VDM`, which checks their values: other codes have other limits."""

    image_shape: Sequence[int]
    num_levels: int
    schedule: ScheduleKind
    gamma_0: float
    gamma_1: float
    width: int
    blocks: int
    attention_everywhere: bool
    fourier_exponents: Sequence[int]
    norm_groups: int
    norm_eps: float
    dropout: float
    augmentation_input: bool
    classes: int | None = None


class ArgumentsWithNetwork(Section):
    """The types of those of a `vdm.model.VDM` with a network of the user's own, and what makes that network."""

    image_shape: Sequence[int]
    num_levels: int
    schedule: ScheduleKind
    gamma_0: float
    gamma_1: float
    network: str
    options: dict[str, Any]
    classes: int | None = None


class ModelDescription(Document):
    """config.json of a model: its arguments, and the digests of these and of the weights."""

    model: dict[str, Any]
    model_sha256: Sha256
    """Of the arguments alone; that of the whole model is `TrainedModel.sha256`."""
    weights_sha256: Sha256
    fitted_to: TrainingImages | None = None
    network_sha256: Sha256 | None = None
    """Of the code of a network of the user's own, as the training ran it; None if it is not known."""
    inputs_sha256: Sha256 | None = None
    """Of everything that the training was given; see `inputs_sha256`."""
    ancestors: list[Ancestor] | None = None
    """The model from which the training began, then the one from which that began, back to the first."""
    class_names: list[str] | None = None
    labels_sha256: Sha256 | None = None


class Training(Document):
    """training.json of a model: the images that it was trained on, the end of its training, and all parameters."""

    name: str
    """Of the image set, as `data.name` has it."""
    fitted_to: TrainingImages
    title: str | None = None
    homepage: str | None = None
    licence: str | None = None
    """Of the images; null if it is not stated."""
    num_train: Count
    num_validation: Count = 0
    num_test: Count
    split: str | None = None
    """How the images were divided, in words."""
    transforms: str
    """How their pixels were changed, in words."""
    data_sha256: Sha256
    contract: str | None = None
    """What the data contract found, in words; null if it was not asked."""
    step: Count
    """The last one."""
    bpd: Number
    """The training loss in the last line of the log, in bits/dim."""
    kept_step: Count | None = None
    """The step whose weights were kept since they were the best on the validation images; null for the last one."""
    kept_bpd: Number | None = None
    """The bits/dim of the validation images at that step."""
    class_dropout: Number | None = None
    """The share of the training in which the class was left out; null for a model without classes."""
    judgement: list[str]
    """What the figures of the training mean, in words."""
    pipeline: str | None = None
    """The version of this package that wrote it; null if it is not stated."""
    parameters: dict[str, dict[str, Any]]
    """The sections `data`, `model` and `train` of params.yaml."""

    @property
    def num_fitted(self) -> int:
        """The number of images that the model was fitted to."""
        counts = {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}
        return sum(counts[split] for split in FITTED_SPLITS[self.fitted_to])

    def as_json(self) -> str:
        """Return the content of training.json."""
        return json.dumps(self.model_dump(exclude_unset=True), indent=2) + "\n"


class DescribedVDM(VDM):
    """A VDM with what lies beside its weights: the text of `config.json`, and training.json if it has one."""

    name = "a model in memory"
    """The folder or the version that the user named."""
    config = ""
    of_training: Training | None = None
    seen: SeenImages | None = None
    """The images that it was trained on, if that was in this process."""


class TrainedModel:
    """An opened model: its network in evaluation mode, and what its folder says of it.

    Processes that share work get the path and open it again, on the CPU: that is how this object is pickled.
    """

    def __init__(
        self, description: ModelDescription, vdm: DescribedVDM, opened: Path | None = None, source: NetworkSource = HERE
    ) -> None:
        self.description = description
        self.vdm = vdm
        self.opened = opened
        """The folder from which it was opened; None for a model in memory."""
        self.source = source
        """Of what a network of the user's own was made."""
        self.name = vdm.name
        self.sha256 = hashlib.sha256(vdm.config.encode()).hexdigest()
        """Of config.json, which covers the model since it contains the digest of the weights."""

    def __reduce__(self) -> tuple[Any, tuple[Path, str, str, NetworkSource]]:
        return open_model, (self.folder, "cpu", self.name, self.source)

    @property
    def folder(self) -> Path:
        """Where it lies.  Raises LookupError for a model in memory."""
        if self.opened is None:
            raise LookupError(f"{self.name} lies in no folder")
        return self.opened

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.vdm.image_shape

    @property
    def num_levels(self) -> int:
        """K: pixels are 0..K-1."""
        return self.vdm.num_levels

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None for a model without any."""
        return self.vdm.classes

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes by number, if it has some and states them."""
        return self.description.class_names

    @property
    def fitted_to(self) -> TrainingImages | None:
        """The images that it was trained on; None if they are not known, as of an imported model."""
        return self.description.fitted_to

    @property
    def line(self) -> list[Ancestor]:
        """Itself, then the models from which its training and theirs began, as a training states that begins here."""
        licence = self.training.licence if self.training else None
        itself = Ancestor(name=self.name, model_sha256=self.sha256, licence=licence)
        return [itself, *(self.description.ancestors or [])]

    @property
    def device(self) -> torch.device:
        """Where its network is."""
        return next(self.vdm.parameters()).device

    def on(self, device: torch.device) -> "TrainedModel":
        """Return the model after moving its network to the device.  Raises UserError (exit 2) for too little memory."""
        if self.device != device:
            require_room(self.name, sum(p.numel() for p in self.vdm.parameters()), device)
            self.vdm.to(device)
        return self

    @property
    def own_network(self) -> nn.Module | None:
        """A network of the user's own; None for that of the paper."""
        network = self.vdm.network
        return network.network if isinstance(network, OwnNetwork) else None

    @property
    def training(self) -> Training | None:
        """On what it was trained, and how; None if that is not known, as of an imported model."""
        return self.vdm.of_training

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The parameters of its training by section; {} if they are not known."""
        return self.training.parameters if self.training else {}


def open_model(
    folder: Path, device: torch.device | str = "cpu", name: str | None = None, source: NetworkSource = HERE
) -> TrainedModel:
    """Return the model in `folder`, in evaluation mode on `device`.  No pickle is read.  `name` is for messages.

    A network of the user's own is made of `source`, once its weights are known to be whole.

    Raises UserError: exit 5 if a file is missing or damaged, 2 if the device has too little memory for the parameters,
    or without the network of which the model is.
    """
    description, _ = read_config(folder)
    device, own = torch.device(device), "network" in description.model
    if not own and isinstance(source, nn.Module):
        raise UserError(f"{folder} has the network of this package, so `network` cannot take its place", Exit.USAGE)
    if isinstance(source, NetworkCode) and own:
        if contains(folder, source.folder):
            reason = f"the code of its network lies in the folder itself, {source.folder}, and is not run"
            raise UserError(f"{folder}: {reason}; read it, and work in a folder of your own", Exit.USAGE)
        network = description.model["network"]
        if description.network_sha256 not in (None, source.of(network).sha256):
            other = "%s was trained with other code of %s than %s has now, so its figures are not those of that model"
            log.warning(other, name or folder, network, source.name)
    try:
        if own:  # what it computes for itself would be lost without values, so it is made last
            num_tensors, count = count_tensors(folder / WEIGHTS)
        else:  # shapes without values: nothing is allocated yet
            with torch.device("meta"):
                vdm = new_vdm(DescribedVDM, description.model, source)
            count = sum(p.numel() for p in vdm.parameters())
        require_room(str(folder), count, device)
        weights = read_bytes(folder / WEIGHTS, MOST_WEIGHT_BYTES * count + MOST_HEADER_BYTES)
        if hashlib.sha256(weights).hexdigest() != description.weights_sha256:
            raise CheckpointError(f"{folder / WEIGHTS}: sha256 differs from the one in {CONFIG}; restore the file")
        tensors, kinds = load(weights), {}
        if own:
            with at_most(num_tensors, count):
                vdm = new_vdm(DescribedVDM, description.model, source)
            kinds = {name: each.dtype for name, each in vdm.state_dict().items() if each.is_floating_point()}
        # Copied, since the tensors of a file are not aligned in memory as those of a new model.
        tensors = {
            name: each.to(kinds.get(name, torch.float32) if each.is_floating_point() else each.dtype, copy=True)
            for name, each in tensors.items()
        }
        vdm.load_state_dict(tensors, assign=True)
    except (SafetensorError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: weights and {CONFIG} do not describe one model: {brief(error)}") from error
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{folder / WEIGHTS}: {key} is not finite; restore the file or train again")
    vdm.name, vdm.config = name or str(folder), read_bytes(folder / CONFIG).decode()
    training = folder / TRAINING
    vdm.of_training = (
        read_document(Training, training, "restore the file", MOST_CONFIG_BYTES) if training.exists() else None
    )
    return TrainedModel(description, vdm.eval().to(device), folder, source)


def count_tensors(weights: Path) -> tuple[int, int]:
    """Return how many tensors a file of weights has, and how many numbers, as its header says.

    Raises CheckpointError if it cannot be read; ValueError, TypeError or LookupError for another header.
    """
    try:
        with open_regular(weights) as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), MOST_HEADER_BYTES))
    except OSError as error:
        raise CheckpointError(f"{weights}: {error.strerror}; {ADVICE}") from error
    shapes = [each["shape"] for name, each in dict(parse_json(header)).items() if name != "__metadata__"]
    return len(shapes), sum(map(math.prod, shapes))


def model_in_memory(vdm: VDM) -> TrainedModel:
    """Return the model of a network from `open_model` or `describe_network`, whatever its folder is now.

    If its weights were changed, it is a new model, which began from that one.  Raises TypeError for another network.
    """
    if not isinstance(vdm, DescribedVDM):
        raise TypeError(f"a model from `load` or `train` is needed, got {type(vdm).__name__}")
    model = TrainedModel(parse(ModelDescription, vdm.config.encode(), vdm.name), vdm)
    if hashlib.sha256(weights_of(vdm)).hexdigest() == model.description.weights_sha256:
        return model
    names = {} if model.class_names is None else {"class_names": model.class_names}
    code = model.description.network_sha256
    return describe_network(vdm, model.description.model, ancestors=model.line, network=code, **names)


def describe_network(vdm: DescribedVDM, config: dict[str, Any], **stated: Any) -> TrainedModel:
    """Return a new model in memory: its network, made from the arguments `config`, gets the texts that describe it.

    `stated` is what `describe_weights` takes.
    """
    vdm.name, vdm.of_training = DescribedVDM.name, None
    vdm.config = describe_weights(weights_of(vdm), config, **stated)
    return TrainedModel(parse(ModelDescription, vdm.config.encode(), vdm.name), vdm)


def read_config(folder: Path) -> tuple[ModelDescription, str]:
    """Return the content of config.json and its sha256.

    Raises UserError (exit 5) if its keys, types or digest are wrong.
    """
    path = folder / CONFIG
    description = read_document(ModelDescription, path, ADVICE, MOST_CONFIG_BYTES)
    if wrong := find_type_error(description.model):
        raise CheckpointError(f"{path}: {wrong}; restore the file")
    if config_sha256(description.model) != description.model_sha256:
        raise CheckpointError(f"{path}: `model` differs from its sha256; restore the file")
    return description, hashlib.sha256(read_bytes(path)).hexdigest()


def save_model(folder: Path, model: VDM, config: dict[str, Any], **stated: Any) -> None:
    """Write a model, the arguments it was built from, and what `describe_weights` takes.

    Raises OSError that names the file.

    A full disk leaves both old files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights_of(model)
    with replace_file_last(folder / CONFIG, describe_weights(weights, config, **stated)):
        write_whole(folder / WEIGHTS, weights)


def copy_model(folder: Path, model: TrainedModel) -> None:
    """Write a model, as it is in memory, into an empty folder: weights, and the documents that it has."""
    write_whole(folder / WEIGHTS, weights_of(model.vdm))
    write_whole(folder / CONFIG, model.vdm.config)
    if model.training:
        write_whole(folder / TRAINING, model.training.as_json())


def weights_of(model: VDM) -> bytes:
    """Return the content of a file of weights."""
    return save({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()})


def describe_weights(
    weights: bytes,
    config: dict[str, Any],
    *,
    fitted_to: TrainingImages | None = None,
    network: str | None = None,
    inputs: str | None = None,
    ancestors: Sequence[Ancestor] = (),
    **classes: Any,
) -> str:
    """Return the content of config.json for a file of weights, and the arguments of its model.

    `fitted_to` are the images that the model was trained on, `network` is the digest of the code of a network of the
    user's own, and `inputs` that of all inputs of the training; each is None if it is not known.  `ancestors` is the
    line of the model from which the training began.
    `classes` are keys about the classes.
    """
    description: dict[str, Any] = {
        "model": config,
        "model_sha256": config_sha256(config),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    if fitted_to:
        description["fitted_to"] = fitted_to
    if network:
        description["network_sha256"] = network
    if inputs:
        description["inputs_sha256"] = inputs
    if ancestors:
        description["ancestors"] = [ancestor.model_dump() for ancestor in ancestors]
    description |= classes
    return json.dumps(description, indent=2) + "\n"


def arguments_of(model: Model, image_shape: Sequence[int], num_levels: int) -> dict[str, Any]:
    """Return the arguments of `vdm.model.VDM` for the parameters `model` and images of this shape and these levels."""
    without = {"classes"} if model.classes is None else set()  # as in models of earlier versions
    if model.network:
        named = {*ArgumentsWithNetwork.model_fields} - {"image_shape", "num_levels"}
        chosen = model.model_dump(include=named - without)
    else:
        chosen = model.model_dump(exclude=without | {"network", "options"})
    return {"image_shape": image_shape, "num_levels": num_levels, **chosen}


def inputs_sha256(
    config: Mapping[str, Any], train: Mapping[str, Any], data_sha256: str, labels_sha256: str | None = None
) -> str:
    """Return the digest of the inputs of a training: arguments of the model, parameters `train`, images and labels."""
    unused = HARMLESS if labels_sha256 else {*HARMLESS, "class_dropout"}
    if train.get("start_from") is None:
        unused = {*unused, "start_from"}  # as in models of earlier versions
    train = {name: value for name, value in train.items() if name not in unused}
    inputs = {"model": config, "train": train, "data": data_sha256}
    return config_sha256(inputs | ({"labels": labels_sha256} if labels_sha256 else {}))


def require_room(name: str, count: int, device: torch.device, *, bytes_each: int = 4) -> None:
    """Raise UserError (exit 2) unless the device has the memory free for `count` parameters of `bytes_each` bytes."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if bytes_each * count > free:
        sizes = f"{count:,} parameters, and {device} has {free / 2**30:,.1f} GiB of memory free"
        raise UserError(f"{name}: the model has {sizes}; free memory, or choose a smaller one", Exit.USAGE)


def find_type_error(config: Any) -> str | None:
    """Return what is wrong with the arguments of a model, such as "model.width: Field required"; None if nothing is."""
    try:
        check_arguments(config)
    except ValidationError as error:
        return f"model.{explain(error)}"
    return None


def check_arguments(config: Any) -> Arguments | ArgumentsWithNetwork:
    """Return the arguments of a model.  Raises ValidationError."""
    kind = ArgumentsWithNetwork if isinstance(config, dict) and "network" in config else Arguments
    return kind.model_validate(config)


def config_sha256(config: Any) -> str:
    """Return the sha256 of a model's arguments as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes.  Raises CheckpointError."""
    try:
        return read_bounded(path, most)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; {ADVICE}") from error
