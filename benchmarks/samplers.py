"""Measure the quality of samples against their cost: samplers x numbers of steps, on a reproduced project.

Run in a folder in which `dvc repro` has made data/images, models/vdm and models/features.  All rows but one have the
same seed, and so the same noise z_1; that one shows what the seed changes.  --plot FILE draws the Frechet distance over
the number of steps.

    python -m benchmarks.samplers [--images 4000] [--steps 10 25 50] [--guidance 1 2] [--plot FILE] [--json]

With --guidance, a model with classes draws the classes of the test images in turn with the default sampler, at each
guidance, and --plot draws precision and recall over it.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import chart, explained, new_parser, positive, show
from flows.core import layout
from flows.core.model import TrainedModel, open_model
from flows.core.params import Sample
from flows.core.params_file import read_params
from flows.images.image_set import Chosen, open_images
from flows.sampling.distances import estimate_error, frechet_distance, precision, recall
from flows.sampling.drawing import Drawing, draw
from flows.sampling.features import Classifier, embed, open_features
from vdm.samplers import SAMPLERS

BEST, MOST_STEPS, RESAMPLES = "sde-dpm-solver++", 1000, 20
SHARES = {"precision": precision, "recall": recall}
Row = dict[str, Any]


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("--images", type=positive, default=4000, help="samples per row")
    options.add_argument("--steps", type=positive, nargs="+", default=[10, 25, 50])
    options.add_argument("--guidance", type=float, nargs="+", default=[], help="of a model with classes")
    options.add_argument("--plot", type=Path, help="a .png or .svg file")
    chosen = options.parse_args()
    with explained(options):
        embedding, images = open_features(layout.FEATURES), open_images(layout.IMAGES)
        model = open_model(layout.REGISTERED)
        classes = Chosen(images, "test").classes(model).tolist() if chosen.guidance else None
        changes = {"num_images": chosen.images, "classes": classes, "device": "cpu", "num_devices": 1}
        sample = read_params(layout.PARAMS).sample.model_copy(update=changes)
    network, digest = embedding.network, embedding.sha256
    training, test = embed(network, images["train"]), embed(network, images["test"])
    table: list[Row] = []
    for guidance in chosen.guidance:
        settings = sample.model_copy(update={"guidance": guidance})
        table.append({"guidance": guidance, **measure(settings, model, network, training)})
    for name, steps, changes in tqdm([] if chosen.guidance else rows(chosen.steps), disable=None):
        settings = sample.model_copy(update={"num_timesteps": steps, **SAMPLERS[name].settings, **changes})
        about = " ".join([name, *(f"{key} {value}" for key, value in changes.items())])
        table.append({"sampler": about, "steps": steps, **measure(settings, model, network, training)})
    held_out = frechet_distance(training)(test)
    shares = {name: measured(training)(test) for name, measured in SHARES.items()}
    figures = {"features_sha256": digest, "num_images": chosen.images, "held_out_fd": held_out, **shares, "rows": table}
    show(figures, as_json=chosen.json)
    if chosen.plot and chosen.guidance:
        plot_guidance(chosen.plot, table, shares)
    elif chosen.plot:
        plot(chosen.plot, table, held_out)


def rows(steps: list[int]) -> list[tuple[Any, int, dict[str, Any]]]:
    """Return the sampler of every row, its number of steps, and what else it changes of the parameters `sample:`."""
    few = steps[len(steps) // 2]
    grid: list[tuple[Any, int, dict[str, Any]]] = [(name, number, {}) for name in SAMPLERS for number in steps]
    return [*grid, ("ancestral", MOST_STEPS, {}), (BEST, few, {"precision": "float32"}), (BEST, few, {"seed": 1})]


def measure(settings: Sample, model: TrainedModel, network: Classifier, training: np.ndarray) -> Row:
    """Return the figures of one row."""
    begin = time.process_time()
    drawn = embed(network, draw(Drawing(model, settings)))
    seconds = time.process_time() - begin
    figures: Row = {"cpu_seconds": seconds}
    for name, measured in {"fd": frechet_distance, **SHARES}.items():
        of = measured(training)
        estimate = estimate_error(lambda chosen, of=of: of(drawn[chosen]), len(drawn), RESAMPLES, 0)  # type: ignore[misc]
        figures |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
    return figures


def plot(path: Path, table: list[Row], held_out: float) -> None:
    """Draw the Frechet distance over the number of steps, one line per sampler."""
    y = "Frechet distance to the training images"
    with chart(path, xscale="log", xlabel="steps", ylabel=y, ylim=(0, None)) as axes:
        for name in SAMPLERS:
            line = [row for row in table if row["sampler"] == name]
            values, errors = ([row[key] for row in line] for key in ("fd", "fd_standard_error"))
            axes.errorbar([row["steps"] for row in line], values, errors, label=str(name), marker="o", capsize=3)
        axes.axhline(held_out, color="gray", linestyle="--", label="held-out images")


def plot_guidance(path: Path, table: list[Row], held_out: Row) -> None:
    """Draw precision and recall over the guidance."""
    with chart(path, xlabel="guidance", ylabel="share of images", ylim=(0, 1)) as axes:
        for color, name in enumerate(SHARES):
            keys = ("guidance", name, f"{name}_standard_error")
            guidance, values, errors = ([row[key] for row in table] for key in keys)
            axes.errorbar(guidance, values, errors, label=name, marker="o", capsize=3, color=f"C{color}")
            axes.axhline(held_out[name], color=f"C{color}", linestyle="--", label=f"{name} of held-out images")


if __name__ == "__main__":
    main()
