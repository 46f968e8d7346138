"""One pass over the images of a split: facts about each image, and sums over all."""

import hashlib
from collections.abc import Collection
from itertools import combinations
from typing import NamedTuple

import numpy as np

from flows.contract.traces import jpeg_grid, lost_detail
from flows.images.image_set import chunks

ROWS = 500
GROUPS = 20
"""Groups of a split's images, each of every 20th image.  Their histograms differ by chance alone."""
MOST_CHANNELS = 4
"""Images of more channels count as of one."""
FEWEST_PIXELS = 3
"""Pixels that each side of an image needs for a second difference."""
CELLS = 6
"""Largest number of cells of a thumbnail in each direction."""
SAMPLED = 2500
"""Images of a split, evenly spread, in which detail and the grid of JPEG are measured."""


class Facts(NamedTuple):
    """One entry per image (N,), and sums over the images."""

    num_nan: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    digest: np.ndarray
    """(N,) uint64."""
    statistics: dict[str, np.ndarray]
    """By name, see `flows.contract.facts.image_statistics`; {} for what is not an image."""
    thumbnails: np.ndarray
    """(N,h,w) float32, the brightness of cells; (N,0,0) for what is not an image."""
    histograms: np.ndarray
    """(groups,channels,K) number of pixels of each level; only uint8 and uint16 pixels of a level are counted."""
    textured: np.ndarray
    """(K,) number of pixels of each level that differ from the pixel to the left and from the one above."""
    differ: np.ndarray
    """(channels,channels) whether channels i and j differ in any image, at [i, j] for i < j."""
    lost_detail: float
    jpeg_grid: float
    image_shape: tuple[int, ...]

    @property
    def histogram(self) -> np.ndarray:
        """(K,) number of pixels of each level."""
        return np.asarray(self.histograms.sum(axis=(0, 1)))


def num_redundant(splits: Collection[Facts]) -> int:
    """Return the number of channels that in all splits are of one level, or equal an earlier channel.

    Return 0 for images of one channel, and if the splits have different numbers of channels.
    """
    channels = {len(facts.differ) for facts in splits}
    if len(channels) != 1 or channels == {1}:
        return 0
    of_one_level = np.count_nonzero(sum(facts.histograms.sum(axis=0) for facts in splits), axis=1) < 2
    repeated = np.triu(~np.any([facts.differ for facts in splits], axis=0), 1).any(axis=0)
    return int(np.count_nonzero(of_one_level | repeated))


