"""Show the way from noise to the images: z_t and x_hat(z_t) side by side, as a strip (PNG) or a film (GIF)."""

from io import BytesIO
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from flows.core.device import find_device
from flows.images.grids import GAP, eight_bit, grid, png
from flows.process.streams import bar
from flows.sampling.drawing import Drawing, advance
from vdm.sampling import noise_levels

MOST_IMAGES, MOST_ROWS, MOST_COLUMNS, MOST_FRAMES = 8, 3, 16, 60
FRAME_MS, LAST_MS = 80, 2000
LEVELS = 256
SIDE, TEXT = 64, 12
"""Height in pixels to which small images are enlarged, and of the labels."""


class Film(NamedTuple):
    """The frames of some images: z_t and x_hat, (T,N,C,H,W) 8-bit pixels each, and gamma after each step."""

    z: np.ndarray
    x_hat: np.ndarray
    gammas: list[float]


@torch.no_grad()
def record(drawing: Drawing) -> Film:
    """Return the frames of the first images, evenly spread, at most `MOST_FRAMES`, the last one among them."""
    drawing.model.on(find_device(drawing.settings.device))
    gammas = noise_levels(drawing.model.vdm.schedule, drawing.solver)[1:].tolist()
    every = -(-len(gammas) // MOST_FRAMES)
    numbers = range((len(gammas) - 1) % every, len(gammas), every)
    first = range(min(drawing.settings.num_images, MOST_IMAGES))
    steps = advance(drawing.steps(first), iter(bar("film")(range(len(gammas)))))
    frames = [(pixels(step.z), pixels(step.x_hat)) for step in islice(steps, numbers.start, None, every)]
    z, x_hat = map(np.stack, zip(*frames, strict=True))
    return Film(z, x_hat, [gammas[number] for number in numbers])


def pixels(x: torch.Tensor) -> np.ndarray:
    """Return x (N,C,H,W) as 8-bit pixels; values beyond [-1, 1] are black or white."""
    return eight_bit(x.float().cpu().numpy() + 1, 3)


def encode_film(film: Film, ending: str) -> bytes:
    """Return the film as a GIF, or as a PNG strip with a row of z_t above a row of x_hat for each image."""
    return gif(film) if ending.lower() == ".gif" else png(strip(film))


def strip(film: Film) -> np.ndarray:
    """Return one picture of the first images: time runs from left to right, and gamma is above each column."""
    times = np.unique(np.linspace(0, len(film.z) - 1, MOST_COLUMNS).round().astype(int))
    rows = np.stack([film.z[times, :MOST_ROWS], film.x_hat[times, :MOST_ROWS]])  # 2,T,N,...
    ordered = rows.transpose(2, 0, 1, 3, 4, 5)
    picture = grid(ordered.reshape(-1, *ordered.shape[3:]), LEVELS, len(times), SIDE)
    return label_frames(label_frames(picture, [f"{film.gammas[time]:.1f}" for time in times]), ["gamma after a step"])


def gif(film: Film) -> bytes:
    """Return an animated GIF, z_t left and x_hat right, that stays on its last frame for a while."""
    frames = []
    for z, x_hat, gamma in zip(film.z, film.x_hat, film.gammas, strict=True):
        left, right = grid(z, LEVELS, smallest=SIDE), grid(x_hat, LEVELS, smallest=SIDE)
        between = np.full((len(left), 2 * GAP, *left.shape[2:]), 128, np.uint8)
        picture = label_frames(np.concatenate([left, between, right], axis=1), [f"gamma {gamma:.1f}"])
        frames.append(Image.fromarray(picture))
    content = BytesIO()
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(content, format="gif", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return content.getvalue()


def label_frames(picture: np.ndarray, labels: list[str]) -> np.ndarray:
    """Return 8-bit pixels (H,W) or (H,W,3) below a dark band with labels at even distances."""
    band = Image.new("L", (picture.shape[1], TEXT + 2 * GAP))
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(TEXT)
    for place, label in enumerate(labels):
        draw.text((GAP + place * band.width // len(labels), GAP), label, fill=255, font=font)
    text = np.asarray(band)
    return np.concatenate([text if picture.ndim == 2 else text[..., None].repeat(3, 2), picture])
