"""The solver of the probability-flow ODE: torchdiffeq's, which `vdm.ode` takes as an argument."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from flows.core.errors import Exit, UserError
from vdm.ode import Derivative, Solve, State


def dopri5(tolerance: float, moved: Callable[[float], object] = lambda share: None) -> Solve:
    """Return an adaptive Runge-Kutta 5(4) solver.  In each step, the error of every image is at most the tolerance.

    The error is in the units of `vdm.ode.Solve`: standard deviations of the noise, and nats per dimension.  The solver
    calls `moved` with shares of the way from the first time to the last, which add up to 1.

    It raises UserError (exit 2) if no step is short enough.
    """

    def solve(derivative: Derivative, start: State, times: Tensor) -> State:
        behind = 0.0

        def watched(time: Tensor, state: State) -> State:
            nonlocal behind
            share = float((time - times[0]) / (times[-1] - times[0]))
            if share > behind:
                moved(share - behind)
                behind = share
            return derivative(time, state)

        # Without step_t it would step past the end and interpolate.
        options = {"norm": largest, "step_t": times[-1:]}
        try:
            y, gain = odeint(watched, start, times, rtol=0.0, atol=tolerance, method="dopri5", options=options)
        except AssertionError as error:
            reason = f"no step of the ODE reaches the tolerance {tolerance:g} ({error})"
            advice = "set a larger ode.tolerance, or check that the model's bound is finite"
            raise UserError(f"{reason}; {advice}", Exit.USAGE) from error
        return y[-1], gain[-1]

    return solve


def largest(error: State) -> Tensor:
    """Return the largest error of any image: of y, as a root mean square over its dimensions, or of its log density."""
    y, gain = error
    return torch.maximum(y.square().flatten(1).mean(1).sqrt().max(), gain.abs().max())
