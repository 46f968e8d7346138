"""The stage `features`: the network whose features compare images, a small classifier of the training images.

The task is the images' labels.  Without labels, or if they cannot be learned, it is the images' orientation: which of
the four symmetries of a rectangle an image went through (after Gidaris et al. 2018, arXiv 1803.07728).
"""

import hashlib
import json
import logging
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from flows.contract.findings import Verdict, require_valid
from flows.core.device import find_device
from flows.core.documents import Count, Document, Number, Sha256, read_document
from flows.core.errors import CheckpointError, Exit, UserError, brief
from flows.core.files import replace_folder, write_whole
from flows.core.model import CONFIG, WEIGHTS, read_bytes
from flows.images.image_set import ImageSet
from flows.process.streams import bar
from vdm.errors import TrainingDiverged

if TYPE_CHECKING:
    from flows.core.params import Features

log = logging.getLogger(__name__)

Task = Literal["labels", "symmetries"]
SYMMETRIES = ((), (2,), (3,), (2, 3))  # the axes to flip
EMBEDDING_BATCH = 500


def features(settings: "Features", images: ImageSet, verdict: Verdict, out: Path) -> None:
    """Write the classifier, fitted to the training images, with its accuracy on the test images.

    With the task `auto`, labels that it does not find clearly better than by a guess are replaced by symmetries.
    Raises UserError for labels that the set does not have (exit 2), unless the verdict says that the images are valid
    (4), or if labels cannot be read (5); OSError that names the file.
    """
    require_valid(images, verdict, needs_validation_images=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    device, count = find_device(settings.device), len(images["test"])
    for task, train, test in tasks(images, settings.task):
        network = fit_classifier(images["train"], train, settings, num_levels=images.num_levels, device=device)
        right = accuracy(network, images["test"], test, settings.seed)
        guess = 1 / len(SYMMETRIES) if test is None else float(np.bincount(test).max() / count)
        log.info("features: %s found %.4f +- %.4f, by a guess %.4f", task, right, share_error(right, count), guess)
        if has_learned(right, guess, count):
            break
    described: dict[str, object] = {
        "task": task,
        "channels": images.image_shape[0],
        "num_levels": images.num_levels,
        "num_classes": network.head.out_features,
        "width": settings.width,
        "accuracy": right,
        "guess": guess,
        "data_sha256": images.data_sha256,
    }
    save_features(out, network, described)


def tasks(images: ImageSet, task: str) -> list[tuple[Task, np.ndarray | None, np.ndarray | None]]:
    """Return the tasks to try in turn, with the classes of training and test images from 0; None for their symmetries.

    Raises UserError (exit 2) for the task `labels` without labels of two classes, and (exit 5) for labels that do
    not fit the images.
    """
    symmetries: tuple[Task, None, None] = ("symmetries", None, None)
    if task == "symmetries":
        return [symmetries]
    train, test = images.labels("train"), images.labels("test")
    if train is None or test is None or len(np.unique(train)) < 2:  # nothing can be learned from one class
        if task == "auto":
            return [symmetries]
        reason = f"{images.name} has no labels of two classes"
        raise UserError(f"{reason}; set features.task to auto or symmetries", Exit.USAGE)
    if (len(train), len(test)) != (len(images["train"]), len(images["test"])):
        raise UserError(f"{images.name}: the number of labels is not that of the images", Exit.MISSING)
    _, numbers = np.unique(np.concatenate([train, test]), return_inverse=True)
    labels: tuple[Task, np.ndarray, np.ndarray] = ("labels", numbers[: len(train)], numbers[len(train) :])
    return [labels, symmetries] if task == "auto" else [labels]


class FeaturesConfig(Document):
    """config.json of the features: their network, what it was trained on, and how well it does on the test images."""

    task: Task
    num_classes: Count
    channels: Count
    num_levels: Count
    width: Count
    accuracy: Number
    guess: Number
    """The accuracy of the best guess: a symmetry, or the most frequent label."""
    data_sha256: Sha256
    weights_sha256: Sha256


class Classifier(nn.Module):
    """Images (B,C,H,W) of levels -> logits (B, num_classes), by way of 4 `width` features of the whole image."""

    def __init__(self, channels: int, num_levels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_levels, self.width = num_levels, width
        sizes = [channels, width, 2 * width, 4 * width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=1 if place == 0 else 2, padding=1)
            for place, (inputs, outputs) in enumerate(pairwise(sizes))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, outputs) for outputs in sizes[1:])
        self.head = nn.Linear(4 * width, num_classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features (B, 4 width) of integer pixels."""
        h = 2 * pixels.float() / (self.num_levels - 1) - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = relu(norm(convolution(h)))
        return h.mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))  # type: ignore[no-any-return]


def fit_classifier(
    pixels: np.ndarray, labels: np.ndarray | None, settings: "Features", *, num_levels: int, device: torch.device
) -> Classifier:
    """Return a classifier fitted to pixels (N,C,H,W) with labels (N,) from 0, or to their symmetries for None.

    Raises TrainingDiverged if a weight is no longer finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    num_classes = len(SYMMETRIES) if labels is None else int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Classifier(pixels.shape[1], num_levels, num_classes, settings.width).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
    for _ in bar("features")(range(settings.steps)):
        chosen = torch.randint(len(pixels), (settings.batch_size,), generator=generator).numpy()
        batch, target = exercise(pixels[chosen], None if labels is None else labels[chosen], generator)
        loss = cross_entropy(network(batch.to(device)), target.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise TrainingDiverged("the classifier's weights are no longer finite; lower features.learning_rate")
    return network.eval()


def exercise(pixels: np.ndarray, labels: np.ndarray | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch and its classes: the labels, or without labels a random symmetry of each image."""
    batch = torch.from_numpy(np.ascontiguousarray(pixels))
    if labels is not None:
        return batch, torch.from_numpy(labels.astype(np.int64))
    target = torch.randint(len(SYMMETRIES), (len(batch),), generator=generator)
    batch = batch.int() if batch.dtype == torch.uint16 else batch  # torch cannot flip these
    for number, axes in enumerate(SYMMETRIES):
        batch[target == number] = batch[target == number].flip(axes)
    return batch, target


@torch.inference_mode()
def accuracy(network: Classifier, pixels: np.ndarray, labels: np.ndarray | None, seed: int) -> float:
    """Return the share of images whose class the network finds."""
    device, right = next(network.parameters()).device, 0
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, len(pixels), EMBEDDING_BATCH):
        part = slice(first, first + EMBEDDING_BATCH)
        batch, target = exercise(np.array(pixels[part]), None if labels is None else labels[part], generator)
        right += int((network(batch.to(device)).argmax(1).cpu() == target).sum())
    return right / len(pixels)


def share_error(share: float, num_images: int) -> float:
    """Return the standard error of a share of images."""
    return math.sqrt(share * (1 - share) / num_images)


def has_learned(right: float, guess: float, num_images: int) -> bool:
    """Whether an accuracy is three standard errors above that of a guess.  Else the features say nothing of images."""
    return right > guess + 3 * share_error(guess, num_images)


@torch.inference_mode()
def embed(network: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Return the features (N,D) float64 of pixels (N,C,H,W)."""
    device = next(network.parameters()).device
    batches = (np.array(pixels[first : first + EMBEDDING_BATCH]) for first in range(0, len(pixels), EMBEDDING_BATCH))
    parts = [network.features(torch.from_numpy(batch).to(device)).double().cpu() for batch in batches]
    return torch.cat(parts).numpy()


def save_features(folder: Path, network: Classifier, described: dict[str, object]) -> None:
    """Write the network with its description: the whole folder or nothing.  Raises OSError that names the file."""
    weights = save({name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()})
    described = described | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    with replace_folder(folder) as whole:
        write_whole(whole / WEIGHTS, weights)
        write_whole(whole / CONFIG, json.dumps(described, indent=2, sort_keys=True) + "\n")


class Embedding(NamedTuple):
    """The opened network whose features compare images, and what its folder, `name`, says of it."""

    name: str
    network: Classifier
    config: FeaturesConfig
    sha256: str
    """Of config.json, which covers the weights."""


def open_features(folder: Path) -> Embedding:
    """Return the network in a folder, on the CPU.  Raises CheckpointError."""
    config = read_document(FeaturesConfig, folder / CONFIG, "run `vdmctl features`")
    weights = read_bytes(folder / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != config.weights_sha256:
        raise CheckpointError(f"{folder / WEIGHTS}: sha256 differs from the one in {CONFIG}; restore the file")
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the description has
            network = Classifier(config.channels, config.num_levels, config.num_classes, config.width)
        network.load_state_dict(load(weights), assign=True)
    except (SafetensorError, ArithmeticError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: weights and {CONFIG} do not describe one network: {brief(error)}") from error
    sha256 = hashlib.sha256(read_bytes(folder / CONFIG)).hexdigest()
    return Embedding(str(folder), network.eval(), config, sha256)
