"""Images that are there twice: within a split, in both splits, and those that only look the same."""

import numpy as np

from flows.images.store import fitting
from flows.validation.facts import Facts

# A sketch that so many training images share, such as that of blank ones, says nothing: no more are compared.
MOST_COMPARED = 4
PAIRS = 2000
TESTS = 100_000


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
    order = np.argsort(train_facts.sketch, kind="stable")
    for first in range(0, len(test), TESTS):
        pairs = candidates(train_facts.sketch[order], test_facts.sketch[first : first + TESTS])
        ours, theirs = pairs[:, 0] + first, order[pairs[:, 1]]
        found[ours[close(test, train, ours, theirs, distance * (num_levels - 1))]] = True
    return np.asarray(found & ~leaked(train_facts.digest, test_facts.digest))


def close(test: np.ndarray, train: np.ndarray, ours: np.ndarray, theirs: np.ndarray, distance: float) -> np.ndarray:
    """(P,) whether the pixels of test image `ours[i]` and training image `theirs[i]` differ by so little on average."""
    alike = np.zeros(len(ours), dtype=bool)
    step = fitting(PAIRS, test[0].nbytes)
    for first in range(0, len(ours), step):
        some = slice(first, first + step)
        difference = test[ours[some]].astype(np.float32)
        difference -= train[theirs[some]].astype(np.float32)
        alike[some] = np.abs(difference, out=difference).reshape(len(difference), -1).mean(axis=1) <= distance
    return alike


def candidates(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(P,2) numbers of test and training images whose sketches differ in at most one bit; `train` is sorted."""
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for flip in [0, *(1 << bit for bit in range(64))]:
        wanted = test ^ np.uint64(flip)
        start = np.searchsorted(train, wanted)
        for step in range(MOST_COMPARED):
            place = np.minimum(start + step, max(len(train) - 1, 0))
            ours = np.flatnonzero(train[place] == wanted) if len(train) else np.zeros(0, dtype=np.int64)
            pairs.append(np.stack([ours, place[ours] if len(ours) else ours], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)
