"""Measure what the ends and the variances of T steps are worth: the diffusion term of test images in bits/dim.

Both are fitted to the errors of the validation images at --levels + 1 noise levels (`vdm.fitted_grids`).  A row has T
steps that are even in t, then those of the best grid, each with the paper's variance, with one a step, and
with one a step and dimension.  Every grid is evaluated with the same noise, at --times uniform times of each image,
which are best a multiple of T.  `gained` is the first column minus the last, with the paired standard error over
images.

    OMP_NUM_THREADS=1 python -m benchmarks.few_steps --model models/vdm --images data/images \
        [--steps 10 25 50 100] [--levels 64] [--times 100] [--json]
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import explained, new_parser, positive, show
from flows.core.model import open_model
from flows.images.image_set import open_images
from vdm.evaluation import BoundSettings, Evaluation, evaluate, standard_error
from vdm.fitted_grids import ErrorCurve, Variances, error_curve, fit_grid, fit_variances
from vdm.grids import Grid
from vdm.model import VDM

BATCH = 512
KINDS: dict[Variances, str] = {"paper": "paper's", "step": "one a step", "dimension": "one a step and dimension"}
Row = dict[str, Any]


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("--model", type=Path, required=True, help="a model folder")
    options.add_argument("--images", type=Path, required=True, help="an image set with validation images")
    options.add_argument("--steps", type=positive, nargs="+", default=[10, 25, 50, 100])
    options.add_argument("--levels", type=positive, default=64, help="intervals between the noise levels of the curve")
    options.add_argument("--times", type=positive, default=100, help="times of each image")
    chosen = options.parse_args()
    with explained(options):
        model, images = open_model(chosen.model).vdm, open_images(chosen.images)
        begin = time.monotonic()
        curve = error_curve(model, images["validation"], levels=chosen.levels, seed=0, batch_size=BATCH)
    seconds = time.monotonic() - begin
    settings = BoundSettings(times_per_image=chosen.times, batch_size=BATCH, seed=0)
    continuous = evaluate(model, images["test"], settings)
    rows = [row(model, images["test"], curve, steps, chosen.times) for steps in tqdm(chosen.steps, disable=None)]
    show(
        {
            "num_validation": len(images["validation"]),
            "num_test": len(images["test"]),
            "curve_seconds": seconds,
            "continuous_diffusion_bpd": continuous.diffusion.mean(),
            "continuous_standard_error": standard_error(continuous.diffusion),
            "prior_and_reconstruction_bpd": (continuous.prior + continuous.reconstruction).mean(),
            "rows": rows,
        },
        as_json=chosen.json,
    )


def row(model: VDM, pixels: np.ndarray, curve: ErrorCurve, num_timesteps: int, times: int) -> Row:
    """Return the diffusion terms of one number of steps, and what the best of them gains."""
    begin, found = time.monotonic(), Row(steps=num_timesteps)
    even = {f"even in t, {name}": fit_variances(Grid(num_timesteps), curve, model.schedule, kind)
            for kind, name in KINDS.items()}  # fmt: skip
    best = {f"best, {name}": fit_grid(curve, num_timesteps, kind) for kind, name in KINDS.items()}
    found["fit_seconds"] = time.monotonic() - begin
    results: list[Evaluation] = []
    for name, grid in (even | best).items():
        settings = BoundSettings(times_per_image=times, batch_size=BATCH, seed=0, grid=grid)
        results.append(evaluate(model, pixels, settings))
        found[name] = results[-1].diffusion.mean()
    gained = results[0].diffusion - results[-1].diffusion
    return found | {"gained": gained.mean(), "gained_standard_error": standard_error(gained)}


if __name__ == "__main__":
    main()
