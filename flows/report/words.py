"""Results in words: how good the samples are next to held-out images, parameters, and what differs in them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flows.evaluation.figures import TERMS, find_declared
from flows.evaluation.results import BoundMetrics, QualityFigure, SampleMetrics, SamplerSettings
from vdm.samplers import SAMPLERS, sampler_name

SURE = 2
"""How many standard errors above one half the samples are nearer to training images than new images are."""
IN_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


class QualityRow(NamedTuple):
    """A row of the table of quality: its key in metrics.json, its name and meaning, and the figure of each model.

    `copies` says of each model whether copies of training images may be what makes the figure good.
    """

    key: str
    name: str
    meaning: str
    figures: list[QualityFigure | None]
    copies: list[bool]


def measures(*metrics: SampleMetrics | None) -> list[QualityRow]:
    """Return the measures that at least one model has, with the figures of all models."""
    found = []
    for key in dict.fromkeys(key for one in metrics if one for key in one.figures):
        words = find_declared(key)
        figures = [one.figures.get(key) if one else None for one in metrics]
        copies = [key != "recall" and one is not None and may_copy(one) for one in metrics]
        found.append(QualityRow(key, words.name, words.meaning, figures, copies))
    return found


def may_copy(metrics: SampleMetrics) -> bool:
    """Whether the samples are clearly nearer to training images than new images are."""
    nearer, error = metrics.nearer_than_held_out, metrics.nearer_than_held_out_standard_error
    return nearer is not None and nearer - SURE * (error or 0) > 0.5


def sampler(settings: SamplerSettings) -> str:
    """Return how the samples were drawn, in words."""
    name = sampler_name(settings.order, settings.eta)
    title = SAMPLERS[name].title if name else f"order {settings.order} and eta {settings.eta:g}"
    clip = "clipped" if settings.clip else "not clipped"
    return (
        f"{settings.num_timesteps} steps of {title}, evenly spaced in {settings.grid},"
        f" x_hat {clip}, {settings.precision}, seed {settings.seed}"
    )


def cautions(first: SampleMetrics | None, second: SampleMetrics | None) -> list[str]:
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


def compare_parameters(first: Any, second: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Return the parameters that differ, by dotted names that begin with `name`, with both values."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return [] if first == second else [(name, first, second)]
    keys = [*first, *(key for key in second if key not in first)]
    found = [
        compare_parameters(first.get(key, "not set"), second.get(key, "not set"), f"{name}.{key}".strip("."))
        for key in keys
    ]
    return [row for rows in found for row in rows]


def value(parameter: Any) -> str:
    """Return a value as text: a string as it is, anything else as JSON, which is how params.yaml writes it."""
    return parameter if isinstance(parameter, str) else json.dumps(parameter, default=str)


def latex(models: Sequence[tuple[str, BoundMetrics, SampleMetrics | None]]) -> list[str]:
    """Return a row of a table in LaTeX for each model, by its name, after a comment with the names of the columns."""
    shown = measures(*(drawn for *_, drawn in models))
    columns = ["model", "bits/dim", *(term.name for term in TERMS.values()), "images", *(each.name for each in shown)]
    lines = [f"% {' & '.join(columns)}"]
    for place, (name, bound, _) in enumerate(models):
        terms = [getattr(bound, key) for key in TERMS]
        cells = [format_latex(bound.bpd, bound.bpd_standard_error), *map(format_latex, terms), str(bound.num_images)]
        found = [measure.figures[place] for measure in shown]
        cells += [format_latex(one.samples, one.samples_standard_error) if one else "--" for one in found]
        lines.append(" & ".join([name.translate(IN_LATEX), *cells]) + r" \\")
    return lines


def format_latex(number: float | None, error: float | None = None) -> str:
    """Return a number in LaTeX, with its standard error if it has one; a dash if it is not finite."""
    if number is None:
        return "--"
    return f"${number:.3f}$" if error is None else rf"${number:.3f} \pm {error:.3f}$"
