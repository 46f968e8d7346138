"""Find the most similar image of another set, even if it was mirrored or shifted by a pixel, or has noise.

Images are compared as gray thumbnails.  A query has 18: of itself and its mirror image, each shifted by up to a pixel
in both directions.  Among the images that are as bright on average, two are compared with the query pixel by pixel: the
one with the nearest thumbnail, and the one nearest without a shift.  The closer of them is the result.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from flows.core.files import open_regular
from flows.images.store import fitting

CELLS = 6
"""Largest number of cells of a thumbnail in each direction."""
BATCH, BLOCK, PICKED = 4000, 256, 500
MOST_COMPARED = 2048
BRIGHTNESS = 0.006
"""Largest difference in mean brightness between an image and its copy, as a share of the range."""
VARIANTS = 18
"""Variant 9 m + 3 (d + 1) + (a + 1): mirrored if m is 1, shifted d pixels down and a pixels across, -1 to 1 each."""
UNMOVED = (4, 13)
"""The variants that are not shifted: as it is, mirrored."""


class Index(NamedTuple):
    """Thumbnails sorted by brightness, and the image of each."""

    brightness: np.ndarray
    thumbnails: np.ndarray
    """(N,D) float16."""
    numbers: np.ndarray
    """Number of the image in its split."""


class Found(NamedTuple):
    """The most similar image of each query (n,)."""

    number: np.ndarray
    """In its split."""
    variant: np.ndarray
    distance: np.ndarray
    """Mean absolute difference of the pixels that overlap, in levels; infinite if no image is as bright."""


def pooling(length: int) -> np.ndarray:
    """Return the matrices (3,cells,length) that average a line over its cells, shifted by -1, 0 and 1 pixel."""
    cells = min(CELLS, length - 2)
    ends = np.linspace(0, length - 2, cells + 1)
    place = np.arange(length - 2)
    overlap = np.clip(np.minimum(ends[1:, None], place + 1) - np.maximum(ends[:-1, None], place), 0, None)
    shifted = np.zeros((3, cells, length), dtype=np.float32)
    for shift in range(3):
        shifted[shift, :, shift : shift + length - 2] = overlap / overlap.sum(axis=1, keepdims=True)
    return shifted


def thumbnails(gray: np.ndarray) -> np.ndarray:
    """Return the thumbnails (n,D) of float32 images (n,H,W)."""
    rows, columns = (pooling(side)[1] for side in gray.shape[1:])
    narrow = gray.reshape(-1, gray.shape[2]) @ columns.T
    narrow = narrow.reshape(len(gray), gray.shape[1], -1).swapaxes(1, 2).reshape(-1, gray.shape[1])
    return np.asarray((narrow @ rows.T).reshape(len(gray), -1))


def variants(gray: np.ndarray) -> np.ndarray:
    """Return the 18 thumbnails of each float32 image (n,18,D)."""
    rows, columns = (pooling(side) for side in gray.shape[1:])
    shifted = np.einsum("ayh,nhw,bxw->nabxy", rows, gray, columns, optimize=True)
    both = np.stack([shifted, shifted[:, :, :, ::-1]], axis=1)
    return np.asarray(both.reshape(len(gray), VARIANTS, -1))


def index_of(known: np.ndarray, numbers: np.ndarray) -> Index:
    """Return the index of some images of a split, given the thumbnails (N,D) of all."""
    brightness = known.mean(axis=1, dtype=np.float32)[numbers]
    order = np.argsort(brightness, kind="stable")
    return Index(brightness[order], known[numbers[order]], numbers[order])


def nearest(index: Index, queries: np.ndarray, own: np.ndarray, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of the thumbnail nearest to each variant (n,18,D), and its squared distance, both (n,18).

    `own` (n,) are the places of the queries themselves, which are passed over, or -1.  The distance is infinite if no
    thumbnail is within `window` levels in brightness.
    """
    flat = queries.reshape(-1, queries.shape[2])
    brightness, except_for = flat.mean(axis=1), np.repeat(own, VARIANTS)
    order = np.argsort(brightness, kind="stable")
    distance = np.full(len(flat), np.inf, dtype=np.float32)
    place = np.zeros(len(flat), dtype=np.int64)
    for first in range(0, len(flat), BLOCK):
        some = order[first : first + BLOCK]
        low, high = bounds(index.brightness, brightness[some[0]], brightness[some[-1]], window)
        if low < high:
            thumbs = index.thumbnails[low:high].astype(np.float32)
            distances = squared_distances(flat[some], thumbs)
            hidden = np.flatnonzero((except_for[some] >= low) & (except_for[some] < high))
            distances[hidden, except_for[some][hidden] - low] = np.inf
            best = distances.argmin(axis=1)
            distance[some] = distances[np.arange(len(some)), best]
            place[some] = best + low
    return place.reshape(-1, VARIANTS), distance.reshape(-1, VARIANTS)


