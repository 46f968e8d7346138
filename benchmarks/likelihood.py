"""Measure how well likelihoods are estimated, with small models of the images of a reproduced project.

    python -m benchmarks.likelihood variance [--steps 3000]
    python -m benchmarks.likelihood error [--steps 1500] [--images SET]
    python -m benchmarks.likelihood ode [--steps 1500]

`variance`: the variance of the bound's estimate under four noise schedules with the same end points (section 6).  One
model is trained with the learned monotone schedule, whose shape is trained to lower it.  Then the diffusion loss of
held-out images is estimated under each schedule.  On CIFAR-10 the paper reports 0.53 learned, 6.35 linear in log SNR,
31.6 beta-linear, 31.1 alpha-cosine.

`error`: the Monte Carlo error of our bound and of the plain estimator's, at equal network evaluations.  The plain one
draws independent uniform times and one z_0 per evaluation.  Ours uses stratified times, spread over the images too, and
the exact reconstruction term.  The figure is the standard deviation of the mean bits/dim over seeds.

`ode`: the numerical error of the ODE likelihood, and its network evaluations, for several tolerances of the solver.
The first problem is a finite set of images at gamma_0 = -13.3, where predictor and density are known, solved with the
state z and with the state y = z / sigma of `vdm.ode`.  The second is a small model; its error is the difference from
the result at a tenth of the lowest tolerance.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import explained, new_parser, positive, preset_params, show
from flows.core import layout
from flows.core.model import arguments_of
from flows.evaluation.ode import dopri5
from flows.images.image_set import ImageSet, open_images
from flows.training.fitting import build, resolve
from vdm.choices import ScheduleKind
from vdm.discretization import pixels_to_x, reconstruction_draw
from vdm.evaluation import BoundSettings, evaluate
from vdm.model import VDM
from vdm.ode import Derivative, OdeState, Solve, basis_probes, evaluate_ode, log_density
from vdm.schedule import alpha, sigma
from vdm.vlb import PredictNoise, bits_per_dim, diffusion_loss, low_discrepancy_times

BATCH = 512
TIMES = 256
"""Draws of each image, of which the variance is computed."""
TOLERANCES = (1e-3, 1e-4, 1e-5)
Row = dict[str, Any]
Schedule = Callable[[Tensor], Tensor]


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("what", choices=["variance", "error", "ode"])
    options.add_argument("--images", type=Path, default=layout.IMAGES, help="the image set; default: data/images")
    options.add_argument("--steps", type=positive, default=1500, help="training steps of the small model")
    options.add_argument("--count", type=positive, help="held-out images: 128 of variance, all of error, 8 of ode")
    options.add_argument("--repeats", type=positive, default=150, help="of error: number of seeds, at least 2")
    chosen = options.parse_args()
    with explained(options):
        images = open_images(chosen.images)
    rows = {"variance": variances, "error": errors, "ode": ode_errors}[chosen.what](chosen, images)
    set_name = images.description.name
    show({"what": chosen.what, "set": set_name, "steps": chosen.steps, "rows": rows}, as_json=chosen.json)


def trained(images: ImageSet, steps: int, *, schedule: ScheduleKind, gamma_0: float = -7.0) -> VDM:
    """Return a model with two blocks after `steps` training steps of 64 images, by the recipe of the digits."""
    model: Row = {"schedule": schedule, "gamma_0": gamma_0, "blocks": 2, "dropout": 0.0, "fourier_exponents": [2, 3]}
    if images.num_levels == 256:
        model |= {"gamma_0": -13.3, "width": 16, "fourier_exponents": [6, 7]}
    train = {"steps": steps, "optimizer": "adamw", "learning_rate": 2e-3, "warmup_steps": 50, "precision": "float32"}
    params = preset_params("digits", model=model, train={**train, "log_every": max(1, steps // 5)})
    config = arguments_of(params.model, images.image_shape, images.num_levels)
    settings = resolve(params.train, torch.device("cpu"))
    trainer = build(config, settings, torch.from_numpy(np.array(images["train"])), None)
    for _ in range(steps):
        if record := trainer.step():
            print(f"step {record.step}: {record.bpd:.3f} bits/dim", file=sys.stderr)
    return trainer.averaged


def linear(gamma_0: Tensor, gamma_1: Tensor) -> Schedule:
    """Return a schedule whose log SNR is linear in t."""
    return lambda t: gamma_0 + (gamma_1 - gamma_0) * t


def beta_linear(gamma_0: Tensor, gamma_1: Tensor) -> Schedule:
    """Return a schedule with -log alpha^2 quadratic in t: the noise per step grows linearly (Ho et al. 2020)."""
    ends = torch.log1p(torch.exp(torch.stack([gamma_0, gamma_1])))
    return lambda t: torch.log(torch.expm1(ends[0] + (ends[1] - ends[0]) * t.square()))


def alpha_cosine(gamma_0: Tensor, gamma_1: Tensor) -> Schedule:
    """Return a schedule whose alpha is the cosine of an angle that is linear in t (Nichol and Dhariwal 2021)."""
    ends = torch.atan(torch.exp(torch.stack([gamma_0, gamma_1]) / 2))
    return lambda t: 2 * torch.log(torch.tan(ends[0] + (ends[1] - ends[0]) * t))


def variances(chosen: argparse.Namespace, images: ImageSet) -> list[Row]:
    """Return mean and variance of the diffusion loss under each schedule."""
    model = trained(images, chosen.steps, schedule="learned_monotone")
    ends = (model.schedule.gamma_0.detach(), model.schedule.gamma_1.detach())
    schedules: dict[str, Schedule] = {
        "learned": model.schedule,
        "logSNR-linear": linear(*ends),
        "beta-linear": beta_linear(*ends),
        "alpha-cosine": alpha_cosine(*ends),
    }
    pixels = np.array(images["test"][: chosen.count or 128])
    return [{"schedule": name, **estimate(model, schedule, pixels)} for name, schedule in schedules.items()]


@torch.inference_mode()
def estimate(model: VDM, schedule: Schedule, pixels: np.ndarray) -> Row:
    """Return the mean diffusion loss in bits/dim, and its variance over times and noise, averaged over images."""
    generator = torch.Generator().manual_seed(0)
    losses = []
    for image in torch.from_numpy(pixels):
        batch = pixels_to_x(image.expand(TIMES, -1, -1, -1), model.num_levels)
        t = low_discrepancy_times(torch.rand((), generator=generator), TIMES)
        eps = torch.randn(batch.shape, generator=generator)
        gamma_t, dgamma_dt, *_ = torch.func.jvp(schedule, (t,), (torch.ones_like(t),))
        losses.append(bits_per_dim(diffusion_loss(batch, eps, gamma_t, dgamma_dt, model.network), model.num_dims))
    table = torch.stack(losses).double()
    return {"diffusion_bpd": table.mean().item(), "variance": table.var(dim=1).mean().item()}


def errors(chosen: argparse.Namespace, images: ImageSet) -> list[Row]:
    """Return mean and spread of both estimators over the seeds, and the ratio of the spreads with its error."""
    model = trained(images, chosen.steps, schedule="learned_linear")
    pixels, rows = np.array(images["test"][: chosen.count]), []
    for times in (1, 4):
        values = np.array(
            [[estimator(model, pixels, times, seed) for seed in range(chosen.repeats)] for estimator in (ours, plain)]
        )
        spread = values.std(axis=1, ddof=1)
        ratio = float(spread[0] / spread[1])
        row: Row = {"images": len(pixels), "times_per_image": times}
        row |= {"ours_bpd": float(values[0].mean()), "plain_bpd": float(values[1].mean())}
        row |= {"ours_standard_error": float(spread[0]), "plain_standard_error": float(spread[1])}
        rows.append(row | {"ratio": ratio, "ratio_error": ratio / math.sqrt(chosen.repeats - 1)})
    return rows


def ours(model: VDM, pixels: np.ndarray, times_per_image: int, seed: int) -> float:
    """Return the mean bits/dim from `vdm.evaluation.evaluate`."""
    settings = BoundSettings(times_per_image=times_per_image, batch_size=BATCH, seed=seed)
    return float(evaluate(model, pixels, settings).bpd.mean())


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


def ode_errors(chosen: argparse.Namespace, images: ImageSet) -> list[Row]:
    """Return the numerical errors of both problems at each tolerance."""
    count = chosen.count or 8
    return finite_set(images["train"][: max(64, count)], images.num_levels, count) + network(chosen, images, count)


def log_likelihoods(x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
    """Return log N(z; alpha x_n, sigma^2 I) for every z (B,C,H,W) and every image x_n (N,C,H,W): (B,N) nats."""
    eps = (z[:, None] - alpha(gamma) * x).flatten(2) / sigma(gamma)
    return -0.5 * (eps.square() + math.log(2 * math.pi) + 2 * torch.log(sigma(gamma))).sum(2)


def log_mixture(x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
    """Return the log density of z (B,C,H,W) at gamma when the data are the images x (N,C,H,W): (B,) nats."""
    return torch.logsumexp(log_likelihoods(x, z, gamma), dim=1) - math.log(len(x))


def exact_predictor(x: Tensor) -> PredictNoise:
    """Return the exact noise predictor when the data are the images x (N,C,H,W)."""

    def predict(z: Tensor, gamma: Tensor) -> Tensor:
        weights = torch.softmax(log_likelihoods(x, z, gamma[0]), dim=1)
        return (z - alpha(gamma[0]) * torch.einsum("bn,nchw->bchw", weights, x)) / sigma(gamma[0])

    return predict


def in_z(solve: Solve) -> Solve:
    """Return a solver whose state is z instead of y = z / sigma."""

    def solve_in_z(derivative: Derivative, start: OdeState, times: Tensor) -> OdeState:
        def of_z(gamma: Tensor, state: OdeState) -> OdeState:
            velocity, gain = derivative(gamma, (state[0] / sigma(gamma), state[1]))
            return sigma(gamma) * velocity + 0.5 * alpha(gamma) ** 2 * state[0], gain

        z, gain = solve(of_z, (sigma(times[0]) * start[0], start[1]), times)
        return z / sigma(times[-1]), gain

    return solve_in_z


def measure(run: Callable[[Solve], Tensor], solve: Solve, truth: Tensor) -> Row:
    """Return the number of network evaluations of a run, and its mean and worst error in bits/dim."""
    evaluations = 0

    def counted(derivative: Derivative, start: OdeState, times: Tensor) -> OdeState:
        def count(gamma: Tensor, state: OdeState) -> OdeState:
            nonlocal evaluations
            evaluations += 1
            return derivative(gamma, state)

        return solve(count, start, times)

    error = run(counted) - truth
    worst = error[error.abs().argmax()].item()
    return {"evaluations": evaluations, "mean_error_bpd": error.mean().item(), "worst_error_bpd": worst}


def finite_set(pixels: np.ndarray, num_levels: int, count: int) -> list[Row]:
    """Return the errors for the first `count` images of the set, exact divergence, with both states."""
    x = pixels_to_x(torch.from_numpy(np.array(pixels)), num_levels, torch.float64)
    gamma_0, gamma_1 = torch.tensor([-13.3, 20.0], dtype=torch.float64)
    eps = torch.randn(count, *x.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z_0 = alpha(gamma_0) * x[:count] + sigma(gamma_0) * eps
    probes, predict_noise, num_dims = basis_probes(z_0), exact_predictor(x), x[0].numel()

    def run(solve: Solve) -> Tensor:
        density = log_density(z_0, gamma_0, gamma_1, probes, predict_noise=predict_noise, solve=solve)
        return bits_per_dim(-density, num_dims)

    truth = bits_per_dim(-log_mixture(x, z_0, gamma_0), num_dims)
    return [
        {"problem": "finite set", "state": state, "tolerance": tolerance}
        | measure(run, dopri5(tolerance) if state == "y" else in_z(dopri5(tolerance)), truth)
        for state in ("z", "y")
        for tolerance in TOLERANCES
    ]


def network(chosen: argparse.Namespace, images: ImageSet, count: int) -> list[Row]:
    """Return the errors for the first test images with a small model, one probe."""
    model = trained(images, chosen.steps, schedule="fixed_linear", gamma_0=-9.0)
    test = np.array(images["test"][:count])
    options: Row = {"seed": 0, "num_draws": 1, "num_probes": 1, "dequantisation": "truncated_normal"}

    def run(solve: Solve) -> Tensor:
        return torch.from_numpy(evaluate_ode(model, test, batch_size=BATCH, solve=solve, **options))

    truth = run(dopri5(TOLERANCES[-1] / 10))
    return [
        {"problem": "network", "state": "y", "tolerance": tolerance} | measure(run, dopri5(tolerance), truth)
        for tolerance in TOLERANCES
    ]


if __name__ == "__main__":
    main()
