"""Compare the Monte Carlo error of our continuous bound with the plain estimator's, at equal network evaluations.

The plain estimator draws independent uniform times and one z_0 per evaluation.  Ours uses stratified times, spread over
the images too, and the exact reconstruction term.  Each estimates the mean bits/dim of one set of images with one small
model, repeatedly with different seeds.  The figure is the standard deviation over the repeats.

    python -m benchmarks.standard_error [--fashion-mnist FOLDER] [--json]
"""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import show
from benchmarks.options import explained, new_parser, positive
from benchmarks.small_models import digits, fashion_mnist, trained
from vdm.discretization import reconstruction_draw
from vdm.evaluation import evaluate
from vdm.model import VDM
from vdm.vlb import bits_per_dim

BATCH = 512


def ours(model: VDM, pixels: np.ndarray, times_per_image: int, seed: int) -> float:
    """Return the mean bits/dim from `vdm.evaluation.evaluate`."""
    result = evaluate(model, pixels, times_per_image=times_per_image, num_timesteps=None, batch_size=BATCH, seed=seed)
    return float(result.bpd.mean())


@torch.inference_mode()
def plain(model: VDM, pixels: np.ndarray, times_per_image: int, seed: int) -> float:
    """Return the mean bits/dim from the plain estimator."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for batch in torch.from_numpy(pixels).repeat_interleave(times_per_image, 0).split(BATCH):
        t = torch.rand(len(batch), generator=generator)
        eps_0, eps = torch.randn(2, *batch.shape, generator=generator)
        terms = model(batch, eps, t)
        reconstruction = reconstruction_draw(batch, eps_0, model.schedule.gamma_0, model.num_levels)
        total += bits_per_dim((terms.prior + reconstruction + terms.diffusion).double().sum(), model.num_dims).item()
    return total / (len(pixels) * times_per_image)


def measure(name: str, model: VDM, pixels: np.ndarray, times_per_image: int, repeats: int) -> dict[str, object]:
    """Return mean and spread of both estimators over the repeats, and the ratio of the spreads with its error."""
    values = np.array(
        [[estimator(model, pixels, times_per_image, seed) for seed in range(repeats)] for estimator in (ours, plain)]
    )
    spread = values.std(axis=1, ddof=1)
    ratio = float(spread[0] / spread[1])
    return {
        "set": name,
        "images": len(pixels),
        "times_per_image": times_per_image,
        "ours_bpd": float(values[0].mean()),
        "plain_bpd": float(values[1].mean()),
        "ours_standard_error": float(spread[0]),
        "plain_standard_error": float(spread[1]),
        "ratio": ratio,
        "ratio_error": ratio / math.sqrt(repeats - 1),
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--fashion-mnist", type=Path, help="folder with its files; adds 1,000 of its images")
    parser.add_argument(
        "--steps", type=positive, default=1500, help="training steps; a fifth of them for Fashion-MNIST"
    )
    parser.add_argument(
        "--repeats", type=positive, default=150, help="number of seeds; a seventh of them for Fashion-MNIST"
    )
    arguments = parser.parse_args()
    if arguments.repeats < (fewest := 14 if arguments.fashion_mnist else 2):
        parser.error(f"--repeats must be at least {fewest} for a standard deviation of two values")
    fashion = None
    if arguments.fashion_mnist:  # read first, since a wrong folder must not cost the training
        with explained(parser), tempfile.TemporaryDirectory() as scratch:
            fashion = fashion_mnist(arguments.fashion_mnist, Path(scratch))
    train_pixels, test_pixels = digits()
    model = trained(train_pixels, 17, schedule="learned_linear", gamma_0=-7.0, width=32, steps=arguments.steps)
    rows = [measure("digits", model, test_pixels, times, arguments.repeats) for times in (1, 4)]
    if fashion:
        train_pixels, test_pixels = fashion
        model = trained(
            train_pixels, 256, schedule="learned_linear", gamma_0=-13.3, width=16, steps=arguments.steps // 5
        )
        rows += [measure("fashion_mnist", model, test_pixels[:1000], 1, arguments.repeats // 7)]
    show({"rows": rows}, as_json=arguments.json)


if __name__ == "__main__":
    main()
