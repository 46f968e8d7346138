"""What validation found: every expectation with its result, and the images that break one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flows.images.store import SPLITS
from flows.report.pictures import Picture, tile
from flows.report.results import Results
from flows.report.templates import value
from flows.validation.report import Result

MOST_SHOWN = 10
MOST_EXPECTATIONS = 500


class Shown(NamedTuple):
    """An image and its caption."""

    picture: Picture | None
    caption: str


def offences(results: Results) -> list[tuple[Result, list[Shown]]]:
    """Return the broken expectations, each with the first images or other rows that break it."""
    broken = [result for result in expectations(results) if not result.success]
    return [(result, [row_of(results, row) for row in result.rows[:MOST_SHOWN]]) for result in broken]


def expectations(results: Results) -> Sequence[Result]:
    """Return the expectations, broken ones first, at most `MOST_EXPECTATIONS`."""
    found = results.validation.expectations if results.validation else []
    return sorted(found, key=lambda result: result.success)[:MOST_EXPECTATIONS]


def row_of(results: Results, row: dict[str, Any], prefix: str = "") -> Shown:
    """Return the image that a row names, if it names one, and the row's values in words."""
    split, number = row.get(f"{prefix}split"), row.get(f"{prefix}image")
    if split is None or number is None:
        return Shown(None, ", ".join(f"{key} {value(item)}" for key, item in list(row.items())[:MOST_SHOWN]))
    name = f"{value(split)} image {value(number)}"
    file = row.get(f"{prefix}file")
    return Shown(image_of(results, split, number, name), f"{name}, {value(file)}" if file else name)


def image_of(results: Results, split: Any, number: Any, name: str) -> Picture | None:
    """Return an image of a split; None if a damaged report names an image that the split does not have."""
    if results.images is None or split not in SPLITS or type(number) is not int:
        return None
    images = getattr(results.images, split)
    if images.ndim != 4 or not 0 <= number < len(images) or not images[0].size:
        return None
    return tile(images[number], results.images.num_levels, name)


def alike(results: Results) -> list[tuple[Shown, Shown, str]]:
    """Return the pairs of images of two splits that look most alike, and how alike they are."""
    compared = results.validation.alike if results.validation else []
    pairs = [pair for splits in compared for pair in splits.pairs if isinstance(pair.get("by_chance"), int | float)]
    pairs = sorted(pairs, key=lambda pair: pair["by_chance"])[:MOST_SHOWN]
    return [
        (
            row_of(results, pair),
            row_of(results, pair, "of_"),
            f"{value(pair.get('moved'))}, distance {value(pair.get('distance'))},"
            f" {value(pair['by_chance'])} as close by chance",
        )
        for pair in pairs
    ]
