"""What one step of training draws: images in the epoch's order, their augmentation, evenly spread times, and noise.

All of it is a function of the seed and the step's number, and belongs to the whole batch: processes and micro-batches
only share it out.  So neither a restart nor another number of devices changes what is drawn.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdm.choices import Transform
from vdm.vlb import low_discrepancy_times


class Batch(NamedTuple):
    """pixels (B,C,H,W), augmented (B,) bool, t (B,) in [0, 1) and eps (B,C,H,W)."""

    pixels: Tensor
    augmented: Tensor
    t: Tensor
    eps: Tensor

    def part(self, index: int, count: int) -> "Batch":
        """Part `index` of `count`; the times of every part are evenly spread too."""
        return Batch(*(value[index::count].contiguous() for value in self))


def draw_batch(
    images: Tensor,
    batch_size: int,
    *,
    step: int,
    generator: torch.Generator,
    seed: int,
    transforms: Sequence[Transform],
) -> Batch:
    """The batch at 0-based `step` of the images (N,C,H,W), on their device, which is the generator's too."""
    device = images.device
    t = low_discrepancy_times(torch.rand((), generator=generator, device=device), batch_size)
    eps = torch.randn((batch_size, *images.shape[1:]), generator=generator, device=device)
    pixels = images[batch_indices(len(images), batch_size, step, seed, device)]
    return Batch(*augment(pixels, transforms, generator), t, eps)


def batch_indices(num_images: int, batch_size: int, step: int, seed: int, device: torch.device | str) -> Tensor:
    """Indices (batch_size,) of the batch at 0-based `step`: every image once an epoch, no batch cut short."""
    parts, position, end = [], step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, place = divmod(position, num_images)
        parts.append(epoch_order(num_images, epoch, seed, device)[place : place + end - position])
        position += len(parts[-1])
    return torch.cat(parts)


@lru_cache(maxsize=2)
def epoch_order(num_images: int, epoch: int, seed: int, device: torch.device | str) -> Tensor:
    """A permutation of the images for one epoch, the same on every device."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num_images)).to(device)


def augment(pixels: Tensor, transforms: Sequence[Transform], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Apply each transform to every image with probability 1/2, and tell which images (B,) met one.

    flip: left to right; rotate: by 1, 2 or 3 quarter turns; swap_channels: in a random order (section 6).  Raises
    ValueError for a rotation of images that are not square, and for a swap of one channel.
    """
    num_images, channels, height, width = pixels.shape
    device, augmented = pixels.device, torch.zeros(num_images, dtype=torch.bool, device=pixels.device)
    for transform in transforms:
        match transform:
            case "flip":
                changed = pixels.flip(3)
            case "rotate":
                if height != width:
                    raise ValueError(f"rotate needs square images, got {height}x{width}")
                turns = torch.randint(3, (num_images,), generator=generator, device=device)
                rotations = torch.stack([pixels.rot90(k, (2, 3)) for k in (1, 2, 3)])
                changed = rotations[turns, torch.arange(num_images, device=device)]
            case "swap_channels":
                if channels == 1:
                    raise ValueError("swap_channels needs more than one channel")
                order = torch.rand((num_images, channels), generator=generator, device=device).argsort(dim=1)
                changed = pixels.gather(1, order[:, :, None, None].expand_as(pixels))
        chosen = torch.rand(num_images, generator=generator, device=device) < 0.5
        pixels = torch.where(chosen[:, None, None, None], changed, pixels)
        augmented = augmented | chosen
    return pixels, augmented
