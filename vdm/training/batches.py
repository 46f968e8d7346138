"""The batch of one step of training: images in the epoch's order, their augmentation, evenly spread times, and noise.

The batch is a function of the seed and the step's number.  It is drawn as a whole, then split among processes and
micro-batches.  So neither a restart nor another number of devices changes it.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdm.choices import Transform
from vdm.prefetch import pin
from vdm.vlb import low_discrepancy_times


class Batch(NamedTuple):
    """pixels (B,C,H,W), augmented (B,) bool, t (B,) in [0, 1), eps (B,C,H,W), and classes (B,), None without labels."""

    pixels: Tensor
    augmented: Tensor
    t: Tensor
    eps: Tensor
    classes: Tensor | None = None

    def part(self, index: int, count: int) -> "Batch":
        """Return part `index` of `count`.  The times of every part are evenly spread too."""
        return Batch(*(value[index::count].contiguous() for value in self if value is not None))


def draw_batch(
    images: Tensor,
    batch_size: int,
    *,
    step: int,
    generator: torch.Generator,
    seed: int,
    transforms: Sequence[Transform],
    pixels: Tensor | None = None,
) -> Batch:
    """Draw the batch at 0-based `step` from images (N,C,H,W), which are on the device of the generator.

    If they are elsewhere, `pixels` (B,C,H,W) are those of the batch, from `gather`, on that device.
    """
    device = generator.device
    t = low_discrepancy_times(torch.rand((), generator=generator, device=device), batch_size)
    eps = torch.randn((batch_size, *images.shape[1:]), generator=generator, device=device)
    if pixels is None:
        pixels = images[batch_indices(len(images), batch_size, step, seed, device)]
    return Batch(*augment(pixels, transforms, generator), t, eps)


def gather(images: Tensor, batch_size: int, seed: int, step: int) -> list[np.ndarray]:
    """Return the pixels (B,C,H,W) of the batch at 0-based `step` of images in the host's memory or in a mapped file."""
    return [images.numpy()[batch_indices(len(images), batch_size, step, seed, "cpu").numpy()]]


def batch_indices(num_images: int, batch_size: int, step: int, seed: int, device: torch.device | str) -> Tensor:
    """Return the indices (batch_size,) of the batch at 0-based `step`.

    Every image occurs once an epoch.  A batch at the end of an epoch continues with images of the next one.
    """
    parts = []
    position, end = step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, place = divmod(position, num_images)
        part = epoch_order(num_images, epoch, seed, device)[place : place + end - position]
        parts.append(part)
        position += len(part)
    return torch.cat(parts)


@lru_cache(maxsize=2)
def epoch_order(num_images: int, epoch: int, seed: int, device: torch.device | str) -> Tensor:
    """Return the order of the images in an epoch, (num_images,), the same on every device."""
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num_images))
    return pin(order, torch.device(device)).to(device, non_blocking=True)


def augment(pixels: Tensor, transforms: Sequence[Transform], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Apply each transform to every image with probability 1/2 (section 6).

    Returns the pixels (B,C,H,W), and (B,) bool that is true for the images to which a transform was applied.  Raises
    ValueError for a rotation of images that are not square, and for a swap of a single channel.
    """
    if pixels.dtype == torch.uint16:  # torch cannot flip these
        pixels = pixels.int()
    augmented = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    for transform in transforms:
        match transform:
            case "flip":
                changed = pixels.flip(3)
            case "rotate":
                changed = rotate(pixels, generator)
            case "swap_channels":
                changed = swap_channels(pixels, generator)
        chosen = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
        pixels = torch.where(chosen[:, None, None, None], changed, pixels)
        augmented = augmented | chosen
    return pixels, augmented


def rotate(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate every image (B,C,H,W) by 1, 2 or 3 quarter turns.  Raises ValueError unless they are square."""
    num_images, _, height, width = pixels.shape
    if height != width:
        raise ValueError(f"rotate needs square images, got {height}x{width}")
    turns = torch.randint(3, (num_images,), generator=generator, device=pixels.device)
    rotations = torch.stack([pixels.rot90(k, (2, 3)) for k in (1, 2, 3)])
    return rotations[turns, torch.arange(num_images, device=pixels.device)]


def swap_channels(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Put the channels of every image (B,C,H,W) in a random order.  Raises ValueError for a single channel."""
    num_images, channels = pixels.shape[:2]
    if channels == 1:
        raise ValueError("swap_channels needs more than one channel")
    order = torch.rand((num_images, channels), generator=generator, device=pixels.device).argsort(dim=1)
    return pixels.gather(1, order[:, :, None, None].expand_as(pixels))
