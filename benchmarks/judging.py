"""How often the judge of challengers is wrong, and how often it finds what is better: a simulation without models.

Each row draws the differences in bits/dim of a challenger and the champion on n images, many times.  `equal` is the
rate at which a challenger of the same mean is promoted, with promote.min_improvement_bpd 0; a confidence of 0.95 allows
0.025.  `better` is that of one which Student's t finds in 0.9 of comparisons if the differences are normal and n is
large: its mean is lower by 3.24 standard errors.  The columns with `_t` are those of Student's t alone.

    python -m benchmarks.judging [--comparisons 4000] [--json]

The second table is about challengers in a row: how often one of 20 equal ones is promoted by the same images, whose
differences from the champion they all share, by the margin that promote.min_improvement_bpd asks, in standard errors.
The third is what no interval can see: how often none of the images is one of a share that became far worse.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks import new_parser, positive, show
from vdm.evaluation import paired_difference

CONFIDENCE = 0.95
COUNTS = (10, 30, 100, 300)
BETTER = 3.24
IN_A_ROW = 20
MARGIN = 0.2
"""In standard errors: with it, one of 20 equal challengers is promoted about as often as the evidence says."""
SHARES, SEEN = (0.01, 0.02, 0.05), (10, 30, 89, 90, 144, 300)
Row = dict[str, Any]
Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def normal(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Return differences without a tail."""
    return values


def lognormal(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Return differences with a long tail: few images become far worse, and the others a little better."""
    return (np.exp(values) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


def worse(share: float, by: float) -> Draw:
    """Return how to draw differences of which a share is worse by so many standard deviations."""

    def draw(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
        moved = rng.random(values.shape) < share
        return (values + by * (moved - share)) / math.sqrt(1 + by**2 * share * (1 - share))

    return draw


def identical(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Return no differences, as of one model and itself."""
    return np.zeros(values.shape)


KINDS: dict[str, Draw] = {
    "normal": normal,
    "lognormal": lognormal,
    "5% worse by 3 deviations": worse(0.05, 3),
    "5% worse by 10 deviations": worse(0.05, 10),
    "2% worse by 30 deviations": worse(0.02, 30),
    "identical": identical,
}
"""How to make differences of mean 0 and deviation 1 from values that are standard normal."""


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("--comparisons", type=positive, default=4000, help="of each row")
    chosen = options.parse_args()
    figures = {
        "comparisons": chosen.comparisons,
        "rows": [*rows(chosen.comparisons)],
        "in_a_row": [*challengers_in_a_row(chosen.comparisons)],
        "missed": [{"images": count, **{f"{share:.0%}": (1 - share) ** count for share in SHARES}} for count in SEEN],
    }
    show(figures, as_json=chosen.json)


def rows(comparisons: int) -> Iterator[Row]:
    """Yield the rates of promotions of every kind of differences and number of images."""
    for name, draw in KINDS.items():
        for count in COUNTS:
            rng = np.random.default_rng(0)
            differences = draw(rng, rng.normal(size=(comparisons, count)))
            better = differences - (BETTER / math.sqrt(count) if differences.any() else 0)
            row: Row = {"differences": name, "images": count}
            for key, found in (("equal", differences), ("better", better)):
                row |= {key: np.mean([*map(is_promoted, found)]), f"{key}_t": by_students_t(found).mean()}
            yield row


def is_promoted(differences: np.ndarray, margin: float = 0) -> bool:
    """Whether the judge finds that the mean of the differences (N,) lies below minus the margin."""
    paired = paired_difference(np.zeros(len(differences)), differences, confidence=CONFIDENCE)
    return paired.interval[1] < -margin


def by_students_t(differences: np.ndarray) -> np.ndarray:
    """Return what Student's t alone finds of comparisons (M,N), (M,) bool."""
    count = differences.shape[1]
    half = stdtrit(count - 1, (1 + CONFIDENCE) / 2) * differences.std(axis=1, ddof=1) / math.sqrt(count)
    return np.asarray(differences.mean(axis=1) + half < 0)


def challengers_in_a_row(comparisons: int) -> Iterator[Row]:
    """Yield how often one of equal challengers is promoted, by differences, images and margin in standard errors."""
    for margin in (0.0, MARGIN, 0.5, 1.0):
        yield count_promoted(comparisons, "normal", 100, margin)
    for name in KINDS:
        for count in (30, 90, 300) if name != "identical" else ():
            yield count_promoted(comparisons, name, count, MARGIN)


def count_promoted(comparisons: int, name: str, count: int, margin: float) -> Row:
    """Return how often one of IN_A_ROW equal challengers is promoted, all compared with one champion."""
    rng, promoted = np.random.default_rng(0), 0
    for _ in range(comparisons):
        champion, *challengers = rng.normal(size=(1 + IN_A_ROW, count)) / math.sqrt(2)
        differences = KINDS[name](rng, np.array(challengers) - champion)
        promoted += any(is_promoted(each, margin / math.sqrt(count)) for each in differences)
    return {"differences": name, "images": count, "margin": margin, "one_is_promoted": promoted / comparisons}


if __name__ == "__main__":
    main()
