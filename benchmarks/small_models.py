"""Train small models for the benchmarks."""

import sys
from pathlib import Path

import numpy as np
import torch

from flows.images.catalogue import FASHION_MNIST
from flows.images.publishers import read_digits, read_published
from flows.images.splitting import TEST, TRAIN
from vdm.choices import ScheduleKind
from vdm.model import VDM
from vdm.training.settings import TrainingSettings
from vdm.training.trainer import Trainer


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the training and held-out digits, (N,1,8,8) uint8."""
    images, _, splits = read_digits(0.2, 0, 0)
    return images[splits == TRAIN], images[splits == TEST]


def fashion_mnist(source: Path, scratch: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return both splits of Fashion-MNIST, (N,1,28,28) uint8, from a folder with the publisher's files."""
    train, test = read_published(FASHION_MNIST, source, scratch)
    return train.images, test.images


def trained(
    pixels: np.ndarray, num_levels: int, *, schedule: ScheduleKind, gamma_0: float, width: int, steps: int
) -> VDM:
    """Return a model with two blocks after `steps` training steps of 64 images."""
    torch.manual_seed(0)
    model = VDM(
        image_shape=pixels.shape[1:],
        num_levels=num_levels,
        schedule=schedule,
        gamma_0=gamma_0,
        gamma_1=5.0,
        width=width,
        blocks=2,
        attention_everywhere=False,
        fourier_exponents=[2, 3] if num_levels < 256 else [6, 7],
        norm_groups=8,
        norm_eps=1e-6,
        dropout=0.0,
        augmentation_input=False,
    )
    settings = TrainingSettings(
        steps=steps,
        batch_size=64,
        accumulation=1,
        augmentation=[],
        optimizer="adamw",
        learning_rate=2e-3,
        warmup_steps=50,
        learning_rate_decay="linear",
        betas=(0.9, 0.99),
        weight_decay=0.01,
        max_gradient_norm=1.0,
        ema_decay=0.99,
        precision="float32",
        compile=False,
        activation_checkpointing=False,
        seed=0,
        log_every=max(1, steps // 5),
    )
    trainer = Trainer(model, torch.from_numpy(pixels), settings)
    for _ in range(steps):
        if record := trainer.step():
            print(f"step {record.step}: {record.bpd:.3f} bits/dim", file=sys.stderr)
    return trainer.averaged
