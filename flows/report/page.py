"""The page about one model."""

import math
from typing import Any, NamedTuple

import numpy as np

from flows.images.store import spread
from flows.report import charts
from flows.report.charts import Chart
from flows.report.checks import Shown, alike, expectations, image_of, offences
from flows.report.pictures import Picture, columns_of, grid, tile
from flows.report.quality import measures, sampler
from flows.report.results import Results, description
from flows.report.tables import Columns, finite_rows
from flows.report.templates import fill

MOST_EXTREMES = 8
MOST_NEIGHBOURS = 8


class Page(NamedTuple):
    """A page as HTML, and its charts."""

    html: str
    charts: list[Chart]


class Grids(NamedTuple):
    """As many samples as held-out images, at the same size."""

    num_images: int
    samples: Picture
    held_out: Picture


def page(results: Results) -> Page:
    """Return the page about one model."""
    drawn = draw({"": results})
    html = fill(
        "page.html",
        results=results,
        metrics=results.metrics,
        about=description(results.images),
        charts={chart.name: chart for chart in drawn},
        uniform=math.log2(results.images.num_levels) if results.images else None,
        extremes=extremes(results),
        grids=grids(results),
        measures=measures(results.sample_metrics),
        sampler=sampler(results.sample_metrics.sampler) if results.sample_metrics else "",
        neighbours=neighbours(results),
        expectations=expectations(results),
        offences=offences(results),
        alike=alike(results),
        lineage=lineage(results),
    )
    return Page(html, drawn)


def draw(models: dict[str, Results]) -> list[Chart]:
    """Return the charts for which a model has data, with a curve for each such model."""
    drawn = [charts.Model(name, color) for name, color in zip(models, charts.MODELS, strict=False)]

    def tables(field: str) -> dict[charts.Model, Columns]:
        found = {model: getattr(results, field) for model, results in zip(drawn, models.values(), strict=True)}
        return {model: table for model, table in found.items() if table is not None}

    wanted = (
        ("loss", charts.loss, "curves"),
        ("schedule", charts.schedule, "noise_levels"),
        ("noise_levels", charts.noise_levels, "noise_levels"),
        ("per_image", charts.histogram, "per_image"),
    )
    return [charts.drawn(name, curves, data) for name, curves, field in wanted if (data := tables(field))]


def extremes(results: Results) -> list[tuple[str, list[Shown]]]:
    """Return the images with the fewest and those with the most bits/dim; [] if images or figures are missing."""
    if results.per_image is None or results.images is None:
        return []
    numbers, bpd = finite_rows(results.per_image["image"], results.per_image["bpd"])
    order = np.argsort(bpd, kind="stable")
    size = min(MOST_EXTREMES, len(order) // 2)
    split = results.metrics.split

    def shown(row: int) -> Shown:
        number = int(numbers[row])
        return Shown(image_of(results, split, number, f"{split} image {number}"), f"{bpd[row]:.3f}")

    return [("Easiest", list(map(shown, order[:size]))), ("Hardest", list(map(shown, order[::-1][:size])))]


def grids(results: Results) -> Grids | None:
    """Return samples and held-out images as grids; None if either is missing."""
    if results.samples is None or results.images is None or not len(results.images.test):
        return None
    levels, real = results.images.num_levels, results.images.test
    columns = columns_of(results.images.image_shape[2])
    size = min(columns * columns, len(results.samples), len(real))
    samples = grid(results.samples[:size], levels, f"{size} samples of the model")
    return Grids(size, samples, grid(spread(real, size), levels, f"{size} test images"))


def neighbours(results: Results) -> list[tuple[Shown, Shown, float]]:
    """Return the samples that are nearest to a training image, with that image and the distance."""
    if results.samples is None or results.images is None:
        return []
    levels, shown = results.images.num_levels, []
    for sample, number, distance in results.neighbours[:MOST_NEIGHBOURS]:
        if nearest := image_of(results, "train", number, f"training image {number}"):
            left = Shown(tile(results.samples[sample], levels, f"sample {sample}"), f"sample {sample}")
            shown.append((left, Shown(nearest, f"train {number}"), distance))
    return shown


def lineage(results: Results) -> dict[str, Any]:
    """Return what the model was made from, as digests, after the tags and the commit if it is a version."""
    metrics = results.metrics
    requirements = metrics.environment.requirements_sha256 if metrics.environment else None
    return {
        **results.origin.lineage,
        "model, sha256": metrics.model_sha256,
        "images, sha256": metrics.data_sha256,
        "requirements.lock, sha256": requirements,
    }
