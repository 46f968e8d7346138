"""What labels say about the images: how frequent each is, and how much of the images' differences they explain."""

from typing import Any

import numpy as np

from flows.validation.facts import GROUPS

MOST_LABELS = 2000
FEWEST_IMAGES = 10 * GROUPS
"""The error comes from groups of images, and is too uncertain if they are small."""


def label_facts(labels: np.ndarray | None, thumbnails: np.ndarray) -> dict[str, Any]:
    """Return the fields of `flows.validation.report.Profile` about labels (N,), given the thumbnails (N,D) of images.

    Return {} without labels, with too many different ones, and if the numbers of labels and images differ.
    """
    if labels is None or len(labels) != len(thumbnails) or not len(labels):
        return {}
    values, codes = np.unique(labels, return_inverse=True)
    if len(values) > MOST_LABELS:
        return {}
    counts = dict(zip(map(str, values.tolist()), np.bincount(codes).tolist(), strict=True))
    if not thumbnails.shape[1] or len(values) < 2 or len(labels) < FEWEST_IMAGES:
        return {"labels": counts}
    share, error = explained(codes, len(values), thumbnails)
    return {"labels": counts, "label_link": share, "label_link_error": error}


def explained(codes: np.ndarray, num_labels: int, thumbnails: np.ndarray) -> tuple[float | None, float | None]:
    """Return the share of the variance between labels and its jackknife standard error, from groups of images.

    The share falls if labels are shuffled; of random labels it is 0 on average, whatever their number.  Both are None
    if they cannot be estimated.
    """
    group = np.arange(len(codes)) % GROUPS
    place, size = group * num_labels + codes, GROUPS * num_labels
    counts = np.bincount(place, minlength=size).reshape(GROUPS, num_labels)
    sums, squares = np.zeros((GROUPS, num_labels, thumbnails.shape[1])), np.zeros(GROUPS)
    for cell in range(thumbnails.shape[1]):
        values = thumbnails[:, cell].astype(float)
        sums[:, :, cell] = np.bincount(place, values, size).reshape(GROUPS, num_labels)
        squares += np.bincount(group, values**2, GROUPS)
    whole = between(counts.sum(axis=0), sums.sum(axis=0), squares.sum())
    without = [
        between(counts.sum(axis=0) - counts[g], sums.sum(axis=0) - sums[g], squares.sum() - squares[g])
        for g in range(GROUPS)
    ]
    if not np.isfinite([whole, *without]).all():
        return None, None
    return round(whole, 6), round(float(np.sqrt((GROUPS - 1) * np.var(without))), 6)


def between(counts: np.ndarray, sums: np.ndarray, squares: float) -> float:
    """Return the share of the variance between labels, from counts (L,), sums (L,D) and the sum of all squares.

    The share is adjusted for the number of labels (adjusted R^2).  It is NaN if no label has two images.
    """
    num_images, num_labels = counts.sum(), np.count_nonzero(counts)
    common = (sums.sum(axis=0) ** 2).sum() / num_images
    total = squares - common
    if total <= 1e-9 * squares or num_images == num_labels:
        return float("nan")
    within = squares - ((sums**2).sum(axis=1) / np.maximum(counts, 1)).sum()
    return 1 - float(within / total) * float((num_images - 1) / (num_images - num_labels))
