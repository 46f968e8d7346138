"""Find images that occur twice in a split, occur in both splits, or look alike in both."""

import numpy as np

from flows.images.store import fitting
from flows.validation.facts import Facts

# At most this many training images of one sketch are compared: blank images all share one.
MOST_COMPARED = 4
PAIRS = 2000
TESTS = 100_000


def repeats(digests: np.ndarray) -> np.ndarray:
    """Return whether an earlier image has the same digest (N,); digests are (N,2) uint64."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equals, the first comes first
    again = np.zeros(len(digests), dtype=bool)
    again[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return again


def leaked(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return whether each test image has the digest of a training image (N,); digests are (...,2) uint64."""
    pair = np.dtype([("high", np.uint64), ("low", np.uint64)])
    return np.isin(test.view(pair)[:, 0], train.view(pair)[:, 0])


def lookalikes(
    train: np.ndarray, test: np.ndarray, train_facts: Facts, test_facts: Facts, *, num_levels: int, distance: float
) -> np.ndarray:
    """Return whether each test image looks like a training image without being equal to one (N,).

    Two images look alike if their sketches differ in at most one bit and their pixels by at most `distance` on average,
    as a share of the range.
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
    """Return whether test image `ours[i]` and training image `theirs[i]` differ by `distance` at most (P,)."""
    alike = np.zeros(len(ours), dtype=bool)
    step = fitting(PAIRS, test[0].nbytes)
    for first in range(0, len(ours), step):
        some = slice(first, first + step)
        difference = test[ours[some]].astype(np.float32)
        difference -= train[theirs[some]].astype(np.float32)
        alike[some] = np.abs(difference, out=difference).reshape(len(difference), -1).mean(axis=1) <= distance
    return alike


def candidates(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the numbers of test and training images whose sketches differ in at most one bit (P,2).

    The sketches `train` must be sorted.
    """
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    if not len(train):
        return pairs[0]
    for flip in [0, *(1 << bit for bit in range(64))]:
        wanted = test ^ np.uint64(flip)
        start = np.searchsorted(train, wanted)
        for step in range(MOST_COMPARED):
            place = np.minimum(start + step, len(train) - 1)
            ours = np.flatnonzero(train[place] == wanted)
            pairs.append(np.stack([ours, place[ours]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)
