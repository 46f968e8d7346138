"""Measure the variance of the bound's estimate under four noise schedules with the same end points (section 6).

One model is trained on the digits with the learned monotone schedule, whose shape is trained to lower that variance.
Then the diffusion loss of the held-out digits is estimated under each schedule, at evenly spaced times with a random
offset.  On CIFAR-10 the paper reports 0.53 learned, 6.35 linear in log SNR, 31.6 beta-linear, 31.1 alpha-cosine.

    python -m benchmarks.estimator_variance [--steps 3000] [--json]
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import show
from benchmarks.options import new_parser, positive
from benchmarks.small_models import digits, trained
from vdm.discretization import pixels_to_x
from vdm.model import VDM
from vdm.vlb import bits_per_dim, diffusion_loss, low_discrepancy_times

Schedule = Callable[[Tensor], Tensor]


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


@torch.inference_mode()
def estimate(model: VDM, schedule: Schedule, pixels: np.ndarray, times_per_image: int) -> tuple[float, float]:
    """Return the mean diffusion loss in bits/dim, and its variance over times and noise, averaged over images."""
    generator = torch.Generator().manual_seed(0)
    losses = []
    for image in torch.from_numpy(pixels):
        batch = pixels_to_x(image.expand(times_per_image, -1, -1, -1), model.num_levels)
        t = low_discrepancy_times(torch.rand((), generator=generator), times_per_image)
        eps = torch.randn(batch.shape, generator=generator)
        gamma_t, dgamma_dt, *_ = torch.func.jvp(schedule, (t,), (torch.ones_like(t),))
        loss = diffusion_loss(batch, eps, gamma_t, dgamma_dt, model.network)
        losses.append(bits_per_dim(loss, model.num_dims))
    table = torch.stack(losses).double()
    return table.mean().item(), table.var(dim=1).mean().item()


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--steps", type=positive, default=3000, help="training steps of the model")
    parser.add_argument("--images", type=positive, default=128, help="held-out digits, each at 256 times")
    arguments = parser.parse_args()
    train_pixels, test_pixels = digits()
    model = trained(train_pixels, 17, schedule="learned_monotone", gamma_0=-7.0, width=32, steps=arguments.steps)
    ends = (model.schedule.gamma_0.detach(), model.schedule.gamma_1.detach())
    schedules: dict[str, Schedule] = {
        "learned": model.schedule,
        "logSNR-linear": linear(*ends),
        "beta-linear": beta_linear(*ends),
        "alpha-cosine": alpha_cosine(*ends),
    }
    found: dict[str, dict[str, float]] = {}
    for name, schedule in schedules.items():
        mean, variance = estimate(model, schedule, test_pixels[: arguments.images], 256)
        found[name] = {"diffusion_bpd": mean, "variance": variance}
    rows = [{"schedule": name, **figures} for name, figures in found.items()]
    show({"steps": arguments.steps, "schedules": found if arguments.json else rows}, as_json=arguments.json)


if __name__ == "__main__":
    main()
