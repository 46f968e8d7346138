"""How good the samples are: each measure compared with that of held-out images, in words."""

from typing import NamedTuple

from flows.evaluation.results import QualityFigure, SampleMetrics, SamplerSettings

MEASURES = {
    "fd": ("Fréchet distance", "distance of the means and covariances of features; 0 is best"),
    "kd": ("kernel distance", "squared maximum mean discrepancy of features; 0 is best"),
    "fid": ("FID", "Fréchet distance in Inception's features; 0 is best"),
    "kid": ("KID", "kernel distance in Inception's features; 0 is best"),
    "precision": ("precision", "share of samples that lie among real images; 1 is best"),
    "recall": ("recall", "share of real images that lie among samples; 1 is best"),
}
SAMPLERS = {
    (1, 1.0): "ancestral sampling",
    (1, 0.0): "DDIM",
    (2, 0.0): "DPM-Solver++(2M)",
    (2, 1.0): "stochastic DPM-Solver++(2M)",
}
"""The samplers that `vdm.sampling.Solver` names, by order and eta."""
MOST_MEASURES = 50


class Measure(NamedTuple):
    """A row of the table of quality: its key in metrics.json, its name and meaning, and the figure of each model."""

    key: str
    name: str
    meaning: str
    figures: list[QualityFigure | None]


def measures(*metrics: SampleMetrics | None) -> list[Measure]:
    """Return the measures that at least one model has, with the figures of all models."""
    keys = list(dict.fromkeys(key for one in metrics if one for key in one.figures))[:MOST_MEASURES]
    return [Measure(key, *named(key), [one.figures.get(key) if one else None for one in metrics]) for key in keys]


def named(key: str) -> tuple[str, str]:
    """Return the name and the meaning of a measure."""
    return MEASURES.get(key.partition("_")[0], (key, ""))


def sampler(settings: SamplerSettings) -> str:
    """Return how the samples were drawn, in words."""
    known = SAMPLERS.get((settings.order, settings.eta), f"order {settings.order} and eta {settings.eta:g}")
    clip = "clipped" if settings.clip else "not clipped"
    return (
        f"{settings.num_timesteps} steps of {known}, evenly spaced in {settings.grid},"
        f" x_hat {clip}, {settings.precision}, seed {settings.seed}"
    )
