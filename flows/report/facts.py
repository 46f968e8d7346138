"""The facts about a model that a reader asks for first: its size, its training, and what other codes need."""

import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from flows.images.store import ImageSet, spread
from flows.report.results import Results

MOST_BYTES = 2**23
"""Of the images that are given to other codes, which takes some seconds."""
MOST_CHANGES = 8


def facts(results: Results) -> dict[str, str]:
    """Return the names of the facts that are known, with their values in words."""
    metrics, environment = results.metrics, results.metrics.environment
    found = dict(of_model(results)) | dict(of_training(results))
    if results.images:
        found |= other_codes(getattr(results.images, metrics.split))
        found["Images"] = kind(results.images)
    if results.validation:
        found["Data validation"] = results.validation.verdict
    if environment:
        found["Evaluated on"] = f"{environment.processor}, torch {environment.torch}"
    return found


def kind(images: ImageSet) -> str:
    """Return the shape, the levels and the number of training images in words."""
    shape = " x ".join(map(str, images.image_shape))
    return f"{shape}, {images.num_levels} levels; {len(images.train):,} for training"


def of_model(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the facts of the model itself."""
    if model := results.model:
        yield "Parameters", f"{model.num_parameters:,}"
        ends, initial = (model.schedule[name].iloc[[0, -1]] for name in ("gamma", "initial"))
        was = "" if np.allclose(ends, initial) else "; at first {:g} to {:g}".format(*initial)
        yield ("Learned end points" if was else "End points"), "gamma {:.2f} to {:.2f}".format(*ends) + was


def of_training(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the facts of the training: steps, epochs, and parameters that differ from those of the nearest preset."""
    origin, curves, train = results.origin, results.curves, results.origin.parameters.get("train", {})
    if curves is not None:
        steps, batch_size = int(curves["step"].iloc[-1]), train.get("batch_size")
        taken = f"{steps:,} steps"
        if isinstance(batch_size, int) and results.images:
            taken += f" of {batch_size:,} images, {steps * batch_size / len(results.images.train):.1f} epochs"
        validated = curves.get("validation_bpd")
        if train.get("keep") == "best" and validated is not None and validated.notna().any():
            taken += f"; weights of step {int(curves['step'][validated.idxmin()]):,}, the best on the validation images"
        yield "Training", taken
    if origin.preset:
        changes = [f"{name} {here} instead of {there}" for name, there, here in origin.changes]
        more = [f"{len(changes) - MOST_CHANGES} more"] if len(changes) > MOST_CHANGES else []
        differing = "; ".join([*changes[:MOST_CHANGES], *more])
        yield "Preset", f"{origin.preset}{', with ' if differing else ''}{differing}"


def other_codes(images: np.ndarray) -> dict[str, str]:
    """Return the bits/dim of the images (N,C,H,W), evenly spread if there are many, in a PNG file and in zlib's code.

    The PNG file has all images below each other.
    """
    chosen = np.ascontiguousarray(spread(images, max(1, MOST_BYTES // images[0].nbytes)))
    _, channels, _, width = chosen.shape
    rows = chosen.transpose(0, 2, 3, 1).reshape(-1, width, 3) if channels == 3 else chosen.reshape(-1, width)
    file = BytesIO()
    Image.fromarray(rows).save(file, format="png", compress_level=9)
    sizes = {"one PNG": len(file.getvalue()), "zlib": len(zlib.compress(chosen.tobytes(), 9))}
    of = "The same images" if len(chosen) == len(images) else f"{len(chosen):,} of these images"
    return {f"{of} in {name}": f"{8 * size / chosen.size:.4f} bits/dim" for name, size in sizes.items()}
