"""Read a picture and a mask for `vdm.sampling.fill_in`."""

from pathlib import Path

import numpy as np
import torch

from flows.core.errors import Exit, UserError
from flows.images.picture_files import BadImageError, levels, read_images
from vdm.model import VDM


def read_known(path: Path, vdm: VDM) -> torch.Tensor:
    """Return a picture, or an array of levels in an .npy file, as levels (C,H,W) of the model.

    Black and white of a picture are the first and the last level.  Raises UserError: exit 5 for a file that cannot be
    read, 4 for one that is no picture of levels, 2 for another size or other levels than the model's.
    """
    stored, white = read(path)
    highest = vdm.num_levels - 1
    if path.suffix.lower() == ".npy":
        if stored.max() > highest:
            raise UserError(f"{path} holds level {stored.max()}, but the model's levels are 0 to {highest}", Exit.USAGE)
        levels = stored
    else:
        levels = np.rint(stored * (highest / white))
    require_size(path, levels.shape, vdm.image_shape)
    return torch.from_numpy(levels.astype(np.int64))


def read_mask(path: Path, vdm: VDM) -> torch.Tensor:
    """Return where the mask is bright, or above 0 in an .npy file, in any channel: (H,W), true for pixels to fill in.

    Raises UserError as `read_known`, and for a mask without bright pixels (exit 2).
    """
    stored, white = read(path)
    threshold = 0 if path.suffix.lower() == ".npy" else white // 2
    missing = (stored > threshold).any(0)
    require_size(path, missing.shape, vdm.image_shape[1:])
    if not missing.any():
        raise UserError(f"{path}: no pixel of the mask is white, so there is nothing to fill in", Exit.USAGE)
    return torch.from_numpy(missing)


def read(path: Path) -> tuple[np.ndarray, int]:
    """Return the image in a file, (C,H,W) of an unsigned type, and the highest level of its bits.

    Raises UserError: exit 2 for several images, 4 or 5 for a file that holds none.
    """
    try:
        images = read_images(path)
        first = levels(images.pixels[0], images.num_bits)
    except BadImageError as error:
        raise UserError(f"{path}: {error}", error.code) from error
    if len(images.pixels) > 1:
        raise UserError(f"{path} holds {len(images.pixels)} images; give a file with one", Exit.USAGE)
    return first, 2**images.num_bits - 1


def require_size(path: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise UserError (exit 2) unless a file's shape is the model's."""
    if found != expected:
        sizes = " x ".join(map(str, found)), " x ".join(map(str, expected))
        raise UserError(f"{path} is {sizes[0]}, but the model's images are {sizes[1]}", Exit.USAGE)
