"""The other codes that ours is compared with, each in a file with its own recipe: optimizer, rates, average, precision.

Nothing of their code is here: the user names a checkout, or has installed the package.
"""

import argparse
import sys
from abc import ABC, abstractmethod
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

Name = Literal["addtt", "bsi", "diffusers", "google"]
Model = dict[str, Any]
"""The arguments of our model, whose sizes the peer's network has."""


class Peer(ABC):
    """Another code's model in training, as its own script trains it.

    `network` is what is trained.
    """

    repository: ClassVar[str]
    mark: ClassVar[str] = ""
    """A file by which a checkout is known; "" for a package that is installed."""
    needs: ClassVar[tuple[str, ...]]
    """Modules that must be installed."""
    learning_rates: ClassVar[tuple[float, float]]
    """That of its own script, and one that suits minutes better."""
    batch_size: ClassVar[int]
    """That of its own script."""
    network: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        checkout: Path | None,
        model: Model,
        device: torch.device,
        learning_rate: float,
        precision: str,
        batch_size: int,
    ) -> None:
        self.device, self.learning_rate, self.precision = device, learning_rate, precision
        self.done = 0
        self.build(checkout, model, batch_size)

    @abstractmethod
    def build(self, checkout: Any, model: Model, batch_size: int) -> None:
        """Make `network`, `optimizer` and whatever averages the weights.  `checkout` is None for a package."""

    @abstractmethod
    def loss(self, pixels: Tensor) -> Tensor:
        """Return the loss of a training step on pixels (B,C,H,W), levels on the device."""

    @abstractmethod
    def average(self) -> None:
        """Update the averaged weights after a step."""

    @abstractmethod
    def evaluate(self, pixels: Tensor) -> None:
        """Compute the bound of pixels with one network evaluation each, and read it."""

    @abstractmethod
    def sample(self, count: int, num_timesteps: int) -> None:
        """Draw images."""

    @abstractmethod
    def save(self, folder: Path, images: np.ndarray, times_per_image: int) -> None:
        """Write to a new folder, of the averaged and of the last weights, what tells the bits/dim of images.

        That is a model folder of ours, or NAME.npy, the bits/dim of each image by the peer's own bound.
        """

    def factor(self, share: float) -> float:
        """Return the multiplier of the learning rate after this share of the training."""
        return 1.0

    def autocast(self) -> torch.autocast:
        """Return the context of the network's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def step(self, pixels: Tensor, share: float = 0.0) -> None:
        """Take a step: forward, backward, clipping, the optimizer, reading the loss, averaging."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.factor(share)
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.loss(pixels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        loss.item()
        self.average()
        self.done += 1


def class_of(name: Name) -> Any:
    """Return the class of a peer, which takes (checkout, model, device, learning_rate, precision, batch_size)."""
    return import_module(f"benchmarks.peers.{name}").PEER


def require_peer(name: Name | None, checkout: Path | None, python: Path | None) -> None:
    """Raise ValueError unless the checkout is one of the peer, and what it needs is installed."""
    if name is None:
        raise ValueError("--checkout needs --peer, the name of the code")
    peer = class_of(name)
    if peer.mark and not (checkout and (checkout / peer.mark).is_file()):
        wrong = f"--checkout {checkout} is none: it has no {peer.mark}" if checkout else "--checkout is missing"
        raise ValueError(f"--peer {name} needs a checkout of {peer.repository}; {wrong}")
    if name == "google" and not (python and python.is_file()):
        raise ValueError("--peer google needs --peer-python, the Python of an environment with jax, flax, optax, chex")
    if missing := [module for module in peer.needs if not find_spec(module)]:
        raise ValueError(f"--peer {name} needs modules that are not installed: {', '.join(missing)}")


def importable(checkout: Path) -> None:
    """Let a checkout's modules be imported."""
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))


def peer_options(options: argparse.ArgumentParser, default: Name | None) -> None:
    """Add the options that choose a peer."""
    options.add_argument("--peer", choices=get_args(Name), default=default, help="the code to compare with")
    options.add_argument("--checkout", type=Path, help="a checkout of the peer; diffusers needs none")
    options.add_argument("--peer-python", type=Path, help="of google: the Python of an environment with JAX")
    options.add_argument("--peer-precision", choices=["float32", "bfloat16"], default="float32", help="not of google")


def peer_arguments(chosen: argparse.Namespace) -> list[str]:
    """Return the options of `peer_options` that were chosen, for another process."""
    names = ("peer", "checkout", "peer_python", "peer_precision")
    values = {name: getattr(chosen, name) for name in names}
    return [text for name, value in values.items() if value for text in (f"--{name.replace('_', '-')}", str(value))]
