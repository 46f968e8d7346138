"""Images that are there twice: within a split, in both splits, and those that only look the same."""

import numpy as np

from flows.image_facts import Facts

# A sketch that so many training images share, such as that of blank ones, says nothing: no more are compared.
MOST_COMPARED = 4
PAIRS, PAIRED_PIXELS = 2000, 2**24


def repeats(digests: np.ndarray) -> np.ndarray:
    """(N,) whether an earlier image has the same digest; digests (N,2) uint64."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equals, the first comes first
    again = np.zeros(len(digests), dtype=bool)
    again[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return again


def leaked(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(N,) whether the digest of a test image is that of a training image; digests (...,2) uint64."""
    pair = np.dtype([("high", np.uint64), ("low", np.uint64)])
    return np.isin(test.view(pair)[:, 0], train.view(pair)[:, 0])


def lookalikes(
    train: np.ndarray, test: np.ndarray, train_facts: Facts, test_facts: Facts, *, num_levels: int, distance: float
) -> np.ndarray:
    """(N,) whether a test image looks like a training image without being one.

    That is: their sketches differ in at most one bit, and their pixels by at most `distance` of the range on average.
    """
    found = np.zeros(len(test), dtype=bool)
    if train.shape[1:] != test.shape[1:] or train.dtype.kind not in "ui" or test.dtype.kind not in "ui":
        return found
    pairs = candidates(train_facts.sketch, test_facts.sketch)
    step = max(1, min(PAIRS, PAIRED_PIXELS // max(1, train[:1].size)))
    for first in range(0, len(pairs), step):
        ours, theirs = pairs[first : first + step].T
        difference = np.abs(test[ours].astype(np.float32) - train[theirs].astype(np.float32))
        alike = difference.reshape(len(ours), -1).mean(axis=1) <= distance * (num_levels - 1)
        found[ours[alike]] = True
    return np.asarray(found & ~leaked(train_facts.digest, test_facts.digest))


def candidates(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(P,2) numbers of test and training images whose sketches, uint64, differ in at most one bit."""
    order = np.argsort(train, kind="stable")
    ranked = train[order]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for flip in [0, *(1 << bit for bit in range(64))]:
        wanted = test ^ np.uint64(flip)
        start = np.searchsorted(ranked, wanted)
        for step in range(MOST_COMPARED):
            place = np.minimum(start + step, max(len(ranked) - 1, 0))
            ours = np.flatnonzero(ranked[place] == wanted) if len(ranked) else np.zeros(0, dtype=np.int64)
            pairs.append(np.stack([ours, order[place[ours]] if len(ours) else ours], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)
