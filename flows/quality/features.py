"""The network whose features compare images: a small classifier of the training images, saved in its own folder.

The task is the images' labels.  Without labels, or if they cannot be learned, it is the images' orientation: which of
the four symmetries of a rectangle an image went through (after Gidaris et al. 2018, arXiv 1803.07728).
"""

import hashlib
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from flows.core.checkpoint import CONFIG, WEIGHTS, model_sha256, read_bytes
from flows.core.documents import Count, Document, Number, Sha256, read
from flows.core.errors import CheckpointError, brief
from flows.core.files import write_whole
from flows.core.folders import writing_folder
from flows.process.progress import bar
from vdm.errors import TrainingDiverged

if TYPE_CHECKING:
    from flows.core.params import Features

Task = Literal["labels", "symmetries"]
SYMMETRIES = ((), (2,), (3,), (2, 3))  # the axes to flip
EMBEDDING_BATCH = 500


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


def fit(
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


def learned(right: float, guess: float, num_images: int) -> bool:
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
    with writing_folder(folder) as whole:
        write_whole(whole / WEIGHTS, weights)
        write_whole(whole / CONFIG, json.dumps(described, indent=2, sort_keys=True) + "\n")


def load_features(folder: Path, device: torch.device) -> tuple[Classifier, FeaturesConfig, str]:
    """Return the network, its description, and the description's digest, which covers the weights.

    Raises CheckpointError.
    """
    config = read(FeaturesConfig, folder / CONFIG, "run `vdmctl features`")
    weights = read_bytes(folder / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != config.weights_sha256:
        raise CheckpointError(f"{folder / WEIGHTS}: sha256 differs from the one in {CONFIG}; restore the file")
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the description has
            network = Classifier(config.channels, config.num_levels, config.num_classes, config.width)
        network.load_state_dict(load(weights), assign=True)
    except (SafetensorError, ArithmeticError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: weights and {CONFIG} do not describe one network: {brief(error)}") from error
    return network.eval().to(device), config, model_sha256(folder)
