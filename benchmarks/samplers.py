"""Measure the quality of samples against their cost: samplers x numbers of steps, on a reproduced project.

With --guidance, the default sampler draws from a model with classes, at each guidance, the classes of the test images
in turn, and --plot draws precision and recall over the guidance.

Run in a folder in which `dvc repro` has made data/images, models/vdm and models/features.  All rows but one have the
same seed, and so the same noise z_1; that one shows what the seed changes.  --plot FILE draws the Frechet distance over
the number of steps.

    python -m benchmarks.samplers [--images 4000] [--steps 10 25 50] [--reference-steps 1000] [--guidance 1 2]
                                  [--plot FILE] [--json]
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import chart, explained, new_parser, picture, positive, show
from flows.commands.sampling import SOLVERS
from flows.core import layout
from flows.core.checkpoint import load_model
from flows.core.params import Sample
from flows.core.params_file import read_params
from flows.images.labels import classes_of
from flows.images.store import load_images
from flows.quality.distances import frechet_distance, kernel_distance, precision, recall, with_error
from flows.quality.features import embed, load_features
from flows.sampling.drawing import draw_share

Row = dict[str, Any]


def rows(chosen: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Return the name of every row and what it changes of the parameters `sample:`."""
    if chosen.guidance:
        return [(f"guidance {each:g}", {"guidance": each}) for each in chosen.guidance]
    grid = [(name, steps, {}) for name in SOLVERS for steps in chosen.steps]
    few = chosen.steps[len(chosen.steps) // 2]
    best = "sde-dpm-solver++"
    others = [
        ("ancestral", chosen.reference_steps, {}),
        (best, few, {"grid": "t"}),
        (best, few, {"clip": False}),
        (best, few, {"precision": "float32"}),
        (best, few, {"seed": 1}),
    ]
    return [
        (
            " ".join([name, *(f"{key} {value}" for key, value in changes.items())]),
            {"num_timesteps": steps, **SOLVERS[name], **changes},
        )
        for name, steps, changes in [*grid, *others]
    ]


def measure(
    changes: dict[str, Any], sample: Sample, model: Any, network: Any, training: np.ndarray, resamples: int
) -> Row:
    """Return the figures of one row."""
    settings = sample.model_copy(update=changes)
    begin = time.process_time()
    drawn = embed(network, draw_share(model, settings, range(settings.num_images), shown=False))
    seconds = time.process_time() - begin
    figures: Row = {"steps": settings.num_timesteps, "cpu_seconds": seconds}
    for name, distance in (("fd", frechet_distance(training)), ("kd", kernel_distance(training))):
        of = partial(lambda chosen, distance: distance(drawn[chosen]), distance=distance)
        estimate = with_error(of, len(drawn), resamples, 0)
        figures |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
    for name, share in (("precision", precision(training)), ("recall", recall(training))):
        of = partial(lambda chosen, share: share(drawn[chosen]), share=share)
        estimate = with_error(of, len(drawn), resamples, 0)
        figures |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
    return figures


def plot(path: Path, table: list[Row], held_out: float) -> None:
    """Draw the Frechet distance over the number of steps, one line per sampler."""
    y = "Frechet distance to the training images"
    with chart(path, xscale="log", xlabel="steps", ylabel=y, ylim=(0, None)) as axes:
        for name in SOLVERS:
            line = [row for row in table if row["sampler"] == name]
            values, errors = ([row[key] for row in line] for key in ("fd", "fd_standard_error"))
            axes.errorbar([row["steps"] for row in line], values, errors, label=str(name), marker="o", capsize=3)
        axes.axhline(held_out, color="gray", linestyle="--", label="held-out images")


def plot_guidance(path: Path, table: list[Row], guidance: list[float], held_out: Row) -> None:
    """Draw precision and recall over the guidance."""
    with chart(path, xlabel="guidance", ylabel="share of images", ylim=(0, 1)) as axes:
        for name, color in (("precision", "C0"), ("recall", "C1")):
            values, errors = ([row[key] for row in table] for key in (name, f"{name}_standard_error"))
            axes.errorbar(guidance, values, errors, label=name, marker="o", capsize=3, color=color)
            axes.axhline(held_out[name], color=color, linestyle="--", label=f"{name} of held-out images")


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("--images", type=positive, default=4000, help="samples per row")
    options.add_argument("--steps", type=positive, nargs="+", default=[10, 25, 50])
    options.add_argument("--reference-steps", type=positive, default=1000, help="steps of the ancestral reference")
    options.add_argument("--guidance", type=float, nargs="+", default=[], help="of a model with classes")
    options.add_argument("--plot", type=picture, help="a .png or .svg file")
    chosen = options.parse_args()
    with explained(options):
        sample = read_params(layout.PARAMS).sample.model_copy(update={"num_images": chosen.images})
        network, _, digest = load_features(layout.FEATURES, torch.device("cpu"))
        image_set, model = load_images(layout.IMAGES), load_model(layout.REGISTERED)
        if chosen.guidance:
            classes = classes_of(layout.IMAGES, "test", layout.REGISTERED).tolist()
            sample = sample.model_copy(update={"classes": classes})
    training, test = embed(network, image_set.train), embed(network, image_set.test)
    table = [
        {"sampler": name, **measure(changes, sample, model, network, training, 20)}
        for name, changes in tqdm(rows(chosen), disable=None)
    ]
    held_out = frechet_distance(training)(test)
    if chosen.plot and chosen.guidance:
        shares = {"precision": precision(training)(test), "recall": recall(training)(test)}
        plot_guidance(chosen.plot, table, chosen.guidance, shares)
    elif chosen.plot:
        plot(chosen.plot, table, held_out)
    figures = {"features_sha256": digest, "num_images": chosen.images, "held_out_fd": held_out, "rows": table}
    show(figures, as_json=chosen.json)


if __name__ == "__main__":
    main()
