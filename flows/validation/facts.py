"""One pass over the images of a split: what the contract needs to know of each, in 44 bytes, and the histogram."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch

from flows.images.store import chunks

ROWS = 2000


class Facts(NamedTuple):
    """Arrays of one entry per image (N,), and the counts of the levels."""

    num_nan: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    """Standard deviation of the pixels."""
    digest: np.ndarray
    """(N,2) uint64, 128 bits that tell images apart."""
    sketch: np.ndarray
    """uint64, 64 bits that images that look alike share."""
    histogram: np.ndarray
    """(K,) pixels of each level; others are not counted."""


@np.errstate(all="ignore")  # pixels that are infinite or too large for float32 break the contract, which says so
def measure(images: np.ndarray, num_levels: int) -> Facts:
    """The facts of (N,...) images; memory does not grow with their size, and by 44 bytes with each."""
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
        if flat.size:  # images of no pixels have no extremes; their shape is what breaks the contract
            values = flat.astype(np.float32)
            facts.num_nan[rows] = np.isnan(values).sum(axis=1) if flat.dtype.kind == "f" else 0
            facts.lowest[rows], facts.highest[rows] = flat.min(axis=1), flat.max(axis=1)
            facts.mean[rows], facts.deviation[rows] = values.mean(axis=1), values.std(axis=1)
            facts.sketch[rows] = sketches(values.reshape(chunk.shape))
            facts.histogram[:] += count_levels(flat, num_levels)
    return facts


def count_levels(pixels: np.ndarray, num_levels: int) -> np.ndarray:
    """(K,) how many of the pixels have each level."""
    if pixels.dtype == np.uint8:
        return np.bincount(pixels.reshape(-1), minlength=max(256, num_levels))[:num_levels]
    return np.histogram(pixels, bins=np.arange(num_levels + 1) - 0.5)[0]


def sketches(values: np.ndarray) -> np.ndarray:
    """(n,) uint64 difference hashes of (n,...,H,W) images: whether gray rises from left to right, on 8x9 cells."""
    if values.ndim < 3:
        return np.zeros(len(values), dtype=np.uint64)
    gray = torch.from_numpy(values.reshape(len(values), -1, *values.shape[-2:])).mean(dim=1, keepdim=True)
    cells = torch.nn.functional.adaptive_avg_pool2d(gray, (8, 9))[:, 0].numpy()
    rises = cells[:, :, 1:] > cells[:, :, :-1]
    return np.packbits(rises.reshape(len(values), 64), axis=1).view(np.uint64)[:, 0]
