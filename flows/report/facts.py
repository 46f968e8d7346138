"""The facts about a model that a reader asks for first: its size, its training, and what a PNG needs."""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from flows.images.store import spread
from flows.report.results import Results

MOST_BYTES = 2**23
"""Of the images that are written as a PNG, which takes some seconds."""


def facts(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the names of the facts that are known, with their values in words."""
    origin, metrics, curves, model = results.origin, results.metrics, results.curves, results.model
    if model:
        yield "Parameters", f"{model.num_parameters:,}"
        ends, initial = (model.schedule[name].iloc[[0, -1]] for name in ("gamma", "initial"))
        was = "" if np.allclose(ends, initial) else "; at first {:g} to {:g}".format(*initial)
        yield ("Learned end points" if was else "End points"), "gamma {:.2f} to {:.2f}".format(*ends) + was
    if curves is not None:
        train, validated = origin.parameters.get("train", {}), curves.get("validation_bpd")
        steps, batch_size = int(curves["step"].iloc[-1]), train.get("batch_size")
        taken = f"{steps:,} steps"
        if isinstance(batch_size, int) and results.images:
            taken += f" of {batch_size:,} images, {steps * batch_size / len(results.images.train):.1f} epochs"
        if train.get("keep") == "best" and validated is not None and validated.notna().any():
            taken += f"; weights of step {int(curves['step'][validated.idxmin()]):,}, the best on the validation images"
        yield "Training", taken
    if origin.preset:
        yield "Preset", origin.preset
    if results.images:
        yield in_one_png(spread(getattr(results.images, metrics.split), metrics.num_images))
    if results.validation:
        yield "Data validation", results.validation.verdict
    if metrics.environment:
        yield "Evaluated on", f"{metrics.environment.processor}, torch {metrics.environment.torch}"


def in_one_png(images: np.ndarray) -> tuple[str, str]:
    """Return the fact how many bits/dim the images (N,C,H,W) take, evenly spread if many, below each other in a PNG."""
    chosen = np.ascontiguousarray(spread(images, max(1, MOST_BYTES // images[0].nbytes)))
    _, channels, _, width = chosen.shape
    rows = chosen.transpose(0, 2, 3, 1).reshape(-1, width, 3) if channels == 3 else chosen.reshape(-1, width)
    file = BytesIO()
    Image.fromarray(rows).save(file, format="png", compress_level=9)
    of = "The same images" if len(chosen) == len(images) else f"{len(chosen):,} of these images"
    return f"{of} in one PNG", f"{8 * file.tell() / chosen.size:.4f} bits/dim"
