"""Models in Python: load one, evaluate images, draw images, fill in what is missing of one, and train one further.

Images are arrays (N,C,H,W) of integer levels, 0..num_levels-1.  The defaults are those of presets/digits.yaml, except
that the network computes in float32, where `vdmctl` may take bfloat16.
"""

import copy
from pathlib import Path

import numpy as np
import torch

from flows.commands.arguments import named_model
from flows.sampling.drawing import REPEATS
from vdm import evaluation, sampling
from vdm.model import VDM
from vdm.sampling import Solver
from vdm.training.settings import TrainingSettings
from vdm.training.trainer import Trainer

BATCH = 400
DEFAULT = Solver(num_timesteps=25, order=2)


def load(model: str | Path, device: str = "auto") -> VDM:
    """Return a model in evaluation mode: a folder, or a version of this folder's project, `vdm@v1.2.0` or `champion`.

    `device` is cpu, cuda, cuda:N, or auto: CUDA if torch finds it.  Nothing in the folder is run.  Raises UserError.
    """
    return named_model(str(model), device).vdm


def evaluate(
    model: VDM, images: np.ndarray, *, times_per_image: int = 32, num_timesteps: int | None = None, seed: int = 0
) -> evaluation.Evaluation:
    """Return the bound of every image (N,C,H,W) in bits/dim: `bpd` (N,), and `standard_error`, that of its mean.

    `num_timesteps` None is continuous time.  Raises TypeError and ValueError unless they are images of the model.
    """
    return evaluation.evaluate(
        model, images, times_per_image=times_per_image, num_timesteps=num_timesteps, batch_size=512, seed=seed
    )


def sample(model: VDM, num_images: int, *, seed: int = 0, solver: Solver = DEFAULT) -> np.ndarray:
    """Return images (N,C,H,W).  Image i of a seed is the same picture, however many are drawn."""
    batches = (range(first, min(first + BATCH, num_images)) for first in range(0, num_images, BATCH))
    return torch.cat([sampling.sample(model, batch, solver, seed=seed) for batch in batches]).cpu().numpy()


def fill_in(
    model: VDM, image: np.ndarray, missing: np.ndarray, num_images: int = 1, *, seed: int = 0, solver: Solver = DEFAULT
) -> np.ndarray:
    """Return images (N,C,H,W) with the pixels of `image` (C,H,W) except where the mask `missing` (H,W) is true.

    It is an approximation, and takes ten times as long as `sample`.  Raises what `vdm.sampling.fill_in` raises.
    """
    known, mask = torch.tensor(image), torch.tensor(missing)
    steps = sampling.fill_in(model, known, mask, range(num_images), solver, seed=seed, repeats=REPEATS)
    return np.where(missing, sampling.decode(model, steps).cpu().numpy(), image)


def continued(
    model: VDM,
    images: np.ndarray,
    *,
    steps: int = 1150,
    learning_rate: float = 2e-3,
    seed: int = 0,
    labels: np.ndarray | None = None,
) -> VDM:
    """Return a new model that begins with the weights of this one and is trained on images (N,C,H,W): averaged weights.

    A model with classes needs the `labels` (N,).  docs/results.md says which steps and learning rates suit continuing.
    Raises ValueError unless they are images of the model, and TrainingDiverged.
    """
    model.require_images(images)
    device = next(model.parameters()).device
    settings = TrainingSettings(steps=steps, learning_rate=learning_rate, warmup_steps=min(100, steps // 10), seed=seed)
    classes = None if labels is None else torch.from_numpy(labels).to(device)
    trainer = Trainer(copy.deepcopy(model), torch.from_numpy(images).to(device), settings, labels=classes)
    for _ in range(steps):
        trainer.step()
    return trainer.averaged
