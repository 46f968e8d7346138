"""The page that compares two models, by results that exist: nothing is evaluated."""

from typing import TYPE_CHECKING, Any

import numpy as np

from flows.report.charts import ending
from flows.report.page import Page, draw, grids, lineage
from flows.report.quality import measures, sampler
from flows.report.results import Results
from flows.report.templates import fill

if TYPE_CHECKING:
    from flows.evaluation.results import SampleMetrics
    from vdm.evaluation import PairedDifference

CONFIDENCE = 0.95


def comparison(first: Results, second: Results) -> Page:
    """Return the page that compares two models."""
    pair = [first, second]
    names = [first.origin.name, second.origin.name]
    if ending(names[0]) == ending(names[1]):
        names = [f"{name}, {place}" for name, place in zip(names, ("first", "second"), strict=True)]
    before, after = (one.origin.parameters for one in pair)
    both = [key for key in before if key in after]
    drawn = draw(dict(zip(names, pair, strict=True)))
    html = fill(
        "comparison.html",
        names=names,
        pair=pair,
        metrics=[one.metrics for one in pair],
        notes=[(name, note) for name, one in zip(names, pair, strict=True) for note in one.notes],
        difference=difference(first, second),
        charts={chart.name: chart for chart in drawn},
        grids=[grids(one) for one in pair],
        measures=measures(first.sample_metrics, second.sample_metrics),
        cautions=cautions(first.sample_metrics, second.sample_metrics),
        changed=[row for key in both for row in changed(before[key], after[key], key)],
        one_sided=sorted(before.keys() ^ after.keys()),
        lineages=[lineage(one) for one in pair],
    )
    return Page(html, drawn)


def cautions(first: "SampleMetrics | None", second: "SampleMetrics | None") -> list[str]:
    """Return sentences about figures of two models' samples that cannot be compared."""
    if first is None or second is None:
        return []
    if first.data_sha256 != second.data_sha256:
        return ["The samples were compared with different images, so compare each model with its test images only."]
    found = []
    if not first.sampler.is_like(second.sampler):
        found.append(f"The samples were drawn differently: {sampler(first.sampler)}; and {sampler(second.sampler)}.")
    if first.features_sha256 != second.features_sha256:
        possible = "only FID, KID and figures in pixels can be compared"
        found.append(f"The features are those of two different networks, so {possible}.")
    counts = [f"{one.num_images:,} samples with {one.num_training_images:,} training images" for one in (first, second)]
    if counts[0] != counts[1]:
        found.append(
            f"Different numbers of images were compared: {counts[0]}, and {counts[1]}. Fewer images make the Fréchet "
            "distance larger and change the recall, so compare each model with its test images only."
        )
    return found


def difference(first: Results, second: Results) -> "PairedDifference | str":
    """Return the paired difference of the images of two models, or the reason why they cannot be paired."""
    if first.per_image is None or second.per_image is None:
        return "one of them has no figures for each image"
    for field, text in (
        ("data_sha256", "they were evaluated on different images"),
        ("split", "they were evaluated on different splits"),
        ("num_images", "they were evaluated on different numbers of images"),
        ("seed", "they were evaluated with different seeds"),
        ("times_per_image", "they were evaluated at different numbers of times"),
        ("num_timesteps", "they were evaluated with different numbers of steps"),
        ("precision", "they were evaluated in different precisions"),
    ):
        if getattr(first.metrics, field) != getattr(second.metrics, field):
            return text
    before, after = first.per_image["bpd"], second.per_image["bpd"]
    if len(before) < 2:
        return "one image has no standard error"
    if not np.isfinite([before, after]).all():
        return "not all figures are finite"
    from vdm.evaluation import paired_difference  # loads torch, for a second

    return paired_difference(before, after, confidence=CONFIDENCE)


def changed(first: Any, second: Any, name: str) -> list[tuple[str, Any, Any]]:
    """Return the parameters that differ, by dotted names that begin with `name`, with both values."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return [] if first == second else [(name, first, second)]
    found = []
    for key in [*first, *(key for key in second if key not in first)]:
        found += changed(first.get(key, "not set"), second.get(key, "not set"), f"{name}.{key}")
    return found
