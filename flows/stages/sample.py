"""The stage `sample`: draw images from the model and save them as one picture."""

import logging
import math
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torchvision.utils import make_grid, save_image

from flows.core.checkpoint import load_model
from flows.core.device import find_device
from flows.core.files import written_last
from flows.core.memory import require
from flows.process.ending import finish
from flows.process.progress import bar
from vdm import sampling

if TYPE_CHECKING:
    from flows.core.params import Sample

log = logging.getLogger(__name__)


def sample(settings: "Sample", *, model: Path, out: Path) -> None:
    """Write a PNG of `num_images` samples in a square grid.

    Raises CheckpointError, UserError (exit 2), and OSError that names the file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after sampling
    vdm = load_model(model, find_device(settings.device))
    needed = sampling.memory_needed(vdm, settings.num_images, settings.num_timesteps)
    require(needed, find_device(settings.device), "sample: lower sample.num_images or sample.num_timesteps")
    pixels = sampling.sample(
        vdm,
        settings.num_images,
        num_timesteps=settings.num_timesteps,
        clip=settings.clip,
        generator=torch.Generator().manual_seed(settings.seed),
        progress=bar("sampling"),
    )
    # Small images are enlarged by a whole factor, to be visible.
    scale = max(1, 32 // max(vdm.image_shape[1:]))
    shown = (pixels.float() / (vdm.num_levels - 1)).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(shown, nrow=math.ceil(math.sqrt(len(shown))), padding=2, pad_value=0.5)
    picture = BytesIO()
    save_image(grid, picture, format="png")
    with written_last(out, picture.getvalue()):
        finish()
    log.info("%d samples in %s", len(shown), out)
