"""Show the way from noise to the images: z_t and x_hat(z_t) side by side, as a strip (PNG) or a film (GIF)."""

from collections.abc import Iterable
from io import BytesIO
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from flows.images.store import eight_bit
from flows.sampling.pictures import GAP, grid, png
from vdm.sampling import Step

MOST_IMAGES, MOST_COLUMNS, MOST_FRAMES = 8, 12, 60
FRAME_MS, LAST_MS = 80, 2000
LEVELS = 256


class Film(NamedTuple):
    """The frames of some images: z_t and x_hat, (T,N,C,H,W) 8-bit pixels each."""

    z: np.ndarray
    x_hat: np.ndarray


def record(steps: Iterable[Step], num_timesteps: int) -> Film:
    """Return the frames of a trajectory, evenly spread, at most `MOST_FRAMES`, the last one among them."""
    every = -(-num_timesteps // MOST_FRAMES)
    chosen = list(islice(steps, (num_timesteps - 1) % every, None, every))
    z = np.stack([pixels(step.z) for step in chosen])
    x_hat = np.stack([pixels(step.x_hat) for step in chosen])
    return Film(z, x_hat)


def pixels(x: torch.Tensor) -> np.ndarray:
    """Return the first `MOST_IMAGES` of x (N,C,H,W) as 8-bit pixels; values beyond [-1, 1] are black or white."""
    return eight_bit(x[:MOST_IMAGES].float().cpu().numpy() + 1, 3)


def encoded(film: Film, ending: str) -> bytes:
    """Return the film as a GIF, or as a PNG strip with a row of z_t above a row of x_hat for each image."""
    return gif(film) if ending.lower() == ".gif" else png(strip(film))


def strip(film: Film) -> np.ndarray:
    """Return one picture: time runs from left to right."""
    times = np.unique(np.linspace(0, len(film.z) - 1, MOST_COLUMNS).round().astype(int))
    rows = np.stack([film.z[times], film.x_hat[times]], axis=0)  # 2,T,N,...
    ordered = rows.transpose(2, 0, 1, 3, 4, 5)
    return grid(ordered.reshape(-1, *ordered.shape[3:]), LEVELS, len(times))


def gif(film: Film) -> bytes:
    """Return an animated GIF, z_t left and x_hat right, that stays on its last frame for a while."""
    frames = []
    for z, x_hat in zip(film.z, film.x_hat, strict=True):
        left, right = grid(z, LEVELS), grid(x_hat, LEVELS)
        between = np.full((len(left), 2 * GAP, *left.shape[2:]), 128, np.uint8)
        frames.append(Image.fromarray(np.concatenate([left, between, right], axis=1)))
    content = BytesIO()
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(content, format="gif", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return content.getvalue()
