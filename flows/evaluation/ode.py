"""The likelihood of the probability-flow ODE, by torchdiffeq's solver."""

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchdiffeq import odeint
from tqdm import tqdm

from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.core.model import TrainedModel
from flows.evaluation.results import OdeMetrics
from flows.evaluation.terms import require_fitting_images, warn_if_seen
from flows.images.image_set import Chosen, is_given_class
from vdm import evaluation
from vdm.model import images_per_batch
from vdm.ode import Derivative, OdeState, Solve, evaluate_ode

if TYPE_CHECKING:
    from flows.core.params import Ode

log = logging.getLogger(__name__)

NUM_REPEATED = 8
"""The number of images on which `ode` measures the numerical error: few, so that a whole set hardly takes longer."""


def ode(settings: "Ode", model: TrainedModel, images: Chosen) -> OdeMetrics:
    """Return the likelihood of the probability-flow ODE on the images, in bits/dim.

    Its numerical error is the mean difference from a tenth of the tolerance, with the same draws and probes, over the
    first `NUM_REPEATED` of the images.  Raises UserError if model and images do not fit (exit 2), for invalid images
    (4), and if no step of the solver is short enough (2).
    """
    require_fitting_images(model, images)
    warn_if_seen(model, images)
    digest = images.set.data_sha256  # of these images, not of later ones
    vdm, pixels = model.on(find_device(settings.device)).vdm, images.pixels
    vdm.requires_grad_(False)  # the ODE needs only the gradient with respect to the images
    classed = is_given_class(model, settings.given, images.set)
    labels = images.classes(model) if classed else None
    options = settings.model_dump(include={"seed", "dequantisation", "num_draws", "num_probes", "batch_size"})
    of_set: dict[str, Any] = options | {"labels": labels}
    repeated = pixels[:NUM_REPEATED]
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    per_batch = images_per_batch(settings.batch_size, settings.num_draws)
    # The solver moves the bar by the shares of a batch.  Rounded, they add up to a little more than 1.
    total = (1 + 1e-9) * (math.ceil(len(repeated) / per_batch) + math.ceil(len(pixels) / per_batch))
    begin = time.monotonic()
    with tqdm(desc="evaluating", total=total, bar_format=form, disable=None, leave=False) as shown:
        accurate = evaluate_ode(vdm, repeated, solve=dopri5(settings.tolerance / 10, shown.update), **of_set)
        # A tenth of the tolerance takes a solver of order 5 as many steps times 10^(1/5).
        minutes = (time.monotonic() - begin) / len(repeated) / 10**0.2 / 60
        num_images, num_all = len(pixels), len(images.set[images.split])
        words = "%d images take about %.1f minutes or less, all %d about %.1f"
        log.info(words, num_images, minutes * num_images, num_all, minutes * num_all)
        bpd = evaluate_ode(vdm, pixels, solve=dopri5(settings.tolerance, shown.update), **of_set)
    return OdeMetrics(
        split=images.name,
        bpd=bpd.mean(),
        bpd_standard_error=evaluation.standard_error(bpd),
        bpd_numerical_error=(bpd[: len(repeated)] - accurate).mean(),
        num_images=len(bpd),
        num_repeated=len(repeated),
        tolerance=settings.tolerance,
        given="class" if classed else "nothing",
        **options,
        model_sha256=model.sha256,
        data_sha256=digest,
    )


def dopri5(tolerance: float, moved: Callable[[float], object] = lambda share: None) -> Solve:
    """Return an adaptive Runge-Kutta 5(4) solver.  In each step, the error of every image is at most the tolerance.

    The error is in the units of `vdm.ode.Solve`: standard deviations of the noise, and nats per dimension.  The solver
    calls `moved` with shares of the way from the first time to the last, which add up to 1.

    It raises UserError (exit 2) if no step is short enough.
    """

    def solve(derivative: Derivative, start: OdeState, times: Tensor) -> OdeState:
        behind = 0.0

        def watched(time: Tensor, state: OdeState) -> OdeState:
            nonlocal behind
            share = float((time - times[0]) / (times[-1] - times[0]))
            if share > behind:
                moved(share - behind)
                behind = share
            return derivative(time, state)

        # Without step_t it would step past the end and interpolate.
        options = {"norm": largest_error, "step_t": times[-1:]}
        try:
            y, gain = odeint(watched, start, times, rtol=0.0, atol=tolerance, method="dopri5", options=options)
        except AssertionError as error:
            reason = f"no step of the ODE reaches the tolerance {tolerance:g} ({error})"
            advice = "set a larger ode.tolerance, or check that the model's bound is finite"
            raise UserError(f"{reason}; {advice}", Exit.USAGE) from error
        return y[-1], gain[-1]

    return solve


def largest_error(error: OdeState) -> Tensor:
    """Return the largest error of any image: of y, as a root mean square over its dimensions, or of its log density."""
    y, gain = error
    return torch.maximum(y.square().flatten(1).mean(1).sqrt().max(), gain.abs().max())