def measure_facts(images: np.ndarray, num_levels: int) -> Facts:
    """Return the facts about (N,...) images, in memory of some 240 bytes for each, and that of one chunk of pixels."""
    count, pictures = len(images), is_image(images)
    channels = images.shape[1] if pictures and images.shape[1] <= MOST_CHANNELS else 1
    cells = [min(CELLS, side) for side in images.shape[2:]] if pictures else [0, 0]
    lowest, highest = np.zeros((2, count))
    sampled = np.arange(0, count, -(-count // SAMPLED) or 1)
    sample = pick(images, sampled) if pictures else np.zeros((0, 1, 0, 0), dtype=np.uint8)
    facts = Facts(
        num_nan=np.zeros(count, dtype=np.int32),
        lowest=lowest,
        highest=highest,
        digest=np.zeros(count, dtype=np.uint64),
        statistics={},
        thumbnails=np.zeros((count, *cells), dtype=np.float32),
        histograms=np.zeros((GROUPS, channels, num_levels), dtype=np.int64),
        textured=np.zeros(num_levels, dtype=np.int64),
        differ=np.zeros((channels, channels), dtype=bool),
        lost_detail=round(lost_detail(sample, num_levels), 4),
        jpeg_grid=round(jpeg_grid(sample, num_levels), 4),
        image_shape=images.shape[1:],
    )
    for first, chunk in chunks(images, ROWS):
        rows = slice(first, first + len(chunk))
        flat = chunk.reshape(len(chunk), -1)
        digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in flat)
        facts.digest[rows] = np.frombuffer(digests, np.uint64)
        if not flat.size:  # images without pixels have no extremes; their shape breaks the contract
            continue
        if flat.dtype.kind == "f":
            facts.num_nan[rows] = np.isnan(flat).sum(axis=1)
        facts.lowest[rows], facts.highest[rows] = flat.min(axis=1), flat.max(axis=1)
        if flat.dtype in (np.uint8, np.uint16):
            for group, channel in np.ndindex(facts.histograms.shape[:2]):
                some = chunk.reshape(len(chunk), channels, -1)[(group - first) % GROUPS :: GROUPS, channel]
                count_levels(some.ravel(), facts.histograms[group, channel])
        if pictures:
            inner = chunk[..., 1:, 1:]
            count_levels(inner[(inner != chunk[..., :-1, 1:]) & (inner != chunk[..., 1:, :-1])], facts.textured)
            values = chunk.astype(np.float32)
            gray = values.mean(axis=1)
            for one, other in combinations(range(channels), 2):
                facts.differ[one, other] |= not np.array_equal(chunk[:, one], chunk[:, other])
            facts.thumbnails[rows] = pooling_matrix(gray.shape[1]) @ gray @ pooling_matrix(gray.shape[2]).T
            for name, column in image_statistics(values, gray, num_levels).items():
                facts.statistics.setdefault(name, np.zeros(count, np.float32))[rows] = column
    return facts


def count_levels(pixels: np.ndarray, histogram: np.ndarray) -> None:
    """Add uint8 or uint16 pixels (P,) to a histogram (K,)."""
    histogram += np.bincount(pixels, minlength=max(256, len(histogram)))[: len(histogram)]


def pick(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return a copy of some images.  A mapped file is mapped anew, so that its pages do not stay in memory."""
    mapped = np.load(str(images.filename), mmap_mode="r") if isinstance(images, np.memmap) else images
    return np.asarray(mapped[numbers])


def is_image(images: np.ndarray) -> bool:
    """Return whether an array holds (N,C,H,W) levels, uint8 or uint16, of at least 3x3 pixels."""
    if images.ndim != 4 or images.dtype not in (np.uint8, np.uint16):
        return False
    return bool(images.shape[1] > 0 and min(images.shape[2:]) >= FEWEST_PIXELS)


def pooling_matrix(length: int) -> np.ndarray:
    """Return the matrix (cells,length) float32 that averages a line over its cells, which may share pixels."""
    ends, place = np.linspace(0, length, min(CELLS, length) + 1), np.arange(length)
    overlap = np.clip(np.minimum(ends[1:, None], place + 1) - np.maximum(ends[:-1, None], place), 0, None)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), dtype=np.float32)


def image_statistics(values: np.ndarray, gray: np.ndarray, num_levels: int) -> dict[str, np.ndarray]:
    """Return statistics (n,) by name, from float32 images (n,C,H,W) with K levels and their brightness (n,H,W).

    `direction` is the logarithm of the change from left to right over that from top to bottom, `sharpness` that of the
    second over the first differences.  `balance` is the difference of two halves, and `channel i` the distance of a
    channel's mean from the image's, all in levels.  If channels or axes were exchanged, or images blurred, these differ
    from a reference's, although the histogram of the levels hardly does.
    """
    one_level = (num_levels - 1) / 255
    down, across = (np.abs(np.diff(gray, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    second = sum(np.abs(np.diff(gray, n=2, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    found = {
        "image mean": values.mean(axis=(1, 2, 3)),
        "image deviation": values.std(axis=(1, 2, 3)),
        "direction": np.log((across + one_level) / (down + one_level)),
        "sharpness": np.log((second + one_level) / (down + across + one_level)),
    }
    for name, means in (("balance across", gray.mean(axis=1)), ("balance down", gray.mean(axis=2))):
        middle = means.shape[1] // 2
        found[name] = means[:, -middle:].mean(axis=1) - means[:, :middle].mean(axis=1)
    if 1 < values.shape[1] <= MOST_CHANNELS:
        means = values.mean(axis=(2, 3))
        found |= {f"channel {number}": means[:, number] - means.mean(axis=1) for number in range(means.shape[1])}
    return found
