"""Find images that occur twice in a split, or in two splits."""

import numpy as np


def repeats(digests: np.ndarray) -> np.ndarray:
    """Return whether an earlier image has the same digest (N,); digests are (N,2) uint64."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equals, the first comes first
    again = np.zeros(len(digests), dtype=bool)
    again[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return again


def leaked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether each image of the second split has the digest of one of the first (N,); digests are (...,2) uint64."""
    pair = np.dtype([("high", np.uint64), ("low", np.uint64)])
    return np.isin(second.view(pair)[:, 0], first.view(pair)[:, 0])