def bounds(brightness: np.ndarray, lowest: float, highest: float, window: float) -> tuple[int, int]:
    """Return the range of the sorted `brightness` to compare with queries: within the window, and not too many."""
    low, high = np.searchsorted(brightness, [lowest - window, highest + window])
    if high - low > MOST_COMPARED:
        middle = int(np.searchsorted(brightness, (lowest + highest) / 2))
        low, high = max(0, middle - MOST_COMPARED // 2), min(len(brightness), middle + MOST_COMPARED // 2)
    return int(low), int(high)


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the squared distances of all pairs of rows (n,m).  Their common mean is removed, for precision."""
    middle = second.mean(axis=0)
    first, second = first - middle, second - middle
    return np.asarray((first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T)


def search(images: np.ndarray, index: Index, others: np.ndarray, queries: np.ndarray, num_levels: int) -> Found:
    """Return, for each image of `others` in `queries`, the most similar image of `images` that is in `index`.

    If `others` is `images`, an image is not compared with itself.
    """
    # Inverting one of n pixels changes the mean by up to 1/n of the range.
    pixels = (images.shape[2] - 2) * (images.shape[3] - 2)
    window = (num_levels - 1) * max(BRIGHTNESS, 1.5 / pixels)
    places = np.full(len(others), -1)
    if others is images:
        places[index.numbers] = np.arange(len(index.numbers))
    parts = []
    step = fitting(BATCH, 4 * images[0].nbytes)
    for first in range(0, len(queries), step):
        some = queries[first : first + step]
        gray = np.concatenate([part.mean(axis=1, dtype=np.float32) for part in pick(others, some)])
        place, distance = nearest(index, variants(gray), places[some], window)
        numbers = index.numbers[place]
        without_shifts = np.where(np.isin(np.arange(VARIANTS), UNMOVED), distance, np.inf)
        unmoved = best_of(images, others, numbers, some, without_shifts)
        best = best_of(images, others, numbers, some, distance)
        closer = best.distance < unmoved.distance
        parts.append(Found(*(np.where(closer, two, one) for one, two in zip(unmoved, best, strict=True))))
    return Found(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def best_of(
    images: np.ndarray, others: np.ndarray, numbers: np.ndarray, queries: np.ndarray, distance: np.ndarray
) -> Found:
    """Compare the pixels of each query, in its nearest variant, with those of the image found for that variant.

    `numbers` are the images found for all variants, and `distance` the squared distances of their thumbnails (n,18).
    """
    every, variant = np.arange(len(queries)), distance.argmin(axis=1)
    number = numbers[every, variant]
    pixels = pixel_distances(images, others, number, queries, variant)
    return Found(number, variant, np.where(np.isfinite(distance[every, variant]), pixels, np.inf))


def pick(images: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """Return copies of some images in parts.

    A mapped file is read instead: pages of a map that are touched at random would accumulate in this process.
    """
    step = fitting(PICKED, images[0].nbytes)
    parts = [numbers[first : first + step] for first in range(0, len(numbers), step)]
    if not isinstance(images, np.memmap) or not images.flags.c_contiguous:
        return [images[some] for some in parts]
    copies = [np.empty((len(some), *images.shape[1:]), images.dtype) for some in parts]
    with open_regular(Path(str(images.filename))) as file:
        for some, copied in zip(parts, copies, strict=True):
            for number, image in zip(some.tolist(), copied, strict=True):
                file.seek(images.offset + number * image.nbytes)
                file.readinto(image.data.cast("B"))
    return copies


def pixel_distances(
    images: np.ndarray, others: np.ndarray, numbers: np.ndarray, queries: np.ndarray, variant: np.ndarray
) -> np.ndarray:
    """Return the distance in levels of each query, in its variant, from an image (n,)."""
    distance = np.zeros(len(queries))
    for kind in range(VARIANTS):
        rows = np.flatnonzero(variant == kind)
        pairs = zip(pick(others, queries[rows]), pick(images, numbers[rows]), strict=True)
        found = [apart(ours, theirs, kind) for ours, theirs in pairs]
        distance[rows] = np.concatenate([np.zeros(0), *found])
    return distance


def apart(ours: np.ndarray, theirs: np.ndarray, variant: int) -> np.ndarray:
    """Return the mean absolute difference of two sets of images where they overlap, in levels (n,)."""
    mirrored, down, across = variant // 9, variant % 9 // 3 - 1, variant % 3 - 1
    if mirrored:
        ours, across = ours[..., ::-1], -across
    height, width = ours.shape[2] - abs(down), ours.shape[3] - abs(across)
    ours = ours[:, :, max(down, 0) :, max(across, 0) :][:, :, :height, :width]
    theirs = theirs[:, :, max(-down, 0) :, max(-across, 0) :][:, :, :height, :width]
    # Levels of any integer type; the difference of two bytes fits into 16 bits.
    wide = np.int16 if ours.dtype == np.uint8 else np.int64
    return np.asarray(np.abs(np.subtract(ours, theirs, dtype=wide)).mean(axis=(1, 2, 3)))
