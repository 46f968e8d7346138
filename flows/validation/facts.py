"""One pass over the images of a split: 44 bytes of facts about each image, and the histogram of the levels."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch

from flows.images.store import chunks

ROWS = 2000


class Facts(NamedTuple):
    """One entry per image (N,), and the histogram."""

    num_nan: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    """Standard deviation of the pixels."""
    digest: np.ndarray
    """(N,2) uint64, a hash of 128 bits."""
    sketch: np.ndarray
    """uint64, a difference hash: images that look alike share most of its 64 bits."""
    histogram: np.ndarray
    """(K,) number of pixels of each level; pixels of no level are not counted."""


@np.errstate(all="ignore")  # infinite pixels and those too large for float32 break the contract later
def measure(images: np.ndarray, num_levels: int) -> Facts:
    """Return the facts of (N,...) images, in memory of 44 bytes for each and one chunk of pixels."""
    count = len(images)
    lowest, highest, mean, deviation = np.zeros((4, count), dtype=np.float32)
    facts = Facts(
        num_nan=np.zeros(count, dtype=np.int32),
        lowest=lowest,
        highest=highest,
        mean=mean,
        deviation=deviation,
        digest=np.zeros((count, 2), dtype=np.uint64),
        sketch=np.zeros(count, dtype=np.uint64),
        histogram=np.zeros(num_levels, dtype=np.int64),
    )
    for first, chunk in chunks(images, ROWS):
        rows = slice(first, first + len(chunk))
        flat = chunk.reshape(len(chunk), -1)
        digests = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in flat)
        facts.digest[rows] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        if flat.size:  # images without pixels have no extremes; their shape breaks the contract
            values = flat.astype(np.float32)
            facts.num_nan[rows] = np.isnan(values).sum(axis=1) if flat.dtype.kind == "f" else 0
            facts.lowest[rows], facts.highest[rows] = flat.min(axis=1), flat.max(axis=1)
            facts.mean[rows], facts.deviation[rows] = values.mean(axis=1), values.std(axis=1)
            facts.sketch[rows] = sketches(values.reshape(chunk.shape))
            facts.histogram[:] += count_levels(flat, num_levels)
    return facts


def count_levels(pixels: np.ndarray, num_levels: int) -> np.ndarray:
    """Return the number of pixels of each level (K,)."""
    if pixels.dtype == np.uint8:
        return np.bincount(pixels.reshape(-1), minlength=max(256, num_levels))[:num_levels]
    return np.histogram(pixels, bins=np.arange(num_levels + 1) - 0.5)[0]


def sketches(values: np.ndarray) -> np.ndarray:
    """Return difference hashes (n,) of (n,...,H,W) images: where gray rises from left to right, on 8x9 cells."""
    if values.ndim < 3:
        return np.zeros(len(values), dtype=np.uint64)
    gray = torch.from_numpy(values.reshape(len(values), -1, *values.shape[-2:])).mean(dim=1, keepdim=True)
    cells = torch.nn.functional.adaptive_avg_pool2d(gray, (8, 9))[:, 0].numpy()
    rises = cells[:, :, 1:] > cells[:, :, :-1]
    return np.packbits(rises.reshape(len(values), 64), axis=1).view(np.uint64)[:, 0]
